# The options of the daemon: one for each setting of `leafd.toml`, with the same default, and a few for the system.
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

  secretFile = import ../secret-file.nix {
    inherit lib;
    reader = "leafd";
  };

  # The nixpkgs of a flake, which is in the store already; pkgs.path would be copied there once more.
  flakeSource = config.nixpkgs.flake.source or null;

  seconds = types.ints.between 1 3600;
in
{
  options.services.cim-leaf = {
    enable = mkEnableOption "leafd, the daemon that makes this host a leaf of a Composable Information Machine";

    package = mkOption {
      type = types.package;
      default =
        pkgs.cim-leaf
          or (throw "services.cim-leaf.package: nixpkgs has no cim-leaf; import nixosModules.default or nixosModules.leaf of its flake, add overlays.default, or set this option");
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
        The leaf's name: one token of at most 32 of the characters a-z, 0-9, `_` and `-`. It is part of every subject
        and of the event stream's name, so it must be unique among the leaves.
      '';
    };

    labels = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        site = "hall-2";
        "example.org/rack" = "7";
      };
      description = ''
        Labels of the leaf, by which `leafctl` selects leaves (`leafctl -l site=hall-2 hardware list`). Commands can add others,
        and can't change these. A key is at most 63 of the characters a-z, 0-9, `.`, `_`, `/` and `-`, and begins with a letter
        or digit; a value has 1 to 63 printable bytes without a comma; a leaf has at most 32 labels.
      '';
    };

    stateDir = mkOption {
      type = types.str;
      default = "/var/lib/cim-leaf";
      example = "/persist/cim-leaf";
      description = ''
        The directory of the persistent state: the journal, and the embedded NATS server's keys and storage.
      '';
    };

    operators = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "alice" ];
      description = ''
        Users of this host who command the leaf with `leafctl` as the caller `admin`, without naming a context, as root
        does. They become members of the group `leafd`, which may also read the containers' consoles. It takes an
        embedded NATS server: {option}`services.cim-leaf.nats.embedded.enable`.
      '';
    };

    log = mkOption {
      type = types.str;
      default = "info";
      example = "info,leaf_bus=debug";
      description = "The log filter, in the syntax of Rust's `tracing`.";
    };

    nats = {
      url = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "tls://hub.example:4222";
        description = ''
          The NATS servers to connect to, separated by commas: `tls://`, except for a server on this host,
          and without a user or password, which every user of the host could read in the Nix store. Mutually exclusive
          with {option}`services.cim-leaf.nats.embedded.enable`.
        '';
      };

      credentialsFile = secretFile {
        example = "/run/secrets/leafd.creds";
        description = "The file with the NATS user's JWT and seed.";
      };

      streamCredentialsFile = secretFile {
        example = "/run/secrets/leafd-streams.creds";
        description = ''
          The file with the JWT and seed of the user that owns the streams, where the streams have another account than
          the callers: then no caller can make the server write into them. Requires
          {option}`services.cim-leaf.nats.credentialsFile`.
        '';
      };

      containerSigningKeyFile = secretFile {
        example = "/run/secrets/leafd-containers.seed";
        description = ''
          The file with the seed of a scoped signing key of the callers' account, which issues the NATS users of containers.
          Containers on a leaf with {option}`services.cim-leaf.nats.url` need it, and both credentials files. docs/nats.md
          says how it is made.
        '';
      };

      containersPort = mkOption {
        type = types.port;
        default = 4222;
        example = 4223;
        description = ''
          The port on the leaf's address in {option}`services.cim-leaf.containers.addressPool` at which leafd passes the
          containers' connections on to the servers of {option}`services.cim-leaf.nats.url`. Not used where one of these
          listens on that address itself, without TLS.
        '';
      };

      containerHours = mkOption {
        type = types.ints.between 1 8760;
        default = 24;
        example = 8;
        description = ''
          How long the NATS credentials of containers are valid, in hours, beside an embedded server and on a given one. leafd
          renews them while it runs, and a container that reads its file at each connection goes on.
        '';
      };

      caFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression "./hub-ca.pem";
        description = "The CA certificates that leafd trusts, in PEM. They are not secret.";
      };

      certFile = secretFile {
        example = "/run/secrets/leafd.pem";
        description = "The leaf's own certificate, in PEM. Requires {option}`services.cim-leaf.nats.keyFile`.";
      };

      keyFile = secretFile {
        example = "/run/secrets/leafd.key";
        description = "The key of the leaf's own certificate, in PEM.";
      };

      jetstreamDomain = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "edge-1";
        description = "The JetStream domain of the leaf's streams, if the server has one.";
      };

      embedded = {
        enable = mkEnableOption "a NATS server of the leaf's own, which leafd starts and supervises";

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
            The IPv4 address that the server listens on. If null, it is the leaf's address in
            {option}`services.cim-leaf.containers.addressPool` where containers are enabled, otherwise 127.0.0.1.
          '';
        };

        port = mkOption {
          type = types.port;
          default = 4222;
          example = 4222;
          description = "The port that the server listens on.";
        };

        adminHours = mkOption {
          type = types.ints.between 1 8760;
          default = 24;
          example = 168;
          description = ''
            How long the credentials of the leaf's own people, root and the group `leafd`, are valid, in hours. leafd renews
            them while it runs; a copy of them ends.
          '';
        };

        maxStorageBytes = mkOption {
          type = types.ints.unsigned;
          default = 0;
          example = 10 * 1024 * 1024 * 1024;
          description = "The most that JetStream may store, in bytes; 0 limits it to the size of the file system.";
        };

        hub = {
          url = mkOption {
            type = types.nullOr types.str;
            default = null;
            example = "tls://hub.example:7422";
            description = ''
              The URL of the hub that the server connects to as a leaf node, or several separated by commas; null for a leaf
              without a hub.
            '';
          };

          credentialsFile = secretFile {
            example = "/run/keys/hub.creds";
            description = "The file with the leaf's credentials at the hub, or with the seed of its NKEY there.";
          };

          caFile = mkOption {
            type = types.nullOr types.path;
            default = null;
            example = lib.literalExpression "./hub-ca.pem";
            description = "The CA certificates that the hub's certificate is checked with, in PEM; the system's if null.";
          };
        };
      };
    };

    events = {
      maxBytes = mkOption {
        type = types.ints.unsigned;
        default = 1024 * 1024 * 1024;
        example = 256 * 1024 * 1024;
        description = ''
          The maximum size of the leaf's event stream, in bytes, at least 1 MiB. New events replace the oldest ones.
        '';
      };

      backlogBytes = mkOption {
        type = types.ints.unsigned;
        default = 256 * 1024 * 1024;
        example = 64 * 1024 * 1024;
        description = "The most bytes of events that may wait to be published; above that, commands are refused.";
      };

      reserveBytes = mkOption {
        type = types.ints.unsigned;
        default = 32 * 1024 * 1024;
        example = 128 * 1024 * 1024;
        description = ''
          The bytes that must be free on the journal's disk; below that, commands are refused, except those that stop or
          destroy containers.
        '';
      };

      snapshotEvery = mkOption {
        type = types.addCheck types.ints.positive (n: n >= 100) // {
          description = "integer of at least 100";
        };
        default = 10000;
        example = 2000;
        description = "The number of events after which a snapshot of the state is written to the stream.";
      };
    };

    hardware = {
      facterReport = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression "./facter.json";
        description = "A nixos-facter report, which leafd merges with the devices that it finds in sysfs and udev.";
      };

      facterProgram = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = lib.literalExpression "lib.getExe pkgs.nixos-facter";
        description = ''
          The program nixos-facter, which leafd runs when it starts. It works only as root and takes some seconds, so
          there is no default.
        '';
      };

      rescanDebounceMs = mkOption {
        type = types.ints.unsigned;
        default = 500;
        example = 2000;
        description = "How long no hardware change may arrive before leafd scans the hardware again, in milliseconds.";
      };
    };

    containers = {
      enable = mkEnableOption ''
        containers on this leaf, which need {option}`services.cim-leaf.nats.embedded.enable`. The service leaf-helper
        carries out what needs root'';

      addressPool = mkOption {
        type = types.str;
        default = "10.233.0.0/16";
        example = "172.20.0.0/16";
        description = ''
          The private /16 network that containers' addresses are taken from. The leaf's own address is its .0.1.
        '';
      };

      readyTimeoutSeconds = mkOption {
        type = seconds;
        default = 60;
        example = 300;
        description = "How long a container may take from its start until it is ready, in seconds.";
      };

      stopTimeoutSeconds = mkOption {
        type = seconds;
        default = 30;
        example = 120;
        description = "How long a container may take to stop before it is killed, in seconds.";
      };

      networkCheckSeconds = mkOption {
        type = seconds;
        default = 300;
        example = 30;
        description = ''
          How often leafd checks the nftables rules of the containers, in seconds. If another program flushes nftables,
          running containers are open until the next check.
        '';
      };

      bindFolders = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "/srv/data" ];
        description = ''
          The directories of the host that a container's spec may bind: the source of a bind must be one of these or
          below one. leaf-helper checks every spec, whoever sends it.
        '';
      };

      secretFolders = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "/run/secrets" ];
        description = "The directories of the host that the files of containers' secrets must be in or below.";
      };

      hostUsers = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Whether a container may have the host's users (`users = "host"` in its spec). Its root is then the host's root, so whoever
          may create containers on this leaf may become root on the host. Adopted containers keep the users that they have, and
          need this to be updated to another system.
        '';
      };

      templates = mkOption {
        type = types.path;
        default = "${cfg.package}/share/cim-leaf/containers";
        defaultText = lib.literalExpression ''"''${config.services.cim-leaf.package}/share/cim-leaf/containers"'';
        example = lib.literalExpression "./containers";
        description = "The directory of the container templates, one subdirectory each.";
      };
    };

    nix = {
      package = mkOption {
        type = types.package;
        default = config.nix.package;
        defaultText = lib.literalExpression "config.nix.package";
        example = lib.literalExpression "pkgs.nixVersions.latest";
        description = "The package with the program nix, version 2.8 or newer, which runs the jobs.";
      };

      nixpkgs = mkOption {
        type = types.nullOr types.path;
        default = if flakeSource != null then flakeSource else pkgs.path;
        defaultText = lib.literalExpression "pkgs.path";
        example = lib.literalExpression "inputs.nixpkgs.outPath";
        description = ''
          The nixpkgs that jobs find as `<nixpkgs>`, which container templates that are NixOS systems need. It becomes a
          part of the system's closure; null leaves it out. {option}`services.cim-leaf.nix.options` may set `nix-path`
          instead.
        '';
      };

      maxJobs = mkOption {
        type = types.ints.positive;
        default = 2;
        example = 4;
        description = "The number of Nix jobs that run at once.";
      };

      maxQueuedJobs = mkOption {
        type = types.ints.unsigned;
        default = 100;
        example = 1000;
        description = "The number of Nix jobs that may be queued; further ones are refused.";
      };

      timeoutSeconds = mkOption {
        type = types.ints.between 1 4294967295;
        default = 7200;
        example = 86400;
        description = "How long a Nix job may take, in seconds, if its command sets no time limit.";
      };

      evalMemoryMib = mkOption {
        type = types.ints.between 256 1048576;
        default = 4096;
        example = 16384;
        description = "How much address space an evaluation may have, in MiB. One that needs more fails, and says so.";
      };

      minFreeBytes = mkOption {
        type = types.ints.unsigned;
        default = 268435456;
        example = 10737418240;
        description = ''
          How much of the disk of the Nix store is kept free, in bytes. With less, the leaf refuses builds and evaluations, and makes no
          offers; 0 turns that off.
        '';
      };

      maxUploadBytes = mkOption {
        type = types.ints.unsigned;
        default = 4294967296;
        example = 17179869184;
        description = ''
          How many bytes of sources a caller may send at once, with `leafctl nix build --local`. They are in leafd's state directory until
          Nix has added them to its store. 0 lets nothing be sent.
        '';
      };

      policy = {
        unlockedReferences = mkOption {
          type = types.bool;
          default = true;
          example = false;
          description = ''
            Whether a flake reference may be given that means another source tomorrow, such as `github:owner/repo`. It is locked at the
            beginning of the job. If false, a reference must have a revision or a hash. Lock files that would have to change are refused
            in any case.
          '';
        };

        impure = mkOption {
          type = types.bool;
          default = false;
          example = true;
          description = "Whether callers may ask for the impure evaluation of a flake.";
        };

        importFromDerivation = mkOption {
          type = types.bool;
          default = true;
          example = false;
          description = "Whether the evaluation of what is built may build and import its result.";
        };

        allowedUris = mkOption {
          type = types.nullOr (types.listOf types.str);
          default = null;
          example = [
            "github:owner/"
            "https://git.example.org"
          ];
          description = ''
            The beginnings of the URIs that evaluations may fetch, as in Nix's `allowed-uris`. Needs `hostPaths` without `/`. By default
            all, as far as Nix's pure mode lets them.
          '';
        };

        hostPaths = mkOption {
          type = types.listOf types.str;
          default = [ "/" ];
          example = [ "/srv/pkgs" ];
          description = ''
            The directories in which Nix files and flakes on this machine may be, and whose files an evaluation that is not pure may read.
            By default all that the user of jobs sees.
          '';
        };
      };

      features = mkOption {
        type = types.attrsOf (types.ints.between 1 1000);
        default = { };
        example = {
          kvm = 2;
          big-parallel = 1;
        };
        description = ''
          What the leaf has of each feature that a build may take while it runs (`leafctl nix build --feature kvm`). Builds wait for each
          other as far as there is not enough for all. This is not `system-features` of Nix, which Nix checks by itself.
        '';
      };

      room =
        let
          percent =
            default: what:
            mkOption {
              type = types.ints.between 1 100;
              inherit default;
              example = 50;
              description = ''
                The share of the last 10 seconds, in percent, in which ${what}, above which the leaf takes no build that goes where there is
                room (`leafctl nix build --any`). 100 switches it off.
              '';
            };
        in
        {
          cpuPercent = percent 75 "some task waited for a processor";
          memoryPercent = percent 20 "all tasks waited for memory";
          ioPercent = percent 75 "all tasks waited for disks";
        };

      options = mkOption {
        type = types.attrsOf types.str;
        default = { };
        example = {
          substituters = "";
        };
        description = "Nix settings for every job, passed as `--option NAME VALUE`.";
      };
    };

    trust = {
      allowedSignersFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression "./allowed_signers";
        description = ''
          The file of the SSH keys that may sign commands, and for which callers: `ann ssh-ed25519 AAAA…` on a line, as for
          `ssh-keygen -Y verify`. It has public keys only, so it may be in the Nix store; a file elsewhere must belong to root, and be
          writable for root only. Without it no signature is accepted.
        '';
      };

      allowedOpenpgpFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression "./allowed_openpgp";
        description = ''
          The file of the OpenPGP keys that may sign commands, and for which callers: `ann pgp KEY` on a line, where KEY is what
          `gpg --export FINGERPRINT | base64 -w0` prints. It has an effect with a package that was built for it:
          `services.cim-leaf.package = pkgs.cim-leaf.override { withOpenpgp = true; }`.
        '';
      };

      revokedSignersFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = "/etc/cim-leaf/revoked_signers";
        description = ''
          The file of the keys that may not sign any more: a public key or a fingerprint (`SHA256:…`, `pgp:…`) on each line. A file outside the
          Nix store counts as soon as it is changed, without a switch of the system.
        '';
      };

      clock = mkOption {
        type = types.enum [
          "auto"
          "trusted"
          "untrusted"
        ];
        default = "auto";
        example = "untrusted";
        description = ''
          Whether the clock of this host can be trusted: by default while systemd-timedated says that it is synchronized. Where it can't
          be, a signature needs a nonce of the leaf, which leafctl asks for by itself.
        '';
      };

      requireSignature = mkOption {
        type = types.nullOr (types.listOf types.str);
        default = null;
        example = [
          "runs-code"
          "cuts-off"
          "container.*"
        ];
        description = ''
          The commands that need a signature: powers (`reads`, `changes`, `builds`, `secrets`, `runs-code`, `cuts-off`), commands, or the
          changes and jobs of a noun. `runs-code` and `cuts-off` must be among them, and are all by default.
        '';
      };

      callers = mkOption {
        type = types.attrsOf (
          types.listOf (
            types.enum [
              "runs-code"
              "cuts-off"
            ]
          )
        );
        default = { };
        example = {
          ann = [ "runs-code" ];
        };
        description = "The callers that may send commands that run code, or that change what the leaf is reached by.";
      };
    };

    witnesses = mkOption {
      type = types.listOf (types.strMatching "ssh-ed25519 [A-Za-z0-9+/=]+( [^[:cntrl:]]*)?");
      default = [ ];
      example = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFdb0Rv4Z0Z2sQBEFLTk1MwPdyVPFyxMPf5cD1tVJtLm hub-1" ];
      description = ''
        The public keys of the witnesses: a change that can cut this leaf off, such as `leafctl leaf move-to`, stays only once one of
        them confirmed it over a new connection, or a person did; otherwise it goes back. The hub has the private key
        (`witness_key` in its settings). Hubs between which leaves move share one, or a leaf has the keys of both.
      '';
    };

    system.switch = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether the system of this host can be switched with `leafctl system switch`. Who may command that is root on this host, and
        so is a leafd that somebody took over.
      '';
    };

    system.rebootAsLastResort = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = ''
        Whether the host is rebooted where a switch goes back, and the system of before can't be activated three times: it boots that
        system. Containers and jobs end with the reboot.
      '';
    };

    system.keepGenerations = mkOption {
      type = types.nullOr (types.ints.between 2 100000);
      default = null;
      example = 20;
      description = ''
        The number of the newest generations of the system that a confirmed switch keeps; null keeps all. The one that runs, the booted
        one and the one before the switch are kept in any case.
      '';
    };

    system.keepDays = mkOption {
      type = types.nullOr (types.ints.between 1 100000);
      default = null;
      example = 90;
      description = ''
        The number of days for which a confirmed switch keeps a generation of the system; null keeps them for ever. The one that runs,
        the booted one and the one before the switch are kept in any case.
      '';
    };

    system.healthyUnits = mkOption {
      type = types.listOf (types.strMatching "[A-Za-z0-9:_.\\@-]+[.][a-z]+");
      default = [ ];
      example = [ "postgresql.service" ];
      description = ''
        The units that must be active in a system that is switched to, beside leafd: otherwise it can't be confirmed, and goes back. Those
        of the running system count as well as those of the new one.
      '';
    };

    settingsFile = mkOption {
      type = types.path;
      readOnly = true;
      internal = true;
      description = "The settings file that leafd reads; its build runs `leafd check-config`.";
    };
  };
}
