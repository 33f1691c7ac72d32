# The system of a container.
{
  # What its one service of its own says.
  word ? "hello",
  # With all that a NixOS does at its start: what may not be done in a user namespace, and what takes an emulated machine most
  # of the time, the firewall and the setuid wrappers.
  stock ? false,
  # Its init ends before systemd starts, and a switch to it fails.
  broken ? false,
}:
{ lib, pkgs, ... }:
{
  boot.isContainer = true;
  networking.hostName = "guest";
  networking.useDHCP = false;
  networking.useHostResolvConf = false;
  nix.enable = false;
  environment.systemPackages = [ pkgs.iproute2 ];
  users.users.root.initialHashedPassword = "";

  # The one that differs, and one that must not be restarted for it.
  systemd.services.speaker = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig.ExecStart = pkgs.writeShellScript "speaker" ''
      echo "${word}"
      exec sleep infinity
    '';
  };
  systemd.services.bystander = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig.ExecStart = pkgs.writeShellScript "bystander" "exec sleep infinity";
  };
  # It takes its time to end, and says so: what stops the container in order waits for it.
  systemd.services.last-words = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
      ExecStart = "${pkgs.coreutils}/bin/true";
      ExecStop = pkgs.writeShellScript "last-words" ''
        echo "last words"
        date +%s >/var/lib/last-words
      '';
    };
  };

  networking.firewall.enable = stock;
  systemd.services.suid-sgid-wrappers.enable = stock;
  boot.kernel.sysctl = lib.mkIf (!stock) { "net.ipv4.ping_group_range" = lib.mkForce null; };
  boot.specialFileSystems = lib.mkIf (!stock) (
    lib.mkForce {
      "/run/keys" = {
        fsType = "ramfs";
        options = [
          "nosuid"
          "nodev"
          "mode=750"
        ];
      };
    }
  );

  boot.systemdExecutable = lib.mkIf broken "${pkgs.coreutils}/bin/false";
  system.activationScripts.broken = lib.mkIf broken "echo 'this system is broken' >&2; false";
}
