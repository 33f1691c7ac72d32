# The options of the NATS server. settings.nix turns their values into the server's configuration.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption mkEnableOption types;
  cfg = config.services.cim-nats;

  # The path of a file as a string, never a Nix path: that would be copied into the store, which every user can read.
  secret = {
    type = types.nullOr types.str;
    default = null;
  };
  where =
    "The value is an absolute path outside the Nix store, or in a container the name of a credential that the "
    + "container gets at its start. The server gets the file as a systemd credential, read when the unit starts.";

  duration = types.strMatching "[1-9][0-9]*(ms|s|m|h)" // {
    description = "duration such as 2s";
  };
in
{
  options.services.cim-nats = {
    enable = mkEnableOption "a NATS server in operator mode, as a leaf or as the hub of leaves";

    package = mkOption {
      type = types.package;
      default = pkgs.nats-server;
      defaultText = lib.literalExpression "pkgs.nats-server";
      example = lib.literalExpression "pkgs.nats-server";
      description = "The package with nats-server, at least 2.12.";
    };

    role = mkOption {
      type = types.enum [
        "leaf"
        "hub"
      ];
      default = "leaf";
      example = "hub";
      description = ''
        The server's role. A `leaf` serves one host and its containers, and connects to its hubs
        ({option}`services.cim-nats.remotes`). A `hub` listens for leaves ({option}`services.cim-nats.leafnodes`).
      '';
    };

    serverName = mkOption {
      type = types.str;
      default = lib.toLower config.networking.hostName;
      defaultText = lib.literalExpression "lib.toLower config.networking.hostName";
      example = "edge-1";
      description = "The server's name, unique among the servers that it can reach.";
    };

    address = mkOption {
      type = types.str;
      default = if cfg.role == "leaf" then "10.233.0.1" else "127.0.0.1";
      defaultText = lib.literalExpression ''if config.services.cim-nats.role == "leaf" then "10.233.0.1" else "127.0.0.1"'';
      example = "10.233.0.1";
      description = ''
        The IP address that clients connect to. On a leaf it is the leaf's own, which containers reach through their
        veth. All addresses (`0.0.0.0`, `::`) are refused, except in a container, which has its own network.
      '';
    };

    addressOnLo = mkOption {
      type = types.bool;
      default = cfg.role == "leaf" && !lib.hasPrefix "127." cfg.address;
      defaultText = lib.literalExpression ''role == "leaf" && !lib.hasPrefix "127." address'';
      example = false;
      description = ''
        Whether the unit adds the address to the interface `lo` before it starts the server. Other hosts can't reach
        such an address, so its listener needs no TLS.
      '';
    };

    port = mkOption {
      type = types.port;
      default = 4222;
      example = 4222;
      description = "The port that clients connect to.";
    };

    firewallInterfaces = mkOption {
      type = types.listOf types.str;
      default =
        if cfg.addressOnLo then [ (if config.networking.nftables.enable then "ve-*" else "ve-+") ] else [ ];
      defaultText = lib.literalMD "the containers' veths if the address is on `lo`, otherwise none";
      example = [ "wg0" ];
      description = ''
        The interfaces from which the host's firewall accepts clients and leaves. The leaf's own nftables rules limit
        what else a container can reach.
      '';
    };

    url = mkOption {
      type = types.str;
      readOnly = true;
      default = import ./url.nix cfg;
      defaultText = lib.literalMD "computed from the address and the port";
      example = "nats://10.233.0.1:4222";
      description = "The URL of the server for clients on this host.";
    };

    dataDir = mkOption {
      type = types.str;
      default = "/var/lib/nats";
      example = "/persist/nats";
      description = "The directory of the persistent state: what JetStream stores, and the resolver's accounts.";
    };

    operator = {
      jwtFile = mkOption {
        type = types.nullOr (types.either types.path types.str);
        default = null;
        example = lib.literalExpression "./operator.jwt";
        description = ''
          The file with the operator's JWT, which is not secret: a file of the configuration, with which the build
          checks the server's configuration. If the operator is created on the host, it is an absolute path outside the
          store or a credential's name, as for a secret. The server does not start without an operator.
        '';
      };

      systemAccount = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "AAYX4FE5KAD6U7LPQBHCMRIWTIGRR27ZNX6DN2HJZZWNGBD6KX6UKNUV";
        description = "The public key of the system account.";
      };

      accounts = mkOption {
        type = types.attrsOf types.str;
        default = { };
        example = lib.literalExpression ''
          { AAYX4FE5KAD6U7LPQBHCMRIWTIGRR27ZNX6DN2HJZZWNGBD6KX6UKNUV = lib.fileContents ./sys.jwt; }
        '';
        description = ''
          The JWTs of the accounts that the server has when it starts, by public key, including the system account's.
          The JWT of an account is not secret.
        '';
      };

      resolver = mkOption {
        type = types.enum [
          "memory"
          "full"
        ];
        default = "memory";
        example = "full";
        description = ''
          Where the server keeps accounts. `memory`: only those of {option}`services.cim-nats.operator.accounts`.
          `full`: in a directory below {option}`services.cim-nats.dataDir`; it accepts new and changed ones from the
          system account (`leafctl fleet push`, `nsc push`), and deletes none. Of {option}`services.cim-nats.operator.accounts`
          it takes those that are newer than what it has.
        '';
      };

      accountsFile = mkOption (
        secret
        // {
          example = "/run/keys/nats-accounts.conf";
          description = ''
            A file on the host that replaces the three options above, for accounts that are created there: in
            nats-server's configuration language, with `system_account`, `resolver` and `resolver_preload`. ${where}
          '';
        }
      );
    };

    tls = {
      certFile = mkOption (
        secret
        // {
          example = "/run/keys/nats.pem";
          description = "The server's certificate, in PEM, for clients and for leaves. ${where}";
        }
      );

      keyFile = mkOption (
        secret
        // {
          example = "/run/keys/nats.key";
          description = "The key of the certificate, in PEM. ${where}";
        }
      );

      caFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression "./clients-ca.pem";
        description = ''
          The CA certificates for those of clients and leaves, in PEM. They are not secret: a file of the configuration.
        '';
      };

      verify = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Whether clients and leaves must present a certificate issued by {option}`services.cim-nats.tls.caFile`, in
          addition to their JWT.
        '';
      };
    };

    jetstream = {
      enable = mkEnableOption "JetStream" // {
        default = true;
        example = false;
      };

      domain = mkOption {
        type = types.str;
        default = cfg.serverName;
        defaultText = lib.literalExpression "config.services.cim-nats.serverName";
        example = "edge-1";
        description = "The JetStream domain, unique among the servers that it connects to or that connect to it.";
      };

      maxFileStoreBytes = mkOption {
        type = types.ints.positive;
        default = 8 * 1024 * 1024 * 1024;
        example = 64 * 1024 * 1024 * 1024;
        description = "The most that JetStream may store on disk, in bytes.";
      };

      maxMemoryStoreBytes = mkOption {
        type = types.ints.positive;
        default = 64 * 1024 * 1024;
        example = 512 * 1024 * 1024;
        description = "The most that JetStream may store in memory, in bytes.";
      };

      syncInterval = mkOption {
        type = types.either (types.enum [ "always" ]) duration;
        default = "1s";
        example = "always";
        description = ''
          How long an acknowledged message may exist only in memory, where a power cut loses it. `always` syncs before
          each acknowledgement, at a tenth to a twentieth of the throughput.

          The default is for a server with other clients than leaves, such as programs in containers, which keep no copy
          of what they published. A leaf keeps each event in its journal for ten minutes after the acknowledgement, so a
          server for leaves alone may sync every `2m`, as the one that leafd embeds: at rest it then uses a third less
          processor time. More than `4m` is refused, since a sync may take as long again.
        '';
      };
    };

    leafnodes = {
      enable = mkOption {
        type = types.bool;
        default = cfg.role == "hub";
        defaultText = lib.literalExpression ''config.services.cim-nats.role == "hub"'';
        example = true;
        description = "Whether leaves may connect to this server.";
      };

      address = mkOption {
        type = types.str;
        default = cfg.address;
        defaultText = lib.literalExpression "config.services.cim-nats.address";
        example = "192.0.2.1";
        description = "The IP address that leaves connect to.";
      };

      port = mkOption {
        type = types.port;
        default = 7422;
        example = 7422;
        description = "The port that leaves connect to.";
      };
    };

    remotes = mkOption {
      default = { };
      example = lib.literalExpression ''
        {
          hub = {
            urls = [ "tls://hub.example:7422" ];
            account = "AAYX4FE5KAD6U7LPQBHCMRIWTIGRR27ZNX6DN2HJZZWNGBD6KX6UKNUV";
            credentialsFile = "/run/keys/hub.creds";
          };
        }
      '';
      description = "The hubs that this server connects to as a leaf, by names that only this host uses.";
      type = types.attrsOf (
        types.submodule {
          options = {
            urls = mkOption {
              type = types.nonEmptyListOf types.str;
              example = [ "tls://hub.example:7422" ];
              description = "The URLs of the hub's servers; this server connects to one of them.";
            };

            account = mkOption {
              type = types.str;
              example = "AAYX4FE5KAD6U7LPQBHCMRIWTIGRR27ZNX6DN2HJZZWNGBD6KX6UKNUV";
              description = "The public key of the local account that the connection to the hub is bound to.";
            };

            credentialsFile = mkOption {
              type = types.str;
              example = "/run/keys/hub.creds";
              description = "The file with the JWT and seed of this leaf's user at the hub. ${where}";
            };

            denyImports = mkOption {
              type = types.listOf types.str;
              default = [ ];
              example = [ "private.>" ];
              description = ''
                Subjects that are not imported from the hub, in addition to `$O.>`, the subjects of object buckets,
                which never cross.
              '';
            };

            denyExports = mkOption {
              type = types.listOf types.str;
              default = [ ];
              example = [ "private.>" ];
              description = ''
                Subjects that are not exported to the hub, in addition to `$O.>`, the subjects of object buckets, which
                never cross.
              '';
            };

            tls = {
              caFile = mkOption {
                type = types.nullOr types.path;
                default = null;
                example = lib.literalExpression "./hub-ca.pem";
                description = ''
                  The CA certificates for the hub's certificate, in PEM; if null, the host's. They are not secret: a
                  file of the configuration.
                '';
              };

              certFile = mkOption (
                secret
                // {
                  example = "/run/keys/leaf.pem";
                  description = "The certificate that this leaf presents to the hub, in PEM. ${where}";
                }
              );

              keyFile = mkOption (
                secret
                // {
                  example = "/run/keys/leaf.key";
                  description = "The key of that certificate, in PEM. ${where}";
                }
              );
            };
          };
        }
      );
    };

    limits = {
      maxConnections = mkOption {
        type = types.ints.positive;
        default = 1024;
        example = 64;
        description = "The number of clients that may be connected at once.";
      };

      maxSubscriptions = mkOption {
        type = types.ints.positive;
        default = 10000;
        example = 1000;
        description = "The number of subscriptions that a connection may have.";
      };

      maxPayloadBytes = mkOption {
        type = types.ints.between 1024 (64 * 1024 * 1024);
        default = 1024 * 1024;
        example = 8 * 1024 * 1024;
        description = "The longest message, in bytes; a leaf needs at least 1 MiB.";
      };

      maxPendingBytes = mkOption {
        type = types.ints.positive;
        default = 64 * 1024 * 1024;
        example = 16 * 1024 * 1024;
        description = ''
          The bytes that may be buffered for a slow connection before it is closed; at least the longest message.
        '';
      };

      writeDeadline = mkOption {
        type = duration;
        default = "10s";
        example = "2s";
        description = "How long a write to a connection may take before it is closed.";
      };
    };

    pingInterval = mkOption {
      type = duration;
      default = "2s";
      example = "20s";
      description = ''
        The interval at which the server pings each connection, including that to its hub. A connection is closed after
        two unanswered pings: with 2 s, a cut link is noticed within 7 s.
      '';
    };

    monitoring.port = mkOption {
      type = types.nullOr types.port;
      default = null;
      example = 8222;
      description = "The port on 127.0.0.1 for the server's HTTP monitoring; if null, monitoring is off.";
    };

    settingsFile = mkOption {
      type = types.path;
      readOnly = true;
      internal = true;
      description = "The configuration that nats-server reads; its build runs `nats-server -t`.";
    };
  };
}
