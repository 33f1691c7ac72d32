# The settings file and the unit that the options result in.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.cim-hub;
  server = config.services.cim-nats or { enable = false; };
  besideServer = server.enable && server.role == "hub";

  settingsFile = import ../settings-file.nix pkgs {
    name = "leaf-hub.toml";
    program = "${cfg.package}/bin/leaf-hub";
    settings = import ./settings.nix cfg;
  };
in
{
  config = lib.mkIf cfg.enable {
    services.cim-hub.settingsFile = settingsFile;

    environment.systemPackages = [ cfg.package ];
    # For `leaf-hub status` and `leaf-hub reset` as root, who can read the unit's credentials while the agent runs.
    environment.etc."cim-hub/leaf-hub.toml".source = cfg.settingsFile;

    systemd.services.leaf-hub = {
      description = "Agent of a hub of a Composable Information Machine";
      wantedBy = [ "multi-user.target" ];
      # It waits for the server, so it wants the unit and does not require it.
      wants = lib.optional besideServer "nats.service";
      after = [ "network.target" ] ++ lib.optional besideServer "nats.service";
      # systemd restarts it however often it fails, as leafd.
      startLimitIntervalSec = 0;

      serviceConfig = import ../hardening.nix // {
        Type = "notify";
        ExecStart = "${cfg.package}/bin/leaf-hub run --config ${cfg.settingsFile}";
        Restart = "on-failure";
        RestartSec = 2;
        WatchdogSec = 30;
        TimeoutStartSec = 120;
        LoadCredential = import ../load-credentials.nix {
          "fleet.creds" = cfg.nats.fleetCredentialsFile;
          "links.creds" = cfg.nats.linksCredentialsFile;
          "nats.pem" = cfg.nats.certFile;
          "nats.key" = cfg.nats.keyFile;
          "witness.key" = cfg.witnessKeyFile;
        };

        # It has no files of its own: what it knows is in the hub's streams.
        DynamicUser = true;
        # NATS, and systemd's notifications.
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        SystemCallFilter = [
          "@system-service"
          "~@privileged @resources"
        ];
      };
    };
  };
}
