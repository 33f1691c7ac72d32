# The hosts: one folder each, with `default.nix` (a NixOS module) and, where nixos-facter was run, `facter.json`. A folder
# that is put here is a host; there is no list. The folder's name is the host's.
#
# Returns for each host its list of modules; flake.nix adds what comes from inputs. Pure.
let
  inherit (builtins) attrNames filter listToAttrs pathExists readDir;

  entries = readDir ./.;
  isHost = name: entries.${name} == "directory" && pathExists (./. + "/${name}/default.nix");

  modules =
    name:
    let
      report = ./. + "/${name}/facter.json";
    in
    [
      (./. + "/${name}")
      {
        networking.hostName = name;
        cim.host.facterReport = if pathExists report then report else null;
      }
    ];
in
listToAttrs (
  map (name: {
    inherit name;
    value = modules name;
  }) (filter isHost (attrNames entries))
)
