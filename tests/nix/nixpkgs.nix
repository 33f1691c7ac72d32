# The path in the variable NIXPKGS: a tree with nixpkgs' lib/ and nixos/.
let
  path = builtins.getEnv "NIXPKGS";
in
if path == "" then throw "set NIXPKGS to a tree with lib/ and nixos/ of nixpkgs" else /. + path
