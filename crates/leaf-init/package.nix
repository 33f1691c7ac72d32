# The first process of the minimal container, which has no libraries.
{
  lib,
  stdenv,
  rustPlatform,
}:
import ../static.nix { inherit lib stdenv rustPlatform; } {
  package = "leaf-init";
  description = "The init of the minimal container of cim-leaf";
}
