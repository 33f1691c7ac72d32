# A table of hosts' configurations, evaluated with the real NixOS modules: each works, or is refused by an assertion that
# says what to set.
#
#   NIXPKGS=<tree> nix-instantiate --eval --strict --json tests/nix/eval-cases.nix
#
# The tree is that of eval-host.nix. Prints `{"passed":N}`; a failed expectation fails the command, with its name.
let
  base = {
    system.stateVersion = "25.05";
    boot.loader.grub.enable = false;
    networking.hostName = "edge-1";
  };
  evaluation = import ./evaluation.nix {
    modules = [
      ../../nixos-modules/leaf
      ../../nixos-modules/nats
      ../../nixos-modules/hub
      base
    ];
  };
  inherit (evaluation) lib nixpkgs;
  inherit (lib) hasInfix;

  embedded = {
    services.cim-leaf = {
      enable = true;
      nats.embedded.enable = true;
    };
  };
  leaf = {
    imports = [ embedded ];
    services.cim-leaf.containers.enable = true;
  };
  external = url: {
    services.cim-leaf = {
      enable = true;
      nats = {
        inherit url;
        credentialsFile = "/run/secrets/leafd.creds";
      };
    };
  };
  withKey = {
    services.cim-leaf = {
      containers.enable = true;
      nats.streamCredentialsFile = "/run/secrets/leafd-streams.creds";
      nats.containerSigningKeyFile = "/run/secrets/leafd-containers.seed";
    };
  };
  hub = {
    services.cim-nats = {
      enable = true;
      role = "hub";
      operator = {
        inherit ((import ./nats/values.nix).operator) systemAccount accounts;
        jwtFile = ./nats/operator.jwt;
      };
    };
  };
  agent = {
    services.cim-hub = {
      enable = true;
      nats = {
        fleetCredentialsFile = "/run/keys/hub-fleet.creds";
        linksCredentialsFile = "/run/keys/hub-links.creds";
      };
    };
  };
  tmpfsRoot = {
    fileSystems."/" = {
      device = lib.mkForce "none";
      fsType = "tmpfs";
    };
  };
  persistent = directories: {
    fileSystems = lib.genAttrs directories (directory: {
      device = "/persist${directory}";
      fsType = "none";
      options = [ "bind" ];
    });
  };

  # An empty list where the host works, otherwise a part of each assertion's message.
  case = name: says: modules: { inherit name says modules; };
  cases = [
    (case "a leaf" [ ] [ leaf ])
    (case "Nix for wheel only" [ "add \"leaf-job\"" ] [
      leaf
      { nix.settings.allowed-users = [ "@wheel" ]; }
    ])
    (case "Nix for wheel and the jobs' user" [ ] [
      leaf
      {
        nix.settings.allowed-users = [
          "@wheel"
          "leaf-job"
        ];
      }
    ])
    (case "Nix for a group that the jobs' user is in" [ ] [
      leaf
      {
        nix.settings.allowed-users = [ "@builders" ];
        users.groups.builders.members = [ "leaf-job" ];
      }
    ])
    (case "no Nix" [ "set nix.enable to true" ] [
      leaf
      { nix.enable = false; }
    ])
    (case "an /etc that can't be changed" [ "set system.etc.overlay.mutable to true" ] [
      leaf
      {
        system.etc.overlay = {
          enable = true;
          mutable = false;
        };
      }
    ])
    (case "an /etc that can't be changed, on a leaf without containers" [ ] [
      embedded
      {
        system.etc.overlay = {
          enable = true;
          mutable = false;
        };
      }
    ])
    (case "an /etc that is an overlay" [ ] [
      leaf
      { system.etc.overlay.enable = true; }
    ])
    (case "a state directory below /home" [ "services.cim-leaf.stateDir: \"/home/leaf\"" ] [
      leaf
      { services.cim-leaf.stateDir = "/home/leaf"; }
    ])
    (case "a state directory below /run" [ "services.cim-leaf.stateDir: \"/run/cim-leaf\"" ] [
      leaf
      { services.cim-leaf.stateDir = "/run/cim-leaf"; }
    ])
    (case "a state directory of its own" [ ] [
      leaf
      { services.cim-leaf.stateDir = "/persist/cim-leaf"; }
    ])
    (case "binds from home directories" [ "Use a directory such as /srv/data" ] [
      leaf
      { services.cim-leaf.containers.bindFolders = [ "/home/me/data" ]; }
    ])
    (case "a CA in a home directory" [ "services.cim-leaf.nats.caFile" ] [
      (external "tls://hub.example:4222")
      { services.cim-leaf.nats.caFile = "/root/ca.pem"; }
    ])
    (case "a port below 1024" [ "set one from 1024 on" ] [
      leaf
      { services.cim-leaf.nats.embedded.port = 422; }
    ])
    (case "a server on an address that containers don't reach" [ "the only one that containers reach" ] [
      leaf
      { services.cim-leaf.nats.embedded.address = "127.0.0.1"; }
    ])
    (case "all IPv6 addresses" [ "\"::\" is refused" ] [
      embedded
      { services.cim-leaf.nats.embedded.address = "::"; }
    ])
    (case "a hub without TLS" [ "nats.embedded.hub: a hub needs" ] [
      embedded
      {
        services.cim-leaf.nats.embedded.hub = {
          url = "nats://hub.example:7422";
          credentialsFile = "/run/keys/hub.creds";
        };
      }
    ])
    (case "a hub without credentials" [ "nats.embedded.hub: a hub needs" ] [
      embedded
      { services.cim-leaf.nats.embedded.hub.url = "tls://hub.example:7422"; }
    ])
    (case "a hub with credentials in the store" [ "embedded.hub.credentialsFile" ] [
      embedded
      {
        services.cim-leaf.nats.embedded.hub = {
          url = "tls://hub.example:7422";
          credentialsFile = "/nix/store/00000000000000000000000000000000-hub.creds";
        };
      }
    ])
    (case "a hub" [ ] [
      embedded
      {
        services.cim-leaf.nats.embedded.hub = {
          url = "tls://hub.example:7422, wss://other.example";
          credentialsFile = "/run/keys/hub.creds";
        };
      }
    ])
    (case "a root in memory" [ "a reboot empties /var/lib/cim-leaf, /var/lib/cim-leaf-jobs, /var/lib/cim-leaf-change, /etc/nixos-containers" ] [
      leaf
      tmpfsRoot
    ])
    (case "a root in memory, with the state elsewhere, on a leaf without containers" [ ] [
      embedded
      tmpfsRoot
      (persistent [
        "/persist"
        "/var/lib/cim-leaf-jobs"
        "/var/lib/cim-leaf-change"
      ])
      { services.cim-leaf.stateDir = "/persist/cim-leaf"; }
    ])
    (case "a root in memory, with the state elsewhere, but not the jobs'" [ "a reboot empties /var/lib/cim-leaf-jobs," ] [
      embedded
      tmpfsRoot
      (persistent [ "/persist" ])
      { services.cim-leaf.stateDir = "/persist/cim-leaf"; }
    ])
    (case "a root in memory, with the state elsewhere, but not the containers'" [ "a reboot empties /etc/nixos-containers" ] [
      leaf
      tmpfsRoot
      (persistent [
        "/var/lib/cim-leaf"
        "/var/lib/cim-leaf-jobs"
        "/var/lib/cim-leaf-change"
      ])
    ])
    (case "a root in memory with persistent /var/lib and configurations of containers" [ ] [
      leaf
      tmpfsRoot
      (persistent [
        "/var/lib"
        "/etc/nixos-containers"
      ])
    ])
    (case "a root in memory with the unit of a mount" [ ] [
      embedded
      tmpfsRoot
      {
        systemd.mounts = [
          {
            what = "/persist/lib";
            where = "/var/lib";
            type = "none";
          }
        ];
      }
    ])
    (case "NixOS's own NATS server on the same port" [ "set another port here or in services.nats.port" ] [
      leaf
      { services.nats.enable = true; }
    ])
    (case "NixOS's own NATS server on another port" [ ] [
      leaf
      {
        services.nats.enable = true;
        services.nats.port = 4223;
      }
    ])
    (case "a hub beside the embedded server, on the same port" [ "cim-nats.port: leafd's embedded server" ] [
      embedded
      hub
    ])
    (case "a hub beside the embedded server of a leaf with containers" [ ] [
      leaf
      hub
    ])
    (case "a hub on a port below 1024" [ "cim-nats.port: the server has no privileges" ] [
      hub
      { services.cim-nats.leafnodes.port = 443; }
    ])
    (case "a hub with its agent" [ ] [
      hub
      agent
    ])
    (case "an agent without a hub" [ "cim-hub.nats.url: the agent needs the hub's NATS server" ] [ agent ])
    (case "an agent without credentials"
      [
        "cim-hub.nats.fleetCredentialsFile: the agent needs"
        "cim-hub.nats.linksCredentialsFile: the agent needs"
      ]
      [
        hub
        { services.cim-hub.enable = true; }
      ]
    )
    (case "an agent that reaches its hub in the clear" [ "cim-hub.nats.url: \"nats://hub.example:4222\" leaves" ] [
      agent
      { services.cim-hub.nats.url = "nats://hub.example:4222"; }
    ])
    (case "a hub whose data is in a home directory" [ "cim-nats.dataDir: \"/home/nats\"" ] [
      hub
      { services.cim-nats.dataDir = "/home/nats"; }
    ])
    (case "a hub with a root in memory" [ "cim-nats.dataDir: a reboot empties /var/lib/nats" ] [
      hub
      tmpfsRoot
    ])
    (case "a NATS server elsewhere, in the clear" [ "services.cim-leaf.nats.url: a connection to another host needs TLS" ] [
      (external "nats://hub.example:4222")
    ])
    (case "a NATS server elsewhere, with a password" [ "services.cim-leaf.nats.url: a connection to another host needs TLS" ] [
      (external "tls://me:secret@hub.example:4222")
    ])
    (case "containers with a NATS server elsewhere" [ "services.cim-leaf.containers.enable: " ] [
      (external "tls://hub.example:4222")
      { services.cim-leaf.containers.enable = true; }
    ])
    (case "containers with a NATS server elsewhere and a signing key" [ ] [
      (external "tls://hub.example:4222")
      withKey
    ])
    (case "a relay on the port of services.nats" [ "cim-leaf.nats.containersPort: services.nats listens on port 4222" ] [
      (external "tls://hub.example:4222")
      withKey
      { services.nats.enable = true; }
    ])
    (case "nixpkgs' profile minimal" [ ] [
      leaf
      (nixpkgs + "/nixos/modules/profiles/minimal.nix")
    ])
  ];

  outcome =
    { name, says, modules }:
    let
      host = evaluation.evaluate modules;
      messages = evaluation.refused "/nixos-modules/" host;
      expected =
        lib.length messages == lib.length says && lib.all (part: lib.any (hasInfix part) messages) says;
    in
    {
      name = "${name}: ${if says == [ ] then "works" else "is refused"}, but it says ${builtins.toJSON messages}";
      holds = expected && (says != [ ] || works name host.config);
    };

  # Beyond its assertions, the host's units evaluate.
  works =
    name: config:
    let
      containers = config.services.cim-leaf.enable && config.services.cim-leaf.containers.enable;
      isLeaf = config.services.cim-leaf.enable;
      text = unit: builtins.isString config.systemd.units.${unit}.text;
    in
    (!isLeaf || (text "leafd.service" && text "leaf-helper.service"))
    && (!config.services.cim-hub.enable || text "leaf-hub.service")
    && (
      !containers
      || (
        config.boot.enableContainers
        && config.systemd.services ? "container@"
        && lib.all (link: lib.elem link config.networking.dhcpcd.denyInterfaces) [
          "ve-*"
          "vp-*"
        ]
        && lib.all (link: lib.elem "interface-name:${link}" config.networking.networkmanager.unmanaged) [
          "ve-*"
          "vp-*"
        ]
      )
    );

  own = evaluation.evaluate [
    leaf
    {
      boot.enableContainers = false;
      services.cim-leaf.stateDir = "/persist/cim-leaf";
      networking.useNetworkd = true;
    }
  ];
  unit = name: own.config.systemd.units.${name}.text;
  changed = evaluation.evaluate [
    leaf
    { services.cim-leaf.containers.bindFolders = [ "/srv/data" ]; }
  ];
  triggers =
    host: lib.concatStrings (lib.flatten host.config.systemd.services.leaf-helper.restartTriggers);
  expectations = map outcome cases ++ [
    {
      name = "the host's firewall lets containers reach the relay to a NATS server elsewhere";
      holds =
        let
          relayed = evaluation.evaluate [
            (external "tls://hub.example:4222")
            withKey
            { services.cim-leaf.nats.containersPort = 4333; }
          ];
        in
        relayed.config.networking.firewall.interfaces."ve-+".allowedTCPPorts == [ 4333 ]
        && lib.elem "nats-containers.seed:/run/secrets/leafd-containers.seed" relayed.config.systemd.services.leafd.serviceConfig.LoadCredential;
    }
    (evaluation.documentedAll 10 { inherit (own.options.services) cim-hub; })
    {
      name = "the agent of a hub follows the server, and gets its credentials from systemd as a user of its own";
      holds =
        let
          unit = (evaluation.evaluate [ hub agent ]).config.systemd.units."leaf-hub.service".text;
        in
        lib.all (line: hasInfix "\n${line}\n" unit) [
          "DynamicUser=true"
          "LoadCredential=fleet.creds:/run/keys/hub-fleet.creds"
          "LoadCredential=links.creds:/run/keys/hub-links.creds"
          "Wants=nats.service"
          "CapabilityBoundingSet="
        ];
    }
    {
      name = "a host that sets boot.enableContainers to false keeps that";
      holds = !own.config.boot.enableContainers;
    }
    {
      name = "a state directory of its own is mounted before leafd starts, and leafd may write to it";
      holds =
        hasInfix "\nRequiresMountsFor=/persist/cim-leaf\n" (unit "leafd.service")
        && hasInfix "\nReadWritePaths=/persist/cim-leaf\n" (unit "leafd.service");
    }
    {
      name = "another helper.toml restarts the helper";
      holds =
        hasInfix "X-Restart-Triggers=" (unit "leaf-helper.service")
        && hasInfix "/srv/data" (triggers changed)
        && !hasInfix "/srv/data" (triggers own);
    }
    {
      name = "systemd-networkd loads the file about the containers' links";
      holds = lib.any (file: baseNameOf file == "10-cim-leaf.network") (
        lib.filter builtins.isPath own.config.systemd.services.systemd-networkd.reloadTriggers
      );
    }
    {
      name = "jobs find nixpkgs";
      holds =
        (builtins.fromTOML (builtins.unsafeDiscardStringContext own.config.services.cim-leaf.settingsFile.env.toml))
        .nix.options.nix-path or null == "nixpkgs=${evaluation.path}";
    }
  ];
in
evaluation.report expectations { }
