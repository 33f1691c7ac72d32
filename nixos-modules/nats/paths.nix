# Classifies the values of options that name files: in the Nix store (public, and available to the build), on the host,
# or the name of a credential that a container gets. Pure.
let
  inherit (builtins)
    isPath
    match
    stringLength
    storeDir
    substring
    ;
  directory = storeDir + "/";
in
rec {
  # A Nix path is copied to the store when it becomes text.
  inStore = file: isPath file || substring 0 (stringLength directory) "${file}" == directory;
  isAbsolute = file: substring 0 1 file == "/";
  isCredentialName = file: match "[A-Za-z0-9_][A-Za-z0-9._-]*" file != null;
  onHost = file: !inStore file && (isAbsolute file || isCredentialName file);
}
