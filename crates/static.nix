# Builds a statically linked program of the workspace.
#   package      the crate's name in crates/
#   description  the package's description
{
  lib,
  stdenv,
  rustPlatform,
}:
{ package, description }:
rustPlatform.buildRustPackage {
  pname = package;
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

  src = import ./source.nix { inherit lib; };
  cargoLock.lockFile = ../Cargo.lock;

  buildInputs = [ stdenv.cc.libc.static ];
  # buildRustPackage passes --target, so that this doesn't apply to build scripts and procedural macros.
  env.RUSTFLAGS = "-C target-feature=+crt-static";
  cargoBuildFlags = [ "--package=${package}" ];
  doCheck = false; # The workspace's tests include it.

  doInstallCheck = true;
  installCheckPhase = ''
    for program in $out/bin/*; do
      if $READELF --program-headers "$program" | grep INTERP; then
        echo "$program is not static" >&2
        exit 1
      fi
    done
  '';

  meta = {
    inherit description;
    mainProgram = package;
  };
}
