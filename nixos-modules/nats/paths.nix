# What the values of options that name files are: in the Nix store (public, and there when the system is built), on the host,
# or the name of a credential that a container gets. Pure.
let
  inherit (builtins)
    isPath
    match
    stringLength
    storeDir
    substring
    ;
  folder = storeDir + "/";
in
rec {
  # A Nix path is copied to the store when it becomes text.
  inStore = file: isPath file || substring 0 (stringLength folder) "${file}" == folder;
  isAbsolute = file: substring 0 1 file == "/";
  isCredentialName = file: match "[A-Za-z0-9_][A-Za-z0-9._-]*" file != null;
  onHost = file: !inStore file && (isAbsolute file || isCredentialName file);
}
