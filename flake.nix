# Wiring only: what is built lies beside what it builds, and hosts, modules, templates and tests are found by reading
# their folders.
{
  description = "NixOS hosts as leaves of a Composable Information Machine, spoken to through NATS alone";

  # What inputs bring along follows ours, one level deep: older Nix (2.8) takes an input between two levels for one of the
  # registry.
  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

    disko.url = "github:nix-community/disko";
    disko.inputs.nixpkgs.follows = "nixpkgs";

    nix-topology.url = "github:oddlama/nix-topology";
    nix-topology.inputs.nixpkgs.follows = "nixpkgs";

    nixos-anywhere.url = "github:nix-community/nixos-anywhere";
    nixos-anywhere.inputs.nixpkgs.follows = "nixpkgs";
    nixos-anywhere.inputs.nixos-stable.follows = "nixpkgs";
    nixos-anywhere.inputs.disko.follows = "disko";

    nixos-facter.url = "github:nix-community/nixos-facter";
    nixos-facter.inputs.nixpkgs.follows = "nixpkgs";
    nixos-facter.inputs.disko.follows = "disko";
    nixos-facter.inputs.treefmt-nix.follows = "nixos-anywhere/treefmt-nix";

    extra-container.url = "github:erikarvstedt/extra-container";
    extra-container.inputs.nixpkgs.follows = "nixpkgs";
    extra-container.inputs.flake-utils.follows = "nixos-facter/flake-utils";

    # It links with the libraries of Nix 2.24, which later package sets no longer have: it keeps its own.
    nix-inspect.url = "github:bluskript/nix-inspect";
    nix-inspect.inputs.parts.follows = "nix-topology/flake-parts";
  };

  outputs =
    { self, nixpkgs, ... }@inputs:
    let
      inherit (nixpkgs) lib;
      eachSystem = lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
      ];
      pkgsOf = nixpkgs.legacyPackages;
      folders = path: lib.attrNames (lib.filterAttrs (_: type: type == "directory") (builtins.readDir path));
      # The programs of the inputs, each under its input's name.
      tools =
        system:
        lib.genAttrs [
          "disko"
          "extra-container"
          "nix-inspect"
          "nixos-anywhere"
          "nixos-facter"
        ] (name: inputs.${name}.packages.${system}.default);
      # The container templates that are NixOS systems take nixpkgs: `leafctl container create NAME --flake URL#container-nats`
      containers =
        system:
        lib.mapAttrs' (name: template: lib.nameValuePair "container-${name}" (template { inherit nixpkgs system; })) (
          lib.filterAttrs (_: template: (lib.functionArgs template) ? nixpkgs) (
            lib.genAttrs (folders ./containers) (name: import (./containers + "/${name}"))
          )
        );
    in
    {
      packages = eachSystem (
        system:
        rec {
          default = cim-leaf;
          cim-leaf = pkgsOf.${system}.callPackage ./crates/package.nix { };
          inherit (cim-leaf) leaf-init leaf-helper;
        }
        // containers system
      );

      overlays.default = final: _: { cim-leaf = final.callPackage ./crates/package.nix { }; };

      # In a checkout: `nix run .#demo`
      apps = eachSystem (system: {
        demo = {
          type = "app";
          program = lib.getExe (pkgsOf.${system}.callPackage ./crates/xtask/demo.nix { });
        };
      });

      devShells = eachSystem (system: {
        default = pkgsOf.${system}.callPackage ./crates/shell.nix { cim-leaf = self.packages.${system}.default; };
        # What it takes to look after hosts: install them, describe them, try containers, look into configurations.
        operator = pkgsOf.${system}.mkShellNoCC {
          packages = [ self.packages.${system}.default ] ++ lib.attrValues (tools system);
        };
      });

      formatter = eachSystem (system: pkgsOf.${system}.nixfmt-tree);

      checks = eachSystem (
        system:
        import ./tests/nix/checks.nix {
          inherit self system;
          pkgs = pkgsOf.${system};
        }
      );

      nixosModules = lib.genAttrs (folders ./nixos-modules) (name: ./nixos-modules + "/${name}") // {
        default =
          { pkgs, ... }:
          {
            imports = map (name: ./nixos-modules + "/${name}") (folders ./nixos-modules);
            services.cim-leaf.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
          };
      };

      nixosConfigurations = lib.mapAttrs (
        _: host:
        lib.nixosSystem {
          modules = host.modules ++ host.disks ++ [
            self.nixosModules.default
            inputs.disko.nixosModules.disko
            inputs.nix-topology.nixosModules.default
          ];
        }
      ) (import ./hosts);

      # The picture of all hosts: `nix build .#topology.x86_64-linux.config.output`
      topology = eachSystem (
        system:
        import inputs.nix-topology {
          pkgs = pkgsOf.${system}.extend inputs.nix-topology.overlays.default;
          modules = [ { inherit (self) nixosConfigurations; } ];
        }
      );

      # One for each container template: `nix flake new --template PATH#minimal FOLDER`
      templates = lib.genAttrs (folders ./containers) (name: {
        path = ./containers + "/${name}";
        description = "The container template ${name} of cim-leaf";
      });
    };
}
