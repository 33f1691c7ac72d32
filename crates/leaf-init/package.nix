# The static `leaf-init`, the first process of the minimal container: that has no libraries beside it.
{
  lib,
  stdenv,
  rustPlatform,
}:
rustPlatform.buildRustPackage {
  pname = "leaf-init";
  inherit ((lib.importTOML ../../Cargo.toml).workspace.package) version;

  src = lib.fileset.toSource {
    root = ../../.;
    fileset = lib.fileset.unions [
      ../../Cargo.toml
      ../../Cargo.lock
      ../../crates
    ];
  };
  cargoLock.lockFile = ../../Cargo.lock;

  buildInputs = [ stdenv.cc.libc.static ];
  # buildRustPackage names the target, so that this doesn't reach build scripts and procedural macros.
  env.RUSTFLAGS = "-C target-feature=+crt-static";
  cargoBuildFlags = [ "--package=leaf-init" ];
  doCheck = false; # the tests of the workspace have it

  # It would not run in a container with as much as one reference to a library.
  doInstallCheck = true;
  installCheckPhase = ''
    if $READELF --program-headers $out/bin/leaf-init | grep INTERP; then
      echo "leaf-init is not static" >&2
      exit 1
    fi
  '';

  meta = {
    description = "The init of the minimal container of cim-leaf";
    mainProgram = "leaf-init";
  };
}
