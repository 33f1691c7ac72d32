# The hosts: one folder each, with `default.nix` (a NixOS module), where nixos-facter was run `facter.json`, and where disko
# lays out the disks `disk.nix`. A folder that is put here is a host; there is no list. The folder's name is the host's.
#
# Returns for each host `modules`, and apart from them `disks`, the modules that need disko. Pure.
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
