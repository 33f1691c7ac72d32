# The package: leafd, leafctl with completions, leaf-hub, leaf-helper and leaf-init, and the container templates.
#
# The Rust code is built apart (`passthru.programs`), of a source without Nix files; this derivation puts the programs
# and the templates together, so that an edit of a template or module builds no Rust anew.
{
  lib,
  stdenv,
  runCommand,
  rustPlatform,
  pkg-config,
  installShellFiles,
  udev,
  callPackage,
  # OpenPGP signatures of commands, beside those of SSH keys: `cim-leaf.override { withOpenpgp = true; }`
  withOpenpgp ? false,
}:
let
  inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;
  leaf-init = callPackage ./leaf-init/package.nix { };
  leaf-helper = callPackage ./leaf-helper/package.nix { };

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

  programs = rustPlatform.buildRustPackage {
    pname = "cim-leaf-programs";
    inherit version meta;

    src = import ./source.nix { inherit lib; };
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
      "--package=leaf-hub"
    ];
    buildFeatures = lib.optional withOpenpgp "leafd/openpgp";
    doCheck = false; # passthru.tests

    postInstall = lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
      installShellCompletion --cmd leafctl \
        --bash <($out/bin/leafctl completions bash) \
        --zsh <($out/bin/leafctl completions zsh) \
        --fish <($out/bin/leafctl completions fish)
    '';
  };
in
runCommand "cim-leaf-${version}"
  {
    pname = "cim-leaf";
    inherit version meta;
    passthru = {
      inherit programs leaf-init leaf-helper;
      tests = removeAttrs (callPackage ./checks.nix { }) [
        "override"
        "overrideDerivation"
      ];
    };
  }
  ''
    mkdir -p $out/bin $out/share/cim-leaf
    # leafd and leafctl are copied: they look for templates and other programs beside their own file.
    cp ${programs}/bin/* $out/bin/
    if [ -e ${programs}/share ]; then
      cp -r --no-preserve=mode ${programs}/share/. $out/share/
    fi
    ln -s ${leaf-init}/bin/* ${leaf-helper}/bin/* $out/bin/
    cp -r ${../containers} $out/share/cim-leaf/containers
    # The modules that the templates import.
    cp -r ${../nixos-modules} $out/share/cim-leaf/nixos-modules
  ''
