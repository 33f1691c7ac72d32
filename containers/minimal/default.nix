# The minimal system of a container: one static program that is its init, and nothing else.
#
#   nix build -f containers/minimal/default.nix --argstr leafInit /path/to/static/leaf-init
#
# It needs no package set, no shell and no network: leaf-init is its own builder (`leaf-init install` copies itself to
# $out/init). A `leafInit` that is a store path keeps the evaluation pure; any other path is copied to the store first.
{
  leafInit,
  system ? builtins.currentSystem,
}:
let
  given = toString leafInit;
  inStore = builtins.substring 0 (builtins.stringLength builtins.storeDir + 1) given == builtins.storeDir + "/";
  program =
    if inStore then
      builtins.storePath given
    else
      builtins.path {
        # A plain text is made a path here, so that it is copied and the sandbox has it.
        path = /. + given;
        name = "leaf-init";
      };
in
derivation {
  name = "leaf-minimal";
  inherit system;
  builder = program;
  args = [ "install" ];
  # It is a copy of what is here already: no cache need be asked, and a leaf without a network builds it at once.
  allowSubstitutes = false;
  preferLocalBuild = true;
}
