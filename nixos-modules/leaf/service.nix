# The settings files, users and units that the options result in.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.cim-leaf;
  withContainers = cfg.containers.enable;

  # The unit files that the test host and other distributions use as well.
  units = import ./units.nix { inherit (cfg) package; };
  leafd = units.options ./units/leafd.service;

  # Both ends of the containers' links, by name.
  links = [
    "ve-*"
    "vp-*"
  ];
  networkFile = ./units/systemd/network/10-cim-leaf.network;

  helperToml = import ./toml.nix (
    import ./helper.nix cfg {
      systemd = config.systemd.package;
      inherit (pkgs) nftables;
      git = pkgs.gitMinimal;
    }
  );

  settingsFile = import ../settings-file.nix pkgs {
    name = "leafd.toml";
    program = "${cfg.package}/bin/leafd";
    settings = import ./settings.nix cfg;
  };

  # Whether the host's firewall flushes all nftables rules.
  flushes =
    withContainers && config.networking.nftables.enable && config.networking.nftables.flushRuleset;
  network = change: [ "-${cfg.package}/bin/leaf-helper network ${change}" ];

  # The server of nixos-modules/nats, where that is imported: containers reach it on the leaf's address.
  server = config.services.cim-nats or { enable = false; };
  natsPort =
    if cfg.nats.embedded.enable then
      cfg.nats.embedded.port
    else if server.enable && server.role == "leaf" && server.addressOnLo && server.tls.certFile == null then
      server.port
    else
      cfg.nats.containersPort;
in
{
  config = lib.mkIf cfg.enable {
    services.cim-leaf.settingsFile = settingsFile;

    environment.systemPackages = [ cfg.package ];
    environment.etc = {
      "cim-leaf/leafd.toml".source = cfg.settingsFile;
      # Only root can write it, as all of /etc: it limits what leafd may ask the helper for.
      "cim-leaf/helper.toml".text = helperToml;
      # What a switch to this system has to know of its leaf before.
      "cim-leaf/system.json".text = builtins.toJSON (import ./system.nix cfg);
    }
    // lib.optionalAttrs withContainers {
      "systemd/network/10-cim-leaf.network".source = networkFile;
    };

    # The same users as in units/sysusers.conf.
    users.users = {
      leafd = {
        isSystemUser = true;
        group = "leafd";
        home = cfg.stateDir;
        description = "Leaf daemon";
      };
      leaf-job = {
        isSystemUser = true;
        group = "leaf-job";
        home = "/var/lib/cim-leaf-jobs";
        description = "Nix jobs of a leaf";
      };
    };
    users.groups = {
      leafd.members = cfg.operators;
      leaf-job = { };
    };

    systemd.tmpfiles.rules =
      units.lines ./units/tmpfiles.conf
      ++ lib.optional (cfg.stateDir != "/var/lib/cim-leaf") "d ${cfg.stateDir} 0700 leafd leafd -";

    # The program nixos-container, the slice of containers and their template unit: off by default since NixOS 25.11, and
    # set to false by nixpkgs' profile `minimal`, with the priority of a default.
    boot.enableContainers = lib.mkIf withContainers (lib.mkOverride 900 true);

    # Both ends of the containers' links are configured by leaf-helper alone; for systemd-networkd see the file above.
    networking.dhcpcd.denyInterfaces = lib.mkIf withContainers links;
    networking.networkmanager.unmanaged = lib.mkIf withContainers (map (link: "interface-name:${link}") links);

    # leaf-helper's nftables rules let containers reach only the leaf's NATS server, or the relay to it; the host's firewall
    # must not drop that.
    networking.firewall.interfaces = lib.mkIf withContainers {
      ${if config.networking.nftables.enable then "ve-*" else "ve-+"}.allowedTCPPorts = [ natsPort ];
    };

    # Recreates the containers' units at boot.
    systemd.generators = lib.mkIf withContainers {
      cim-leaf = "${cfg.package}/bin/cim-leaf-generator";
    };

    # A flush of all rules removes those of the containers' closed network as well. So the containers are cut off before it,
    # and connected again once their rules are set.
    systemd.services.nftables = lib.mkIf flushes {
      serviceConfig = {
        ExecStartPre = lib.mkBefore (network "close");
        ExecStartPost = lib.mkAfter (network "open");
        ExecReload = lib.mkMerge [
          (lib.mkBefore (network "close" ++ [ "-${config.systemd.package}/bin/systemctl start --no-block leaf-network-open" ]))
          (lib.mkAfter (network "open"))
        ];
        ExecStop = lib.mkBefore (network "close");
        ExecStopPost = lib.mkAfter (network "open");
      };
    };

    # A reload ends at its first command that fails, and nothing is run after it. This one waits until the reload has ended,
    # in whatever way.
    systemd.services.leaf-network-open = lib.mkIf flushes {
      description = "Open the network of containers after a reload of nftables";
      after = [ "nftables.service" ];
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${cfg.package}/bin/leaf-helper network open";
      };
    };

    systemd.services.systemd-networkd = lib.mkIf (withContainers && config.systemd.network.enable) {
      reloadTriggers = [ networkFile ];
    };

    systemd.sockets.leaf-helper = units.options ./units/leaf-helper.socket;

    systemd.services.leaf-helper = units.options ./units/leaf-helper.service // {
      # A switch to another system restarts the helper in one step, and does not stop it before the new units are
      # loaded.
      stopIfChanged = false;
      # It reads its settings at its start only.
      restartTriggers = [ helperToml ];
      path = [
        config.systemd.package
        pkgs.nftables
      ];
    };

    # It runs while a change is open, and is started with its new program when that is decided.
    systemd.services.leaf-change = units.options ./units/leaf-change.service // {
      restartIfChanged = false;
    };

    systemd.services.leaf-change-witness =
      let
        witness = units.options ./units/leaf-change-witness.service;
      in
      witness
      // {
        serviceConfig = witness.serviceConfig // {
          ExecStart = "${cfg.package}/bin/leafd witness --config ${cfg.settingsFile}";
          LoadCredential = import ../load-credentials.nix { "hub.creds" = cfg.nats.embedded.hub.credentialsFile; };
        };
      };

    # systemd asks here for the secrets of units: LoadCredential=NAME:/run/cim-leaf/secrets.sock.
    systemd.sockets.leaf-secrets = units.options ./units/leaf-secrets.socket;
    systemd.services."leaf-secrets@" = units.options (./units + "/leaf-secrets@.service");

    systemd.services.leafd = leafd // {
      description = "Leaf ${cfg.name} of a Composable Information Machine";
      path = [
        cfg.nix.package
        pkgs.gitMinimal # Nix uses it to fetch flakes
      ];

      # As StateDirectory= does it for the default directory.
      unitConfig =
        leafd.unitConfig
        // lib.optionalAttrs (cfg.stateDir != "/var/lib/cim-leaf") {
          RequiresMountsFor = lib.toList leafd.unitConfig.RequiresMountsFor ++ [ cfg.stateDir ];
        };

      serviceConfig =
        leafd.serviceConfig
        // {
          ExecStart = "${cfg.package}/bin/leafd run --config ${cfg.settingsFile}";
          LoadCredential = import ../load-credentials.nix {
            "nats.creds" = cfg.nats.credentialsFile;
            "nats-streams.creds" = cfg.nats.streamCredentialsFile;
            "nats-containers.seed" = cfg.nats.containerSigningKeyFile;
            "nats.pem" = cfg.nats.certFile;
            "nats.key" = cfg.nats.keyFile;
            "hub.creds" = cfg.nats.embedded.hub.credentialsFile;
          };
        }
        // lib.optionalAttrs (cfg.stateDir != "/var/lib/cim-leaf") {
          ReadWritePaths = lib.toList leafd.serviceConfig.ReadWritePaths ++ [ cfg.stateDir ];
        };
    };
  };
}
