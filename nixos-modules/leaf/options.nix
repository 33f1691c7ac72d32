# The options of the daemon: one for each setting of `leafd.toml`, under the same default, and few of the system's own.
# settings.nix turns their values into the settings file.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption mkEnableOption types;
  cfg = config.services.cim-leaf;

  # A file that is named, never read: a Nix path literal would be copied into the store, where all may read it.
  secretFile = types.nullOr types.str;
  notInTheStore = "The path must be a string and lie outside of the Nix store.";

  seconds = types.ints.between 1 3600;
in
{
  options.services.cim-leaf = {
    enable = mkEnableOption "leafd, the daemon that makes this host a leaf of a Composable Information Machine";

    package = mkOption {
      type = types.package;
      default = pkgs.cim-leaf;
      defaultText = lib.literalExpression "pkgs.cim-leaf";
      example = lib.literalExpression "inputs.cim-leaf.packages.x86_64-linux.default";
      description = "The package with leafd, leafctl, leaf-helper, leaf-init and the container templates.";
    };

    name = mkOption {
      type = types.str;
      default = lib.toLower config.networking.hostName;
      defaultText = lib.literalExpression "lib.toLower config.networking.hostName";
      example = "edge-1";
      description = ''
        The name of the leaf: one token of at most 32 of the characters a-z, 0-9, `_` and `-`. It stands in every
        subject, and names the event stream, so it must be unlike every other leaf's.
      '';
    };

    stateDir = mkOption {
      type = types.str;
      default = "/var/lib/cim-leaf";
      example = "/persist/cim-leaf";
      description = "The folder with all that must not be lost: the journal, and the embedded NATS server's storage.";
    };

    log = mkOption {
      type = types.str;
      default = "info";
      example = "info,leaf_bus=debug";
      description = "What is logged, as a filter of Rust's `tracing`.";
    };

    nats = {
      url = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "tls://hub.example:4222";
        description = ''
          The NATS servers to connect to, separated by commas. Excludes {option}`services.cim-leaf.nats.embedded.enable`.
        '';
      };

      credentialsFile = mkOption {
        type = secretFile;
        default = null;
        example = "/run/secrets/leafd.creds";
        description = "The file with the NATS user's JWT and seed. It reaches leafd as a systemd credential. ${notInTheStore}";
      };

      streamCredentialsFile = mkOption {
        type = secretFile;
        default = null;
        example = "/run/secrets/leafd-streams.creds";
        description = ''
          The file with the JWT and seed of the user that keeps the streams, where they are in another account than the
          callers: then nobody who may read them can have the server write into them. Goes beside
          {option}`services.cim-leaf.nats.credentialsFile`. It reaches leafd as a systemd credential. ${notInTheStore}
        '';
      };

      caFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression "./hub-ca.pem";
        description = "The certificates of the authorities that leafd trusts, in PEM. They are no secret.";
      };

      certFile = mkOption {
        type = secretFile;
        default = null;
        example = "/run/secrets/leafd.pem";
        description = "The leaf's own certificate, in PEM. Goes together with {option}`services.cim-leaf.nats.keyFile`.";
      };

      keyFile = mkOption {
        type = secretFile;
        default = null;
        example = "/run/secrets/leafd.key";
        description = "The key of the leaf's own certificate, in PEM. It reaches leafd as a systemd credential. ${notInTheStore}";
      };

      jetstreamDomain = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "edge-1";
        description = "The JetStream domain in which the leaf's streams are, where the server has one.";
      };

      embedded = {
        enable = mkEnableOption "a NATS server of the leaf's own, which leafd starts and looks after";

        package = mkOption {
          type = types.package;
          default = pkgs.nats-server;
          defaultText = lib.literalExpression "pkgs.nats-server";
          example = lib.literalExpression "pkgs.nats-server";
          description = "The package with nats-server, at least 2.12.";
        };

        address = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "10.233.0.1";
          description = ''
            The IPv4 address that the server listens on. Without one it is the leaf's address in
            {option}`services.cim-leaf.containers.addressPool` where containers are enabled, and else 127.0.0.1.
          '';
        };

        port = mkOption {
          type = types.port;
          default = 4222;
          example = 4222;
          description = "The port that the server listens on.";
        };

        maxStorageBytes = mkOption {
          type = types.ints.unsigned;
          default = 0;
          example = 10 * 1024 * 1024 * 1024;
          description = "How much JetStream may store, in bytes; 0 sets no limit of its own.";
        };
      };
    };

    events = {
      maxBytes = mkOption {
        type = types.ints.unsigned;
        default = 1024 * 1024 * 1024;
        example = 256 * 1024 * 1024;
        description = "The size of the leaf's event stream, in bytes, at least 1 MiB. The oldest events give way to new ones.";
      };

      backlogBytes = mkOption {
        type = types.ints.unsigned;
        default = 256 * 1024 * 1024;
        example = 64 * 1024 * 1024;
        description = "How many bytes of events may wait to be published; above that, commands are refused.";
      };

      reserveBytes = mkOption {
        type = types.ints.unsigned;
        default = 32 * 1024 * 1024;
        example = 128 * 1024 * 1024;
        description = "How many bytes of the disk must be free; below that, commands are refused.";
      };

      snapshotEvery = mkOption {
        type = types.addCheck types.ints.positive (n: n >= 100) // {
          description = "integer of at least 100";
        };
        default = 10000;
        example = 2000;
        description = "After how many events a snapshot of the state follows in the stream.";
      };
    };

    hardware = {
      facterReport = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression "./facter.json";
        description = "A report by nixos-facter, which joins what leafd sees in sysfs and udev.";
      };

      facterProgram = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = lib.literalExpression "lib.getExe pkgs.nixos-facter";
        description = ''
          The program nixos-facter, which leafd runs when it starts. It works as root only, and takes some seconds; so
          none is given unless you say so.
        '';
      };

      rescanDebounceMs = mkOption {
        type = types.ints.unsigned;
        default = 500;
        example = 2000;
        description = "For how long changes must be quiet before leafd looks at the hardware again, in milliseconds.";
      };
    };

    containers = {
      enable = mkEnableOption "containers on this leaf. leafd asks the service leaf-helper for what needs root";

      addressPool = mkOption {
        type = types.str;
        default = "10.233.0.0/16";
        example = "172.20.0.0/16";
        description = "The private /16 network of which each container gets a pair of addresses. The leaf itself is its .0.1.";
      };

      readyTimeoutSeconds = mkOption {
        type = seconds;
        default = 60;
        example = 300;
        description = "How long a container may take from its start until it says that it is ready, in seconds.";
      };

      stopTimeoutSeconds = mkOption {
        type = seconds;
        default = 30;
        example = 120;
        description = "How long a container may take to stop before it is ended, in seconds.";
      };

      networkCheckSeconds = mkOption {
        type = seconds;
        default = 300;
        example = 30;
        description = ''
          How often the rules of the closed network are made sure of, in seconds: something else on the host may flush all
          of nftables, and running containers would be open until then.
        '';
      };

      bindFolders = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "/srv/data" ];
        description = ''
          The folders of the host that containers may be given, or parts of them: what a container's spec binds must be in or
          below one of these. leaf-helper holds every spec against them, whoever sends it.
        '';
      };

      secretFolders = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "/run/secrets" ];
        description = "The folders of the host that the files of containers' secrets must be in or below.";
      };

      templates = mkOption {
        type = types.path;
        default = "${cfg.package}/share/cim-leaf/containers";
        defaultText = lib.literalExpression ''"''${config.services.cim-leaf.package}/share/cim-leaf/containers"'';
        example = lib.literalExpression "./containers";
        description = "The folder with the container templates, one folder each.";
      };
    };

    nix = {
      package = mkOption {
        type = types.package;
        default = config.nix.package;
        defaultText = lib.literalExpression "config.nix.package";
        example = lib.literalExpression "pkgs.nixVersions.latest";
        description = "The package with the program nix, 2.8 or newer, that runs the jobs.";
      };

      maxJobs = mkOption {
        type = types.ints.positive;
        default = 2;
        example = 4;
        description = "How many Nix jobs run at once.";
      };

      maxQueuedJobs = mkOption {
        type = types.ints.unsigned;
        default = 100;
        example = 1000;
        description = "How many Nix jobs may wait; more are refused.";
      };

      timeoutSeconds = mkOption {
        type = types.ints.between 1 4294967295;
        default = 7200;
        example = 86400;
        description = "How long a Nix job may take if its command doesn't say, in seconds.";
      };

      options = mkOption {
        type = types.attrsOf types.str;
        default = { };
        example = {
          substituters = "";
        };
        description = "Nix settings for every job, as `--option NAME VALUE`.";
      };
    };

    settingsFile = mkOption {
      type = types.path;
      readOnly = true;
      internal = true;
      description = "The settings file as leafd reads it; the build of it runs `leafd check-config`.";
    };
  };
}
