# Evaluates the NATS server's module and the container that runs it with the real NixOS modules, up to the text of the
# unit:
#
#   NIXPKGS=<tree> nix-instantiate --eval --strict --json tests/nix/eval-nats.nix
#
# The tree is that of eval-host.nix. Prints `{"passed":N,"units":{…}}`; a failed expectation fails the command.
let
  evaluation = import ./evaluation.nix {
    modules = [
      ../../nixos-modules/leaf
      ../../nixos-modules/nats
      {
        system.stateVersion = "25.05";
        boot.loader.grub.enable = false;
        networking.hostName = "Edge-1";
      }
    ];
  };
  inherit (evaluation)
    nixpkgs
    lib
    system
    stubs
    ;
  inherit (lib) hasInfix;
  evaluate = module: evaluation.evaluate [ module ];
  refused = evaluation.refused "/nixos-modules/";
  plain = builtins.unsafeDiscardStringContext;
  values = import ./nats/values.nix;

  operator = {
    inherit (values.operator) systemAccount accounts;
    jwtFile = ./nats/operator.jwt;
  };
  least = {
    services.cim-nats = {
      enable = true;
      inherit operator;
    };
  };

  # A leaf whose daemon uses the server beside it, which is connected to a hub.
  withLeaf = {
    services.cim-nats = {
      enable = true;
      inherit operator;
      remotes.hub = {
        urls = [ "tls://hub.example:7422" ];
        account = operator.systemAccount;
        credentialsFile = "/run/keys/hub.creds";
        tls.certFile = "/run/keys/leaf.pem";
        tls.keyFile = "/run/keys/leaf.key";
      };
    };
    services.cim-leaf = {
      enable = true;
      nats.credentialsFile = "/run/keys/leafd.creds";
    };
  };
  leaf = evaluate withLeaf;
  hub = evaluate {
    services.cim-nats = {
      enable = true;
      role = "hub";
      address = "192.0.2.1";
      firewallInterfaces = [ "eth0" ];
      dataDir = "/persist/nats";
      operator = operator // {
        resolver = "full";
      };
      tls.certFile = "/run/keys/nats.pem";
      tls.keyFile = "/run/keys/nats.key";
    };
  };
  wrong = evaluate {
    services.nats.enable = true;
    systemd.services.nats = lib.mkForce { };
    services.cim-nats = {
      enable = true;
      address = "0.0.0.0";
    };
    services.cim-leaf = {
      enable = true;
      nats.embedded.enable = true;
    };
  };
  container = import ../../containers/nats {
    inherit nixpkgs system;
    whole = true;
    name = "queue";
    maxFileStoreBytes = 1073741824;
    modules = [ stubs ];
  };

  of =
    host:
    let
      file = host.config.services.cim-nats.settingsFile;
    in
    evaluation.accepted "/nixos-modules/" host {
      unit = plain host.config.systemd.units."nats.service".text;
      settings = plain file.env.text;
      checked = plain file.env.checked;
      check = plain file.text;
    };
  units = {
    leaf = of leaf;
    hub = of hub;
    container = of container;
  };

  # The values on a host that sets only the required options. Paths of files and packages differ between machines.
  defaults = removeAttrs (evaluate least).config.services.cim-nats [ "settingsFile" ];
  known = lib.mapAttrsRecursiveCond (set: !lib.isDerivation set) (
    _: value: if lib.isDerivation value || lib.isPath value then "a path" else value
  );

  has = name: line: {
    name = "the unit of the ${name} has the line ${line}";
    holds = hasInfix "\n${line}\n" units.${name}.unit;
  };
  expectations =
    lib.concatMap
      (name: [
        (has name "User=nats")
        (has name "CapabilityBoundingSet=")
        (has name "NoNewPrivileges=true")
        (has name "ProtectSystem=strict")
        (has name "SystemCallFilter=@system-service")
        (has name "RestrictAddressFamilies=AF_INET")
        (has name "StartLimitIntervalSec=0")
        (has name "SocketBindDeny=any")
        (has name "SocketBindAllow=tcp:4222")
        {
          name = "nats-server checks the configuration of the ${name} while the system is built";
          holds = hasInfix "/bin/nats-server -t -c \"$checkedPath\"" units.${name}.check;
        }
        {
          name = "no path of a secret stands in the configuration of the ${name}";
          holds = !hasInfix "/run/keys" units.${name}.settings;
        }
      ])
      [
        "leaf"
        "hub"
        "container"
      ]
    ++ [
      (has "leaf" "LoadCredential=hub.creds:/run/keys/hub.creds")
      (has "leaf" "LoadCredential=hub.key:/run/keys/leaf.key")
      (has "leaf" "StateDirectory=nats")
      (has "hub" "KillSignal=SIGUSR2")
      (has "hub" "SocketBindAllow=tcp:7422")
      (has "hub" "ReadWritePaths=/persist/nats")
      (has "hub" "LoadCredential=tls.key:/run/keys/nats.key")
      (has "container" "LoadCredential=operator.jwt:nats.operator.jwt")
      (has "container" "LoadCredential=accounts.conf:nats.accounts.conf")
      {
        name = "only the leaf's unit adds its address to lo before the server starts";
        holds =
          hasInfix "/bin/ip address replace 10.233.0.1/32 dev lo\n" units.leaf.unit
          && !hasInfix "ExecStartPre" units.hub.unit
          && !hasInfix "ExecStartPre" units.container.unit;
      }
      {
        name = "containers on a leaf that uses the server are refused";
        holds =
          map (message: hasInfix "cim-leaf.containers.enable" message) (
            refused (evaluate {
              imports = [ withLeaf ];
              services.cim-leaf.containers.enable = true;
            })
          ) == [ true ];
      }
      {
        name = "the leaf's daemon uses the server's address and domain";
        holds =
          let
            settings = builtins.fromTOML (plain leaf.config.services.cim-leaf.settingsFile.env.toml);
          in
          settings.nats.url == "nats://10.233.0.1:4222"
          && settings.nats.jetstream_domain == "edge-1"
          && settings.nats.credentials == "/run/credentials/leafd.service/nats.creds";
      }
      {
        name = "the leaf's daemon starts after the server, and without it as well";
        holds =
          let
            unit = leaf.config.systemd.services.leafd;
          in
          lib.elem "nats.service" unit.after && lib.elem "nats.service" unit.wants && !(lib.elem "nats.service" unit.requires);
      }
      {
        name = "the firewall opens the leaf's port only to containers' veths";
        holds =
          leaf.config.networking.firewall.interfaces."ve-+".allowedTCPPorts == [ 4222 ]
          && leaf.config.networking.firewall.allowedTCPPorts == [ ];
      }
      {
        name = "the firewall opens the hub's ports to leaves and clients on the given interface";
        holds =
          hub.config.networking.firewall.interfaces.eth0.allowedTCPPorts == [
            4222
            7422
          ];
      }
      {
        name = "the defaults are those of the unit tests";
        holds = known defaults == known (values // { operator = values.operator // { jwtFile = ./.; }; package = ./.; });
      }
      {
        name = "a leaf's server without an operator, on all addresses, beside two others, is refused";
        holds = lib.all (part: lib.any (hasInfix part) (refused wrong)) [
          "cim-nats.operator.jwtFile"
          "cim-nats.address"
          "cim-nats.enable: this server replaces"
          "cim-nats.enable: NixOS's own"
        ];
      }
      {
        name = "the container is a NixOS container with its server's name and the limits of the template's arguments";
        holds =
          container.config.boot.isContainer
          && container.config.networking.hostName == "queue"
          && hasInfix ''"domain":"queue","max_file_store":1073741824'' units.container.settings
          && hasInfix ''"sync_interval":"always"'' units.container.settings;
      }
      {
        name = "the container sets no kernel setting and mounts no file system that a user namespace does not permit";
        holds =
          container.config.boot.kernel.sysctl."net.ipv4.ping_group_range" == null
          && lib.attrNames container.config.boot.specialFileSystems == [ "/run/keys" ];
      }
      {
        name = "the container's server includes its accounts and uses TLS for clients and leaves";
        holds =
          hasInfix "../run/credentials/nats.service/accounts.conf\"\n" units.container.settings
          && lib.length (lib.splitString "/run/credentials/nats.service/tls.pem" units.container.settings) == 3;
      }
      {
        name = "the build's check does not use files that exist only on the host";
        holds =
          !hasInfix "include" units.container.checked
          && !hasInfix "operator" units.container.checked
          && !hasInfix "/run/credentials" units.container.checked
          && hasInfix "operator: " units.leaf.checked;
      }
      (evaluation.documented { inherit (leaf.options.services) cim-nats; })
    ];
in
evaluation.report expectations { inherit units; }
