# Returns the types of a host's file systems by mount point, of `fileSystems` and of `systemd.mounts`.
{ config, lib }:
lib.mapAttrs' (_: mount: lib.nameValuePair mount.mountPoint mount.fsType) config.fileSystems
// lib.listToAttrs (
  map (mount: lib.nameValuePair mount.where (if mount.type == null then "" else mount.type)) config.systemd.mounts
)
