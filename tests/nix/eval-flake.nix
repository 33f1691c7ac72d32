# Evaluates every output of the flake, with the real NixOS modules, a stub for each other input and for the packages:
#
#   NIXPKGS=<tree> nix-instantiate --eval --strict --json tests/nix/eval-flake.nix
#
# The tree is that of eval-host.nix. This replaces `nix flake check` where the inputs are not available: it finds
# undefined names, missing files and type errors, but builds nothing and runs no NixOS test. Prints
# `{"passed":N,"outputs":…,"tests":[…]}`.
let
  nixpkgs = import ./nixpkgs.nix;
  lib = import (nixpkgs + "/lib");
  packagesOf = system: import ./stub-packages.nix { inherit lib system; };
  systems = [
    "x86_64-linux"
    "aarch64-linux"
  ];

  # The attributes of an input that this flake uses.
  stub = name: {
    packages = lib.genAttrs systems (system: {
      default = (packagesOf system).callPackage ({ coreutils }: coreutils) { } // {
        input = name;
      };
    });
    nixosModules = lib.genAttrs [ "default" "disko" ] (_: { });
    overlays.default = _: _: { };
    # `import INPUT { … }`
    __functor = _: args: args;
  };
  inputs = lib.mapAttrs (name: _: stub name) flake.inputs // {
    nixpkgs = {
      outPath = toString nixpkgs;
      lib = lib // {
        nixosSystem =
          { modules }:
          import (nixpkgs + "/nixos/lib/eval-config.nix") {
            inherit lib;
            system = null;
            modules = modules ++ [
              {
                _module.args.pkgs = lib.mkForce (packagesOf "x86_64-linux");
                fileSystems."/".device = "/dev/disk/by-partlabel/disk-main-root";
              }
              # The options of disko, which is not available here.
              { options.disko = lib.mkOption { type = lib.types.anything; }; }
            ];
          };
      };
      legacyPackages = lib.genAttrs systems packagesOf;
    };
    # The one input that is imported as a file.
    nix-topology = stub "nix-topology" // {
      outPath = toString ./stub-topology.nix;
    };
  };
  flake = import ../../flake.nix;
  self = flake.outputs (inputs // { inherit self; });

  names = lib.mapAttrs (_: lib.attrNames);
  x86 = "x86_64-linux";
  unit = host: plain host.config.systemd.units."leafd.service".text;
  plain = builtins.unsafeDiscardStringContext;
  package = self.packages.${x86}.cim-leaf;

  # The files of a source that lib.fileset made, by their paths in the checkout.
  ofSource =
    source: map (file: lib.removePrefix "${toString ../..}/" (toString file)) (lib.fileset.toList (lib.fileset.fromSource source));

  static = [
    "leaf-init"
    "leaf-helper"
  ];

  expectations = {
    "the package has its name, the static programs and the templates" =
      package.pname == "cim-leaf"
      && lib.all (name: lib.hasInfix "-${name}/bin/*" (plain package.text)) (static ++ [ "cim-leaf-programs" ])
      && lib.hasInfix "share/cim-leaf/containers" (plain package.text);
    "no Nix file is part of the source of a program, and all Rust files are" =
      let
        files = ofSource package.programs.args.src;
      in
      lib.all (name: ofSource self.packages.${x86}.${name}.args.src == files) static
      && lib.all (file: !lib.hasSuffix ".nix" file) files
      && lib.elem "crates/leafd/src/main.rs" files
      && lib.elem "crates/leaf-helper/Cargo.toml" files
      && lib.elem "Cargo.lock" files;
    "format, lints, dependencies and tests are checks, and the package's own tests" =
      lib.all
        (
          { name, value }:
          self.checks.${x86}.${name} == package.tests.${name}
          && lib.hasInfix value package.tests.${name}.args.buildPhase
          && lib.elem "crates/testhost/tests/host/leaf/system.nix" (ofSource package.tests.${name}.args.src)
        )
        (
          lib.attrsToList {
            fmt = "cargo fmt --all --check";
            clippy = "cargo clippy --offline --workspace --all-targets -- --deny warnings";
            deny = "cargo deny --offline check";
            tests = "cargo test --offline --workspace";
          }
        );
    "each app and package says what it is" = lib.all (of: (of.meta.description or "") != "") (
      lib.attrValues self.apps.${x86} ++ map (name: self.packages.${x86}.${name}) (static ++ [ "cim-leaf" ])
    );
    "leaf-init and leaf-helper are static" = lib.all (
      name: lib.hasInfix "+crt-static" self.packages.${x86}.${name}.args.env.RUSTFLAGS
    ) static;
    "the overlay has the package" =
      ((packagesOf x86).extend self.overlays.default).cim-leaf.pname == "cim-leaf";
    "the demo is a program" = lib.isString (plain self.apps.${x86}.demo.program);
    "each shell has packages" = lib.all (shell: shell.args.packages != [ ]) (
      lib.attrValues self.devShells.${x86}
    );
    "the operator's shell has a program of each input" =
      lib.length (lib.filter (p: p ? input) self.devShells.${x86}.operator.args.packages) == 5;
    "each host's daemon is the flake's own package" = lib.all (
      host: lib.hasInfix (plain "${package}/bin/leafd run") (unit host)
    ) (lib.attrValues self.nixosConfigurations);
    "each host is a check" = lib.all (name: self.checks.${x86} ? "host-${name}") (lib.attrNames self.nixosConfigurations);
    "each NixOS test has a script and machines" = lib.all (
      test: lib.isString test.args.testScript && test.args.nodes != { }
    ) (lib.attrValues (lib.filterAttrs (name: _: lib.hasPrefix "nixos-" name) self.checks.${x86}));
    "the machines of the NixOS tests evaluate up to the unit" = lib.all (
      test:
      lib.all (
        node:
        lib.hasInfix "Type=notify" (
          unit (
            inputs.nixpkgs.lib.nixosSystem {
              modules = [
                # The options that the test driver adds.
                { options.virtualisation = lib.genAttrs [ "memorySize" "writableStore" "additionalPaths" ] (_: lib.mkOption { }); }
                {
                  nixpkgs.hostPlatform = x86;
                  boot.loader.grub.enable = false;
                  system.stateVersion = "25.05";
                }
                node
              ];
            }
          )
        )
      ) (lib.attrValues test.args.nodes)
    ) (lib.attrValues (lib.filterAttrs (name: _: lib.hasPrefix "nixos-" name) self.checks.${x86}));
    "the unit tests are a check" = self.checks.${x86} ? nix-unit && lib.isString self.checks.${x86}.nix-unit.text;
    "each container template that is a NixOS system is a package, and a check" =
      self.packages.${x86} ? container-nats
      && !(self.packages.${x86} ? container-minimal)
      && self.checks.${x86} ? package-container-nats;
    "each directory of modules is a module, including the NATS server's" =
      lib.attrNames (removeAttrs self.nixosModules [ "default" ])
      == lib.attrNames (lib.filterAttrs (_: type: type == "directory") (builtins.readDir ../../nixos-modules))
      && lib.all builtins.pathExists [
        self.nixosModules.nats
        self.nixosModules.host
      ];
    "the module of a container's system leaves out what a user namespace does not permit, and is none for hosts" =
      let
        system =
          modules:
          (inputs.nixpkgs.lib.nixosSystem {
            modules = modules ++ [
              {
                nixpkgs.hostPlatform = x86;
                system.stateVersion = "25.05";
              }
            ];
          }).config;
        ping = config: config.boot.kernel.sysctl."net.ipv4.ping_group_range";
        mounts = config: lib.attrNames config.boot.specialFileSystems;
        own = system [ self.nixosModules.container ];
        stock = system [ { boot.isContainer = true; } ];
        host = system [ self.nixosModules.default ];
      in
      own.boot.isContainer
      && ping own == null
      && mounts own == [ "/run/keys" ]
      && ping stock != null
      && lib.elem "/dev" (mounts stock)
      && !host.boot.isContainer
      && ping host != null;
    "the module leaf alone, and beside all modules, has the flake's own package" =
      lib.all
        (
          modules:
          lib.hasInfix (plain "${package}/bin/leafd run") (
            unit (
              inputs.nixpkgs.lib.nixosSystem {
                modules = modules ++ [
                  {
                    nixpkgs.hostPlatform = x86;
                    boot.loader.grub.enable = false;
                    system.stateVersion = "25.05";
                    networking.hostName = "alone";
                    services.cim-leaf.enable = true;
                    services.cim-leaf.nats.embedded.enable = true;
                  }
                ];
              }
            )
          )
        )
        [
          [ self.nixosModules.leaf ]
          [
            self.nixosModules.leaf
            self.nixosModules.default
          ]
        ];
    "each template has a directory" = lib.all (template: builtins.pathExists template.path) (lib.attrValues self.templates);
    "the topology knows the hosts" =
      lib.any (module: module ? nixosConfigurations) self.topology.${x86}.modules;
    "the formatter is a package" = lib.isDerivation self.formatter.${x86};
  };
  unmet = lib.attrNames (lib.filterAttrs (_: holds: !holds) expectations);
in
if unmet != [ ] then
  throw "${toString (lib.length unmet)} expectations are not met:\n  ${lib.concatStringsSep "\n  " unmet}"
else
  {
    passed = lib.length (lib.attrNames expectations);
    outputs = names (removeAttrs self [ "packages" "checks" ]) // {
      packages = names self.packages;
      checks = names self.checks;
    };
    tests = lib.attrNames expectations;
  }
