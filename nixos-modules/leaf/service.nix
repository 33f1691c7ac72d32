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
  inherit (import ./units.nix { inherit (cfg) package; }) unit lines;
  leafd = unit ./units/leafd.service;
  helper = unit ./units/leaf-helper.service;
  socket = unit ./units/leaf-helper.socket;
  words = lib.splitString " ";
  # The value of a key that is set once, or the list of those of one that is set several times, as a list.
  several = value: lib.toList value;

  toml = import ./toml.nix (import ./settings.nix cfg);
  helperToml = import ./toml.nix (
    import ./helper.nix cfg {
      systemd = config.systemd.package;
      inherit (pkgs) nftables;
      git = pkgs.gitMinimal;
    }
  );

  # The build of the system checks the file with the daemon, so that an invalid setting never reaches a host. A cross
  # build can't run the daemon.
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
      # Only root can write it, as all of /etc: it limits what leafd may ask the helper for.
      "cim-leaf/helper.toml".text = helperToml;
    }
    // lib.optionalAttrs withContainers {
      "systemd/network/10-cim-leaf.network".source = ./units/systemd/network/10-cim-leaf.network;
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
      leafd = { };
      leaf-job = { };
    };

    systemd.tmpfiles.rules =
      lines ./units/tmpfiles.conf
      ++ lib.optional (cfg.stateDir != "/var/lib/cim-leaf") "d ${cfg.stateDir} 0700 leafd leafd -";

    # leaf-helper's nftables rules let containers reach only the leaf's NATS server; the host's firewall must not drop
    # that.
    networking.firewall.interfaces = lib.mkIf (withContainers && cfg.nats.embedded.enable) {
      ${if config.networking.nftables.enable then "ve-*" else "ve-+"}.allowedTCPPorts = [ cfg.nats.embedded.port ];
    };

    # Recreates the containers' units at boot.
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
      # A switch to another system restarts the helper in one step, and does not stop it before the new units are
      # loaded.
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
        pkgs.gitMinimal # Nix uses it to fetch flakes
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
