# The root side, with its generator for systemd. Each start and each end of a container executes it, which a dynamic linker
# would make longer.
{
  lib,
  stdenv,
  rustPlatform,
}:
import ../static.nix { inherit lib stdenv rustPlatform; } {
  package = "leaf-helper";
  description = "What needs root on a leaf of cim-leaf";
}
