# What the system makes of the options: the settings file, the user, the unit.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.cim-leaf;
  isRoot = cfg.user == "root";
  withContainers = cfg.containers.enable;

  toml = import ./toml.nix (import ./settings.nix cfg);

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

  # Both kinds of unit.
  hardening = {
    ProtectSystem = "strict";
    ProtectHome = true;
    ProtectKernelModules = true;
    PrivateTmp = true;
    UMask = "0077";
  };

  # What leafd is meant to be: a process without rights. True today on a leaf without containers.
  unprivileged = {
    CapabilityBoundingSet = "";
    AmbientCapabilities = "";
    NoNewPrivileges = true;
    DevicePolicy = "closed";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    PrivateDevices = true;
    PrivateUsers = !isRoot;
    ProcSubset = "all"; # the hardware is read in /proc as well
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    RemoveIPC = true;
    # NATS; the Nix daemon and systemd; udev and routes
    RestrictAddressFamilies = [
      "AF_INET"
      "AF_INET6"
      "AF_UNIX"
      "AF_NETLINK"
    ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallFilter = [
      "@system-service"
      "~@privileged"
    ];
  };

  # With containers leafd carries out the host operations in its own process, systemd-nspawn runs below it, and what is
  # in a container inherits what is set here. So all that follows is missing, and comes back when leaf-helper is a unit of
  # its own: NoNewPrivileges (a container's own setuid programs), the closed /proc, /sys and devices (nspawn mounts
  # them anew, which the kernel refuses below an overmounted one), the closed cgroups (leaf-helper makes
  # `cim-leaf.slice/LEAF/NAME` there), the host name (each container sets its own), the namespaces, and every filter of
  # system calls.
  # What is kept is the bound on capabilities: those that systemd-nspawn leaves a container, and what networks need.
  privileged = {
    CapabilityBoundingSet = [
      "CAP_AUDIT_CONTROL"
      "CAP_AUDIT_WRITE"
      "CAP_CHOWN"
      "CAP_DAC_OVERRIDE"
      "CAP_DAC_READ_SEARCH"
      "CAP_FOWNER"
      "CAP_FSETID"
      "CAP_IPC_OWNER"
      "CAP_KILL"
      "CAP_LEASE"
      "CAP_LINUX_IMMUTABLE"
      "CAP_MKNOD"
      "CAP_NET_ADMIN"
      "CAP_NET_BIND_SERVICE"
      "CAP_NET_BROADCAST"
      "CAP_NET_RAW"
      "CAP_SETFCAP"
      "CAP_SETGID"
      "CAP_SETPCAP"
      "CAP_SETUID"
      "CAP_SYS_ADMIN"
      "CAP_SYS_BOOT"
      "CAP_SYS_CHROOT"
      "CAP_SYS_NICE"
      "CAP_SYS_PTRACE"
      "CAP_SYS_RESOURCE"
      "CAP_SYS_TTY_CONFIG"
    ];
    ReadWritePaths = [
      "/run" # systemd-nspawn's own, and the lock of nixos-container
      "/etc/nixos-containers"
      "/var/lib/nixos-containers"
      "/nix/var/nix/gcroots/per-container"
    ];
  };
in
{
  config = lib.mkIf cfg.enable {
    services.cim-leaf.settingsFile = settingsFile;

    environment.systemPackages = [ cfg.package ];
    environment.etc."cim-leaf/leafd.toml".source = cfg.settingsFile;

    users = lib.mkIf (cfg.user == "leafd") {
      users.leafd = {
        isSystemUser = true;
        group = "leafd";
        home = cfg.stateDir;
        description = "Leaf daemon";
      };
      groups.leafd = { };
    };

    systemd.tmpfiles.rules =
      lib.optional (cfg.stateDir != "/var/lib/cim-leaf") "d ${cfg.stateDir} 0700 ${cfg.user} - -"
      ++ lib.optionals withContainers [
        "d /etc/nixos-containers 0755 root root -"
        "d /var/lib/nixos-containers 0700 root root -"
        "d /nix/var/nix/gcroots/per-container 0755 root root -"
      ];

    # From a container's veth, the leaf's own server is the only thing that answers; leaf-helper's own rules say so, and
    # the host's firewall must not be stricter.
    networking.firewall.interfaces = lib.mkIf (withContainers && cfg.nats.embedded.enable) {
      ${if config.networking.nftables.enable then "ve-*" else "ve-+"}.allowedTCPPorts = [ cfg.nats.embedded.port ];
    };

    systemd.services.leafd = {
      description = "Leaf ${cfg.name} of a Composable Information Machine";
      wantedBy = [ "multi-user.target" ];
      # It works while the network is gone, so it waits for none.
      after = [
        "network.target"
        "nix-daemon.socket"
        "systemd-udevd.service"
      ];
      path =
        [
          cfg.nix.package
          pkgs.gitMinimal # Nix fetches flakes with it
        ]
        ++ lib.optionals withContainers [
          config.systemd.package
          pkgs.iproute2
          pkgs.nftables
        ];
      environment = {
        XDG_CACHE_HOME = "/var/cache/cim-leaf";
        # As root, Nix would write the store itself, which is read-only for this unit.
        NIX_REMOTE = "daemon";
      };

      serviceConfig =
        {
          Type = "notify";
          ExecStart = "${cfg.package}/bin/leafd run --config ${cfg.settingsFile}";
          User = cfg.user;
          LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") credentials;

          Restart = "on-failure";
          RestartSec = 2;
          WatchdogSec = 30;
          TimeoutStartSec = 120;
          TimeoutStopSec = 90;
          # Only leafd is stopped, and it stops its NATS server: containers and jobs outlive it and are found again.
          KillMode = "process";

          StateDirectory = "cim-leaf";
          StateDirectoryMode = "0700";
          CacheDirectory = "cim-leaf";
          RuntimeDirectory = "cim-leaf";
          RuntimeDirectoryPreserve = true;
        }
        // hardening
        // (if withContainers then privileged else unprivileged)
        // lib.optionalAttrs (cfg.stateDir != "/var/lib/cim-leaf") {
          ReadWritePaths = [ cfg.stateDir ] ++ lib.optionals withContainers privileged.ReadWritePaths;
        };
    };
  };
}
