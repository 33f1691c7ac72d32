# Returns a static program of the workspace: one without libraries beside it.
#   package      its name in crates/
#   description  what it is
{
  lib,
  stdenv,
  rustPlatform,
}:
{ package, description }:
rustPlatform.buildRustPackage {
  pname = package;
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../crates
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  buildInputs = [ stdenv.cc.libc.static ];
  # buildRustPackage names the target, so that this doesn't reach build scripts and procedural macros.
  env.RUSTFLAGS = "-C target-feature=+crt-static";
  cargoBuildFlags = [ "--package=${package}" ];
  doCheck = false; # the tests of the workspace have it

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
