# The system of a container.
{
  # What its one service of its own says.
  word ? "hello",
  # With what takes an emulated machine most of the time at a start: the firewall and the setuid wrappers.
  whole ? false,
  # As NixOS comes, with what may not be done in a user namespace.
  stock ? false,
  # One of its services fails.
  faulty ? false,
  # Our module of a container's system.
  module,
  # Its init ends before systemd starts, and a switch to it fails.
  broken ? false,
}:
{ lib, pkgs, ... }:
{
  imports = lib.optional (!stock) module;

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

  systemd.services.faulty = lib.mkIf faulty {
    wantedBy = [ "multi-user.target" ];
    serviceConfig.Type = "oneshot";
    serviceConfig.ExecStart = "${pkgs.coreutils}/bin/false";
  };

  networking.firewall.enable = whole;
  systemd.services.suid-sgid-wrappers.enable = whole;
  boot.systemdExecutable = lib.mkIf broken "${pkgs.coreutils}/bin/false";
  system.activationScripts.broken = lib.mkIf broken "echo 'this system is broken' >&2; false";
}
