# Returns the source of the workspace's programs. No Nix file is part of it: an edit of one builds no Rust anew.
{ lib }:
let
  inherit (lib) fileset;
in
fileset.toSource {
  root = ../.;
  fileset = fileset.unions [
    ../Cargo.toml
    ../Cargo.lock
    (fileset.difference ../crates (fileset.fileFilter (file: file.hasExt "nix") ../crates))
  ];
}
