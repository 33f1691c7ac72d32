{ ... }:
let
  hosts = import ../../../hosts;
in
{
  "each directory of hosts/ is a host" = {
    expr = builtins.filter (name: !(hosts ? ${name})) (
      builtins.filter (name: (builtins.readDir ../../../hosts).${name} == "directory") (
        builtins.attrNames (builtins.readDir ../../../hosts)
      )
    );
    expected = [ ];
  };
  "a host has the name of its directory and that directory's report" = {
    expr =
      let
        own = builtins.elemAt hosts.example.modules 1;
      in
      [
        own.networking.hostName
        (builtins.fromJSON (builtins.readFile own.cim.host.facterReport)).version
      ];
    expected = [
      "example"
      1
    ];
  };
  "modules that need disko are separate" = {
    expr = map baseNameOf hosts.example.disks;
    expected = [ "disk.nix" ];
  };
}
