# Returns the option of a file that `reader` gets as a systemd credential. Its value is a string, never a Nix path: that would be copied
# into the store, which every user can read.
{ lib, reader }:
{ example, description }:
lib.mkOption {
  type = lib.types.nullOr lib.types.str;
  default = null;
  inherit example;
  description = "${lib.removeSuffix "\n" description} ${reader} gets it as a systemd credential. The path must be a string and be outside the Nix store.";
}
