# The programs of the workspace: leafd and leafctl, with leaf-helper and leaf-init, the container templates and
# completions.
{
  lib,
  stdenv,
  rustPlatform,
  pkg-config,
  installShellFiles,
  udev,
  callPackage,
  # for the tests
  nats-server,
  runTests ? false,
}:
let
  inherit (lib) fileset;
  root = ../.;
  leaf-init = callPackage ./leaf-init/package.nix { };
  leaf-helper = callPackage ./leaf-helper/package.nix { };
in
rustPlatform.buildRustPackage {
  pname = "cim-leaf";
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

  src = fileset.toSource {
    inherit root;
    # The tests compare docs/ with the code, and read hosts/ and the templates.
    fileset = fileset.unions (
      [
        ../Cargo.toml
        ../Cargo.lock
        ../crates
      ]
      ++ lib.optionals runTests (
        map fileset.maybeMissing [
          ../.clippy.toml
          ../containers
          ../docs
          ../hosts
          ../nixos-modules
          ../tests
        ]
      )
    );
  };
  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = [
    pkg-config
    installShellFiles
  ];
  buildInputs = [ udev ];

  # xtask is for development; leaf-init and leaf-helper are static and built separately.
  cargoBuildFlags = [
    "--package=leafd"
    "--package=leafctl"
  ];

  # In the sandbox, tests that need root, systemd-nspawn or Nix are skipped by name.
  doCheck = runTests;
  cargoTestFlags = [ "--workspace" ];
  nativeCheckInputs = [ nats-server ];

  postInstall =
    ''
      ln -s ${leaf-init}/bin/* ${leaf-helper}/bin/* $out/bin/
      mkdir -p $out/share/cim-leaf
      cp -r ${../containers} $out/share/cim-leaf/containers
      # The modules that the templates import.
      cp -r ${../nixos-modules} $out/share/cim-leaf/nixos-modules
    ''
    + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
      installShellCompletion --cmd leafctl \
        --bash <($out/bin/leafctl completions bash) \
        --zsh <($out/bin/leafctl completions zsh) \
        --fish <($out/bin/leafctl completions fish)
    '';

  passthru = { inherit leaf-init leaf-helper; };

  meta = {
    description = "NixOS hosts as leaves of a Composable Information Machine, controlled through NATS alone";
    license = with lib.licenses; [
      mit
      asl20
    ];
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
    mainProgram = "leafctl";
  };
}
