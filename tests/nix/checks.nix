# The checks of the flake, discovered from the directories: unit tests, packages with their tests, hosts, NixOS tests.
{
  self,
  system,
  pkgs,
}:
let
  inherit (pkgs) lib;
  prefixed = prefix: lib.mapAttrs' (name: lib.nameValuePair "${prefix}-${name}");

  unit = import ./.;
  nixosTests = lib.filterAttrs (name: _: lib.hasSuffix ".nix" name && name != "default.nix") (builtins.readDir ../nixos);
in
prefixed "package" self.packages.${system}
// prefixed "host" (
  lib.mapAttrs (_: host: host.config.system.build.toplevel) (
    lib.filterAttrs (_: host: host.pkgs.stdenv.hostPlatform.system == system) self.nixosConfigurations
  )
)
// prefixed "nixos" (
  lib.mapAttrs' (
    file: _:
    lib.nameValuePair (lib.removeSuffix ".nix" file) (
      pkgs.testers.runNixOSTest (import (../nixos + "/${file}") { inherit self; })
    )
  ) nixosTests
)
// {
  # The evaluation runs the tests: a failure is an error with the names of the failed tests.
  nix-unit = pkgs.runCommand "nix-unit" { passed = unit.passed; } ''echo "$passed tests passed" > $out'';
}
# fmt, clippy, deny and tests of the Rust code
// self.packages.${system}.cim-leaf.tests
