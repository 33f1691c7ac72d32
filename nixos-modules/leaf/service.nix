# What the system makes of the options: the settings files, the users, the units.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.cim-leaf;
  withContainers = cfg.containers.enable;

  # One place for all who run a leaf: the files that the test host takes as they are.
  inherit (import ./units.nix { inherit (cfg) package; }) unit lines;
  leafd = unit ./units/leafd.service;
  helper = unit ./units/leaf-helper.service;
  socket = unit ./units/leaf-helper.socket;
  words = lib.splitString " ";
  # What is set once, and what is set several times.
  several = value: lib.toList value;

  toml = import ./toml.nix (import ./settings.nix cfg);
  helperToml = import ./toml.nix (
    import ./helper.nix cfg {
      systemd = config.systemd.package;
      inherit (pkgs) nftables;
      git = pkgs.gitMinimal;
    }
  );

  # The daemon's own checker reads the file while the system is built, so a wrong setting never reaches a host. It can't
  # be run where the system is built on a machine of another kind.
  settingsFile = pkgs.runCommand "leafd.toml" {
    inherit toml;
    passAsFile = [ "toml" ];
  } ''
    cp "$tomlPath" $out
    ${lib.optionalString (
      pkgs.stdenv.buildPlatform.canExecute or (_: true) pkgs.stdenv.hostPlatform
    ) "${cfg.package}/bin/leafd check-config $out"}
  '';

  credentials = lib.filterAttrs (_: file: file != null) {
    "nats.creds" = cfg.nats.credentialsFile;
    "nats-streams.creds" = cfg.nats.streamCredentialsFile;
    "nats.pem" = cfg.nats.certFile;
    "nats.key" = cfg.nats.keyFile;
  };
in
{
  config = lib.mkIf cfg.enable {
    services.cim-leaf.settingsFile = settingsFile;

    environment.systemPackages = [ cfg.package ];
    environment.etc = {
      "cim-leaf/leafd.toml".source = cfg.settingsFile;
      # Root's alone, as all of /etc: what leafd may ask for is bounded here.
      "cim-leaf/helper.toml".text = helperToml;
    }
    // lib.optionalAttrs withContainers {
      "systemd/network/10-cim-leaf.network".source = ./units/systemd/network/10-cim-leaf.network;
    };

    # As units/sysusers.conf has them.
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
      leafd = { };
      leaf-job = { };
    };

    systemd.tmpfiles.rules =
      lines ./units/tmpfiles.conf
      ++ lib.optional (cfg.stateDir != "/var/lib/cim-leaf") "d ${cfg.stateDir} 0700 leafd leafd -";

    # From a container's veth, the leaf's own server is the only thing that answers; leaf-helper's own rules say so, and
    # the host's firewall must not be stricter.
    networking.firewall.interfaces = lib.mkIf (withContainers && cfg.nats.embedded.enable) {
      ${if config.networking.nftables.enable then "ve-*" else "ve-+"}.allowedTCPPorts = [ cfg.nats.embedded.port ];
    };

    # After a boot it makes the units of the containers that the helper knows.
    systemd.generators = lib.mkIf withContainers {
      cim-leaf = "${cfg.package}/bin/cim-leaf-generator";
    };

    systemd.sockets.leaf-helper = {
      description = socket.Unit.Description;
      wantedBy = words socket.Install.WantedBy;
      socketConfig = socket.Socket;
    };

    systemd.services.leaf-helper = {
      description = helper.Unit.Description;
      requires = words helper.Unit.Requires;
      after = words helper.Unit.After;
      # Containers and operations outlive a change of the system; the next call starts the new one.
      stopIfChanged = false;
      path = [
        config.systemd.package
        pkgs.nftables
      ];
      serviceConfig = helper.Service;
    };

    systemd.services.leafd = {
      description = "Leaf ${cfg.name} of a Composable Information Machine";
      wantedBy = words leafd.Install.WantedBy;
      wants = words leafd.Unit.Wants;
      after = words leafd.Unit.After;
      path = [
        cfg.nix.package
        pkgs.gitMinimal # Nix fetches flakes with it
      ];

      serviceConfig =
        leafd.Service
        // {
          ExecStart = "${cfg.package}/bin/leafd run --config ${cfg.settingsFile}";
          LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") credentials;
        }
        // lib.optionalAttrs (cfg.stateDir != "/var/lib/cim-leaf") {
          ReadWritePaths = several leafd.Service.ReadWritePaths ++ [ cfg.stateDir ];
        };
    };
  };
}
