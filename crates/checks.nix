# What a change to the Rust code must pass, as `passthru.tests` of the package: `nix build .#cim-leaf.tests.clippy`.
{
  lib,
  rustPlatform,
  pkg-config,
  udev,
  cargo,
  rustfmt,
  clippy,
  cargo-deny,
  nats-server,
}:
let
  inherit (lib) fileset;
  # The tests compare docs/ with the code, and read hosts/ and the templates.
  src = fileset.toSource {
    root = ../.;
    fileset = fileset.unions (
      [
        ../Cargo.toml
        ../Cargo.lock
        ../rustfmt.toml
        ../deny.toml
        ../crates
        ../containers
        ../docs
        ../hosts
        ../nixos-modules
        ../tests
      ]
      # Names with a dot are missing where only what git lists was copied.
      ++ map fileset.maybeMissing [ ../.clippy.toml ]
    );
  };
  check =
    name: programs: command:
    rustPlatform.buildRustPackage {
      pname = "cim-leaf-${name}";
      inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;
      inherit src;
      cargoLock.lockFile = ../Cargo.lock;
      nativeBuildInputs = [ pkg-config ] ++ programs;
      buildInputs = [ udev ];
      buildPhase = ''
        runHook preBuild
        ${command}
        runHook postBuild
      '';
      doCheck = false;
      installPhase = "touch $out";
      meta.description = "Passes `${command}` in the workspace of cim-leaf";
    };
in
{
  fmt = check "fmt" [
    cargo
    rustfmt
  ] "cargo fmt --all --check";
  clippy = check "clippy" [ clippy ] "cargo clippy --offline --workspace --all-targets -- --deny warnings";
  # Without `advisories`, which needs a network.
  deny = check "deny" [ cargo-deny ] "cargo deny --offline check bans licenses sources";
  # In the sandbox, tests that need root, systemd-nspawn or Nix are skipped by name.
  tests = check "tests" [ nats-server ] "cargo test --offline --workspace";
}
