# The tree with nixpkgs' lib/, nixos/ and maintainers/{maintainer,team}-list.nix that NIXPKGS names.
let
  path = builtins.getEnv "NIXPKGS";
in
if path == "" then throw "set NIXPKGS to a tree with lib/ and nixos/ of nixpkgs" else /. + path
