# The systems, by name. Everything that comes from outside comes by an environment variable, set by ../src/nixos.rs:
#
# NIXPKGS   a tree with nixpkgs' nixos/ and lib/
# DEBIAN    the store path of a Debian tree, KERNEL that of its kernel's modules
# CHECKOUT  this checkout, for its NixOS modules
# PROGRAMS  a directory with bin/ and share/ of cim-leaf; NATS_SERVER the program nats-server
# NIXOS_CONTAINER  the source of the program nixos-container, or nothing
let
  path = name: /. + builtins.getEnv name;
  nixpkgs = path "NIXPKGS";
  lib = import (nixpkgs + "/lib");
  nixosContainer = builtins.getEnv "NIXOS_CONTAINER";

  pkgs = import ./packages.nix {
    inherit lib nixpkgs;
    tree = builtins.storePath (builtins.getEnv "DEBIAN");
    kernelModules = builtins.storePath (builtins.getEnv "KERNEL");
    programs = path "PROGRAMS";
    natsServer = path "NATS_SERVER";
    nixosContainer = if nixosContainer == "" then null else /. + nixosContainer;
  };

  nixos =
    modules:
    (import (nixpkgs + "/nixos/lib/eval-config.nix") {
      inherit lib;
      system = null;
      modules = [
        ./debian.nix
        {
          _module.args.pkgs = lib.mkForce pkgs;
          nixpkgs.hostPlatform = "x86_64-linux";
        }
      ]
      ++ modules;
    }).config.system.build.toplevel;

  container =
    options:
    nixos [ (import ./container.nix ({ module = path "CHECKOUT" + "/nixos-modules/container"; } // options)) ];
  containers = {
    # Two that differ in one service, and one that neither starts nor can be switched to.
    hello = container { };
    goodbye = container { word = "goodbye"; };
    broken = container { broken = true; };
    # With all that a NixOS does at its start: with our module, and as NixOS comes.
    whole = container { whole = true; };
    stock = container {
      whole = true;
      stock = true;
    };
    stock-goodbye = container {
      whole = true;
      stock = true;
      word = "goodbye";
    };
    stock-faulty = container {
      whole = true;
      stock = true;
      faulty = true;
    };
  };

  host =
    module:
    nixos [
      ./host.nix
      (path "CHECKOUT" + "/nixos-modules/leaf")
      {
        containers.declared = {
          path = containers.goodbye;
          autoStart = false;
          timeoutStartSec = "900s";
        };
      }
      module
    ];
  leaf.services.cim-leaf = {
    enable = true;
    nats.embedded.enable = true;
    containers.enable = true;
    # A start of NixOS in an emulated machine, beside other work.
    containers.readyTimeoutSeconds = 900;
    # A test has a stock NixOS with them.
    containers.hostUsers = true;
    # Its package set is not nixpkgs.
    nix.nixpkgs = null;
    # A test writes the key of a person, who may switch it.
    system.switch = true;
    trust.allowedSignersFile = "/var/lib/test-signers";
    trust.callers.admin = [
      "runs-code"
      "cuts-off"
    ];
  };
  service = name: attrs: {
    systemd.services.${name} = {
      wantedBy = [ "multi-user.target" ];
    }
    // attrs;
  };
in
{
  inherit containers;
  hosts = {
    leaf = host leaf;
    # The same with programs in another store path, and a firewall that flushes all rules.
    next = host {
      imports = [ leaf ];
      services.cim-leaf.package = pkgs.cim-leaf-next;
      networking.nftables = {
        enable = true;
        flushRuleset = true;
        checkRuleset = false;
      };
    };
    # The same without our modules' services.
    without = host { };

    # Ones that a switch leads to: one that is well, and others that are not.
    well = host {
      imports = [
        leaf
        (service "speaker" { serviceConfig.ExecStart = "${pkgs.coreutils}/bin/sleep infinity"; })
      ];
    };
    # Its one new unit fails.
    failing = host {
      imports = [
        leaf
        (service "failing" {
          serviceConfig.Type = "oneshot";
          serviceConfig.ExecStart = "${pkgs.coreutils}/bin/false";
        })
      ];
    };
    # Nobody reaches its NATS server.
    closed = host {
      imports = [
        leaf
        (service "closed" {
          serviceConfig = {
            Type = "oneshot";
            RemainAfterExit = true;
            ExecStart = "${pkgs.nftables}/bin/nft -f ${pkgs.writeText "closed" ''
              table inet closed {
                chain output {
                  type filter hook output priority 0
                  tcp dport 4222 reject with tcp reset
                }
              }
            ''}";
            ExecStop = "${pkgs.nftables}/bin/nft delete table inet closed";
          };
        })
      ];
    };
    # Its leafd becomes ready, and ends soon after that.
    crashing = host {
      imports = [ leaf ];
      systemd.services.leafd.serviceConfig.ExecStartPost = "+${pkgs.writeShellScript "crashing" ''
        ${pkgs.coreutils}/bin/sleep 2
        kill -KILL $MAINPID
      ''}";
    };
  };
}
