# A package set for evaluation only: whatever package a module names is a derivation of that name that nobody builds.
#
# NixOS modules ask for packages by name, and nixpkgs' package set is not always at hand; `names` are those that the
# modules of the example host touch. One that is missing fails the evaluation with its name: add it.
{ lib, system }:
let
  platform = lib.systems.elaborate system;

  package =
    name:
    derivation {
      inherit name system;
      builder = "/none";
    }
    // rec {
      pname = name;
      version = "0";
      meta.mainProgram = name;
      override = _: package name;
      overrideAttrs = override;
      passthru = { };
    };
  # A derivation that remembers the text that it would be made of.
  written = name: text: package (lib.strings.sanitizeDerivationName name) // { inherit text; };

  names = lib.splitString " " (lib.concatStringsSep " " [
    "cim-leaf nats-server nix gitMinimal git iproute2 nftables iptables systemd coreutils findutils gnugrep gnused kexec-tools"
    "glibcLocales tzdata openssh smartmontools bluez bash bashInteractive util-linux e2fsprogs dosfstools nixos-facter"
    "polkit udisks2 shadow kmod perl dbus gawk getent"
  ]);
  format =
    name: _: {
      type = lib.types.attrsOf lib.types.anything;
      generate = file: value: written file (builtins.toJSON value);
    };
in
lib.genAttrs names package
// {
  inherit lib system;
  # Some that modules look into.
  linuxPackages = rec {
    extend = _: { inherit extend kernel; };
    kernel = package "linux" // {
      version = "6.12";
      kernelAtLeast = _: true;
      features = { };
      config = lib.genAttrs [ "isSet" "isEnabled" "isYes" "isNo" "isModule" ] (_: _: true);
    };
  };
  udisks2 = package "udisks2" // {
    libblockdev = package "libblockdev";
  };
  fwupd = package "fwupd" // {
    filesInstalledToEtc = [ ];
    defaultDisabledPlugins = [ ];
  };
  stdenv = {
    inherit system;
    hostPlatform = platform;
    buildPlatform = platform;
    targetPlatform = platform;
    isLinux = true;
    cc = package "cc";
  };
  writeText = written;
  writeTextDir = written;
  writeScript = written;
  writeScriptBin = written;
  writeShellScript = written;
  writeShellScriptBin = written;
  writeTextFile = file: written file.name file.text;
  writeShellApplication = program: written program.name program.text;
  runCommand = name: env: script: written name script // { inherit env; };
  runCommandLocal = name: env: script: written name script // { inherit env; };
  substituteAll = file: package (file.name or "substituted");
  replaceVars = _: _: package "substituted";
  buildEnv = env: package env.name;
  symlinkJoin = env: package env.name;
  formats = lib.genAttrs [ "ini" "iniWithGlobalSection" "json" "keyValue" "systemd" "toml" "yaml" ] format;
  config.allowAliases = false;
  overlays = [ ];
}
