# The configuration, user and unit that the options result in.
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

  # The build of the system checks the configuration with nats-server. Files that exist only on the host are not
  # available then: temporary certificates replace theirs, and the operator's settings are left out if its JWT is one of
  # them. A cross build can't run nats-server.
  onlyOnHost =
    lib.optionals (cfg.operator.jwtFile != null && !inStore cfg.operator.jwtFile) [
      "operator"
      "system_account"
      "resolver"
      "resolver_preload"
    ]
    ++ lib.optional (cfg.operator.accountsFile != null) "include";
  settingsFile = pkgs.runCommand "nats.conf" {
    text = render (settings { credentialsDirectory = "/run/credentials/nats.service"; } cfg);
    checked = render (removeAttrs (settings { credentialsDirectory = "credentials"; } cfg) onlyOnHost);
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
  ownDirectory = cfg.dataDir == "/var/lib/nats";
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

    systemd.tmpfiles.rules = lib.optional (!ownDirectory) "d ${cfg.dataDir} 0700 nats nats -";

    networking.firewall.interfaces = lib.genAttrs cfg.firewallInterfaces (_: {
      allowedTCPPorts = ports;
    });

    systemd.services.nats = {
      description = "NATS server ${cfg.serverName} (${cfg.role})";
      wantedBy = [ "multi-user.target" ];
      # It works without a network, so it does not wait for network-online.target.
      after = [ "network.target" ];
      # systemd restarts it however often it fails, as leafd.
      startLimitIntervalSec = 0;
      # As StateDirectory= does it for the default directory.
      unitConfig = lib.optionalAttrs (!ownDirectory) { RequiresMountsFor = cfg.dataDir; };

      serviceConfig =
        import ../hardening.nix
        // {
          # `+`: with full privileges, which the server itself does not have.
          ExecStartPre = lib.optional cfg.addressOnLo "+${pkgs.iproute2}/bin/ip address replace ${cfg.address}/${prefix} dev lo";
          ExecStart = "${program} -c ${cfg.settingsFile}";
          ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
          # SIGUSR2 makes a hub's leaves and clients connect to another server first; those of a leaf have no other.
          KillSignal = if cfg.role == "hub" then "SIGUSR2" else "SIGINT";
          TimeoutStopSec = if cfg.role == "hub" then 150 else 30;
          Restart = "always";
          RestartSec = 1;

          User = "nats";
          Group = "nats";
          LoadCredential = import ../load-credentials.nix credentials;

          # Two for each stream, one for each connection.
          LimitNOFILE = 65536;

          PrivateMounts = true;
          RestrictAddressFamilies = [
            "AF_INET"
            "AF_INET6"
          ];
          SocketBindAllow = map (port: "tcp:${toString port}") allPorts;
          SystemCallFilter = [
            "@system-service"
            "~@privileged"
          ];
        }
        // (
          if ownDirectory then
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
