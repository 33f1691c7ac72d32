{ ... }:
let
  hosts = import ../../../hosts;
in
{
  "the folders of hosts/ are the hosts" = {
    expr = builtins.filter (name: !(hosts ? ${name})) (
      builtins.filter (name: (builtins.readDir ../../../hosts).${name} == "directory") (
        builtins.attrNames (builtins.readDir ../../../hosts)
      )
    );
    expected = [ ];
  };
  "a host is named as its folder, and has its report" = {
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
  "what needs disko stands apart" = {
    expr = map baseNameOf hosts.example.disks;
    expected = [ "disk.nix" ];
  };
}
