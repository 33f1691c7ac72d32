# Wiring only: each build expression is beside the code that it builds. Hosts, modules, templates and tests are
# discovered from their directories.
{
  description = "NixOS hosts as leaves of a Composable Information Machine, controlled through NATS alone";

  # The inputs' own inputs follow ours, one level deep: older Nix (2.8) looks up an input two levels down in the
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

    # It links with the libraries of Nix 2.24, which later package sets don't have, so it keeps its own nixpkgs.
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
      directories = path: lib.attrNames (lib.filterAttrs (_: type: type == "directory") (builtins.readDir path));
      # The inputs' programs, by the inputs' names.
      tools =
        system:
        lib.genAttrs [
          "disko"
          "extra-container"
          "nix-inspect"
          "nixos-anywhere"
          "nixos-facter"
        ] (name: inputs.${name}.packages.${system}.default);
      # The container templates that are NixOS systems, which need nixpkgs:
      # `leafctl container create NAME --flake URL#container-nats`
      containers =
        system:
        lib.mapAttrs' (name: template: lib.nameValuePair "container-${name}" (template { inherit nixpkgs system; })) (
          lib.filterAttrs (_: template: (lib.functionArgs template) ? nixpkgs) (
            lib.genAttrs (directories ./containers) (name: import (./containers + "/${name}"))
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
          meta.description = "A leaf with an embedded NATS server, and its main features";
        };
      });

      devShells = eachSystem (system: {
        default = pkgsOf.${system}.callPackage ./crates/shell.nix { cim-leaf = self.packages.${system}.default; };
        # Programs for operators: install hosts, report their hardware, run containers, inspect configurations.
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

      # `leaf`, `hub` and `default` bring this flake's package along. `container` is for systems of containers, the others are for
      # hosts.
      nixosModules =
        let
          modules = lib.genAttrs (directories ./nixos-modules) (name: ./nixos-modules + "/${name}");
          package =
            { pkgs, ... }:
            {
              # Imported by both, it is one module.
              key = "cim-leaf#package";
              services.cim-leaf.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
            };
        in
        modules
        // {
          leaf.imports = [
            modules.leaf
            package
          ];
          hub.imports = [
            modules.hub
            (
              { pkgs, ... }:
              {
                services.cim-hub.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.default;
              }
            )
          ];
          default.imports = lib.attrValues (removeAttrs modules [ "container" ]) ++ [ package ];
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

      # The diagram of all hosts: `nix build .#topology.x86_64-linux.config.output`
      topology = eachSystem (
        system:
        import inputs.nix-topology {
          pkgs = pkgsOf.${system}.extend inputs.nix-topology.overlays.default;
          modules = [ { inherit (self) nixosConfigurations; } ];
        }
      );

      # One for each container template: `nix flake new --template PATH#minimal DIRECTORY`
      templates = lib.genAttrs (directories ./containers) (name: {
        path = ./containers + "/${name}";
        description = "The container template ${name} of cim-leaf";
      });
    };
}
