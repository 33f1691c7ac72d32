# The first process of the minimal container. It would not run there with as much as one reference to a library.
{
  lib,
  stdenv,
  rustPlatform,
}:
import ../static.nix { inherit lib stdenv rustPlatform; } {
  package = "leaf-init";
  description = "The init of the minimal container of cim-leaf";
}
