# The hosts: one directory each, with `default.nix` (a NixOS module), `facter.json` where nixos-facter was run, and
# `disk.nix` where disko lays out the disks. Each directory here is a host of that name; there is no list to maintain.
#
# Returns `modules` for each host, and separately `disks`, the modules that need disko. Pure.
let
  inherit (builtins) attrNames filter listToAttrs pathExists readDir;

  entries = readDir ./.;
  isHost = name: entries.${name} == "directory" && pathExists (./. + "/${name}/default.nix");

  host =
    name:
    let
      report = ./. + "/${name}/facter.json";
      disk = ./. + "/${name}/disk.nix";
    in
    {
      modules = [
        (./. + "/${name}")
        {
          networking.hostName = name;
          cim.host.facterReport = if pathExists report then report else null;
        }
      ];
      disks = if pathExists disk then [ disk ] else [ ];
    };
in
listToAttrs (
  map (name: {
    inherit name;
    value = host name;
  }) (filter isHost (attrNames entries))
)
