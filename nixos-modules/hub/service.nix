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

  # The build of the system checks the file with the agent, so that an invalid setting never reaches a host. A cross build
  # can't run it.
  settingsFile = pkgs.runCommand "leaf-hub.toml" {
    toml = import ../leaf/toml.nix (import ./settings.nix cfg);
    passAsFile = [ "toml" ];
  } ''
    cp "$tomlPath" $out
    ${lib.optionalString (
      pkgs.stdenv.buildPlatform.canExecute or (_: true) pkgs.stdenv.hostPlatform
    ) "${cfg.package}/bin/leaf-hub check-config $out"}
  '';

  credentials = lib.filterAttrs (_: file: file != null) {
    "fleet.creds" = cfg.nats.fleetCredentialsFile;
    "links.creds" = cfg.nats.linksCredentialsFile;
    "nats.pem" = cfg.nats.certFile;
    "nats.key" = cfg.nats.keyFile;
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

      serviceConfig = {
        Type = "notify";
        ExecStart = "${cfg.package}/bin/leaf-hub run --config ${cfg.settingsFile}";
        Restart = "on-failure";
        RestartSec = 2;
        WatchdogSec = 30;
        TimeoutStartSec = 120;
        LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") credentials;

        # It has no files of its own: what it knows is in the hub's streams.
        DynamicUser = true;
        CapabilityBoundingSet = "";
        AmbientCapabilities = "";
        NoNewPrivileges = true;
        DevicePolicy = "closed";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        PrivateDevices = true;
        PrivateTmp = true;
        PrivateUsers = true;
        ProcSubset = "pid";
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RemoveIPC = true;
        # NATS, and systemd's notifications.
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SocketBindDeny = "any";
        SystemCallArchitectures = "native";
        SystemCallFilter = [
          "@system-service"
          "~@privileged @resources"
        ];
        UMask = "0077";
      };
    };
  };
}
