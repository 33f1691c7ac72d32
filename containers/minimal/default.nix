# The minimal system of a container: one static program, which is its init.
#
#   nix build -f containers/minimal/default.nix --argstr leafInit /path/to/static/leaf-init
#
# The build needs no package set, no shell and no network: leaf-init is the builder (`leaf-init install` copies itself
# to $out/init). A store path as `leafInit` keeps the evaluation pure; any other path is copied to the store first.
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
        # Turns the string into a path, so that Nix copies the program to the store and into the sandbox.
        path = /. + given;
        name = "leaf-init";
      };
in
derivation {
  name = "leaf-minimal";
  inherit system;
  builder = program;
  args = [ "install" ];
  # The result is a copy of a local file, so no substituter is asked, and a leaf without a network builds it at once.
  allowSubstitutes = false;
  preferLocalBuild = true;
}
