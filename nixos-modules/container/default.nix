# The system of a container on a leaf: NixOS without what the kernel does not permit in a user namespace. Nothing in it
# fails at its start, so `systemctl is-system-running` says `running`.
{ lib, options, ... }:
{
  boot =
    (
      if options.boot ? isNspawnContainer then
        { isNspawnContainer = true; }
      else
        { isContainer = true; }
    )
    // {
      # Its default names groups that the namespace does not map.
      kernel.sysctl."net.ipv4.ping_group_range" = null;
      # systemd-nspawn mounts `/dev`, `/proc` and the like, and the activation can't change their options. Add your own by
      # `lib.mkForce`.
      specialFileSystems = lib.mkForce {
        "/run/keys" = {
          fsType = "ramfs";
          options = [
            "nosuid"
            "nodev"
            "mode=750"
          ];
        };
      };
    };

  # leaf-helper sets the addresses of `eth0`, and the container can't reach a name server of the host.
  networking.useDHCP = lib.mkDefault false;
  networking.useHostResolvConf = lib.mkDefault false;
}
