# A package set for evaluation only: each package is a derivation of its name that is never built.
#
# nixpkgs' package set is not always available; `names` lists the packages that the hosts' modules and our own
# expressions use. A missing one fails the evaluation with its name: add it here.
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
  # A derivation with its text as an attribute.
  written = name: text: package (lib.strings.sanitizeDerivationName name) // { inherit text; };
  # What a package has of its arguments, beside its name.
  known = args: builtins.intersectAttrs { pname = null; meta = null; } args // (args.passthru or { });
  # A package with its arguments as an attribute.
  made = args: package (args.pname or args.name) // known args // { inherit args; };

  names = lib.splitString " " (
    lib.concatStringsSep " " [
      "nats-server nix gitMinimal git iproute2 nftables iptables systemd coreutils findutils gnugrep gnused kexec-tools"
      "glibcLocales tzdata openssh smartmontools bluez bash bashInteractive util-linux e2fsprogs dosfstools nixos-facter"
      "polkit shadow kmod perl dbus gawk getent jq openssl cim-leaf"
      "age cargo rustc clippy rustfmt rust-analyzer cargo-deny natscli pkg-config installShellFiles nixfmt-tree"
    ]
  );
  format = name: _: {
    type = lib.types.attrsOf lib.types.anything;
    generate = file: value: written file (builtins.toJSON value);
  };

  self = lib.genAttrs names package // {
    inherit lib system;
    config.allowAliases = false;
    overlays = [ ];
    path = "/nix/store/00000000000000000000000000000000-source";

    stdenv = {
      inherit system;
      hostPlatform = platform;
      buildPlatform = platform;
      targetPlatform = platform;
      isLinux = true;
      inherit (platform) is64bit;
      cc = package "cc" // {
        libc = self.glibc;
      };
    };

    # Packages whose attributes are used.
    glibc = package "glibc" // {
      static = package "glibc-static";
    };
    udev = package "udev" // {
      dev = package "udev-dev";
    };
    udisks2 = package "udisks2" // {
      libblockdev = package "libblockdev";
    };
    fwupd = package "fwupd" // {
      filesInstalledToEtc = [ ];
      defaultDisabledPlugins = [ ];
    };
    linuxPackages = rec {
      extend = _: { inherit extend kernel; };
      kernel = package "linux" // {
        version = "6.12";
        kernelAtLeast = _: true;
        features = { };
        config = lib.genAttrs [ "isSet" "isEnabled" "isYes" "isNo" "isModule" ] (_: _: true);
      };
    };

    # Functions that create files.
    writeText = written;
    writeTextDir = written;
    writeScript = written;
    writeScriptBin = written;
    writeShellScript = written;
    writeShellScriptBin = written;
    writeTextFile = file: written file.name file.text;
    writeShellApplication = program: written program.name program.text;
    runCommand = name: env: script: written name script // known env // { inherit env; };
    runCommandLocal = self.runCommand;
    substituteAll = file: package (file.name or "substituted");
    replaceVars = _: _: package "substituted";
    buildEnv = env: package env.name;
    symlinkJoin = env: package env.name;
    formats = lib.genAttrs [ "ini" "iniWithGlobalSection" "json" "keyValue" "systemd" "toml" "yaml" ] format;

    # Functions that create packages.
    callPackage =
      f: args:
      let
        function = if builtins.isFunction f then f else import f;
        called = function (builtins.intersectAttrs (builtins.functionArgs function) self // args);
      in
      called // { override = more: self.callPackage f (args // more); };
    extend = overlay: self // overlay self self;
    rustPlatform.buildRustPackage = made;
    mkShell = args: made (args // { name = "shell"; });
    mkShellNoCC = self.mkShell;
    testers.runNixOSTest = made;
  };
in
self
