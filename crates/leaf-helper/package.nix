# The privileged helper, with its systemd generator. It is executed at each start of a container, which dynamic linking
# would slow down.
{
  lib,
  stdenv,
  rustPlatform,
}:
import ../static.nix { inherit lib stdenv rustPlatform; } {
  package = "leaf-helper";
  description = "Carries out the host operations of cim-leaf that need root";
}
