# What the system makes of the options: the configuration, the user, the unit.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.cim-nats;
  inherit (import ./paths.nix) inStore;
  program = "${cfg.package}/bin/nats-server";
  render = import ./render.nix;
  settings = import ./settings.nix;

  credentials = import ./credentials.nix cfg;

  # nats-server's own checker reads the configuration while the system is built. What only the host has is not there then:
  # a certificate made for the purpose stands for each, and what the operator's JWT says is left out where that is one.
  # It can't be run where the system is built on a machine of another kind.
  onlyOnHost =
    lib.optionals (cfg.operator.jwtFile != null && !inStore cfg.operator.jwtFile) [
      "operator"
      "system_account"
      "resolver"
      "resolver_preload"
    ]
    ++ lib.optional (cfg.operator.accountsFile != null) "include";
  settingsFile = pkgs.runCommand "nats.conf" {
    text = render (settings { folder = "/run/credentials/nats.service"; } cfg);
    checked = render (removeAttrs (settings { folder = "credentials"; } cfg) onlyOnHost);
    passAsFile = [
      "text"
      "checked"
    ];
    nativeBuildInputs = [ pkgs.openssl ];
  } ''
    cp "$textPath" $out
    ${lib.optionalString (pkgs.stdenv.buildPlatform.canExecute or (_: true) pkgs.stdenv.hostPlatform) ''
      mkdir credentials
      for pair in ${lib.concatMapStringsSep " " (lib.removeSuffix ".pem") (lib.filter (lib.hasSuffix ".pem") (lib.attrNames credentials))}; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=check \
          -keyout "credentials/$pair.key" -out "credentials/$pair.pem"
      done
      ${program} -t -c "$checkedPath"
    ''}
  '';

  ports = [ cfg.port ] ++ lib.optional cfg.leafnodes.enable cfg.leafnodes.port;
  allPorts = ports ++ lib.optional (cfg.monitoring.port != null) cfg.monitoring.port;
  ownFolder = cfg.dataDir == "/var/lib/nats";
  prefix = if lib.hasInfix ":" cfg.address then "128" else "32";
in
{
  config = lib.mkIf cfg.enable {
    services.cim-nats.settingsFile = settingsFile;

    environment.etc."cim-leaf/nats.conf".source = cfg.settingsFile;

    users.users.nats = {
      isSystemUser = true;
      group = "nats";
      home = cfg.dataDir;
      description = "NATS server";
    };
    users.groups.nats = { };

    systemd.tmpfiles.rules = lib.optional (!ownFolder) "d ${cfg.dataDir} 0700 nats nats -";

    networking.firewall.interfaces = lib.genAttrs cfg.firewallInterfaces (_: {
      allowedTCPPorts = ports;
    });

    systemd.services.nats = {
      description = "NATS server ${cfg.serverName} (${cfg.role})";
      wantedBy = [ "multi-user.target" ];
      # It works while the network is gone, so it waits for none.
      after = [ "network.target" ];

      serviceConfig =
        {
          # `+`: with all rights, which the server has none of.
          ExecStartPre = lib.optional cfg.addressOnLo "+${pkgs.iproute2}/bin/ip address replace ${cfg.address}/${prefix} dev lo";
          ExecStart = "${program} -c ${cfg.settingsFile}";
          ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
          # A hub asks its leaves and clients to go elsewhere first; a leaf's have nowhere to go.
          KillSignal = if cfg.role == "hub" then "SIGUSR2" else "SIGINT";
          TimeoutStopSec = if cfg.role == "hub" then 150 else 30;
          Restart = "always";
          RestartSec = 1;

          User = "nats";
          Group = "nats";
          LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") credentials;

          # two for each stream, one for each connection
          LimitNOFILE = 65536;

          CapabilityBoundingSet = "";
          AmbientCapabilities = "";
          NoNewPrivileges = true;
          DevicePolicy = "closed";
          LockPersonality = true;
          MemoryDenyWriteExecute = true;
          PrivateDevices = true;
          PrivateMounts = true;
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
          RestrictAddressFamilies = [
            "AF_INET"
            "AF_INET6"
          ];
          RestrictNamespaces = true;
          RestrictRealtime = true;
          RestrictSUIDSGID = true;
          SocketBindDeny = "any";
          SocketBindAllow = map (port: "tcp:${toString port}") allPorts;
          SystemCallArchitectures = "native";
          SystemCallFilter = [
            "@system-service"
            "~@privileged"
          ];
          UMask = "0077";
        }
        // (
          if ownFolder then
            {
              StateDirectory = "nats";
              StateDirectoryMode = "0700";
            }
          else
            { ReadWritePaths = [ cfg.dataDir ]; }
        );
    };
  };
}
