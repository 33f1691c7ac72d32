# The options of the NATS server. settings.nix turns their values into its configuration.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption mkEnableOption types;
  cfg = config.services.cim-nats;

  # Named, never read: a Nix path literal would be copied into the store, where all may read it.
  secret = {
    type = types.nullOr types.str;
    default = null;
  };
  where =
    "It is an absolute path outside of the Nix store, or in a container the name of a credential that the container gets "
    + "at its start. It reaches the server as a systemd credential, read when the unit starts.";

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
        What the server is. A `leaf` serves one host and its containers, and connects to its hubs
        ({option}`services.cim-nats.remotes`). A `hub` listens for leaves ({option}`services.cim-nats.leafnodes`).
      '';
    };

    serverName = mkOption {
      type = types.str;
      default = lib.toLower config.networking.hostName;
      defaultText = lib.literalExpression "lib.toLower config.networking.hostName";
      example = "edge-1";
      description = "The name of the server, unlike that of every other server that it can reach.";
    };

    address = mkOption {
      type = types.str;
      default = if cfg.role == "leaf" then "10.233.0.1" else "127.0.0.1";
      defaultText = lib.literalExpression ''if config.services.cim-nats.role == "leaf" then "10.233.0.1" else "127.0.0.1"'';
      example = "10.233.0.1";
      description = ''
        The one IP address that clients connect to. On a leaf it is the leaf's own, which containers reach through their
        veth. To listen on all addresses is refused, except in a container, which has a network of its own.
      '';
    };

    addressOnLo = mkOption {
      type = types.bool;
      default = cfg.role == "leaf" && !lib.hasPrefix "127." cfg.address;
      defaultText = lib.literalExpression ''role == "leaf" && !lib.hasPrefix "127." address'';
      example = false;
      description = ''
        Whether the unit puts the address on the interface `lo` before it starts the server. Such an address does not leave
        the host, so its listener needs no TLS.
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
      defaultText = lib.literalMD "the containers' veths where the address is on `lo`, else none";
      example = [ "wg0" ];
      description = ''
        The interfaces from which the host's firewall lets clients and leaves connect. What else a container may reach is
        the leaf's own rule.
      '';
    };

    url = mkOption {
      type = types.str;
      readOnly = true;
      default = import ./url.nix cfg;
      defaultText = lib.literalMD "made of the address and the port";
      example = "nats://10.233.0.1:4222";
      description = "The URL at which clients on this host find the server.";
    };

    dataDir = mkOption {
      type = types.str;
      default = "/var/lib/nats";
      example = "/persist/nats";
      description = "The folder with all that must not be lost: what JetStream stores, and the resolver's accounts.";
    };

    operator = {
      jwtFile = mkOption {
        type = types.nullOr (types.either types.path types.str);
        default = null;
        example = lib.literalExpression "./operator.jwt";
        description = ''
          The file with the operator's JWT, which is no secret: a file of the configuration, with which the build checks the
          server's configuration. Where the operator is made on the host it is an absolute path outside of the store or a
          credential's name, as a secret's. There is no server without an operator.
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
          The JWTs of the accounts that the server knows from its start, by public key, the system account's among them. A
          JWT of an account is no secret.
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
          How the server knows accounts. `memory`: those of {option}`services.cim-nats.operator.accounts`, and no other.
          `full`: it keeps them in a folder below {option}`services.cim-nats.dataDir`, and takes new and changed ones from the
          system account (`nsc push`).
        '';
      };

      accountsFile = mkOption (
        secret
        // {
          example = "/run/keys/nats-accounts.conf";
          description = ''
            A file on the host in place of the three options above, for accounts that are made there: in nats-server's own
            language, with `system_account`, `resolver` and `resolver_preload`. ${where}
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
        description = "The authorities of the certificates that clients and leaves show, in PEM. They are no secret: a file of the configuration.";
      };

      verify = mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = ''
          Whether clients and leaves must show a certificate of {option}`services.cim-nats.tls.caFile`, beside their JWT.
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
        description = "The JetStream domain, unlike that of every server that it connects to or that connects to it.";
      };

      maxFileStoreBytes = mkOption {
        type = types.ints.positive;
        default = 8 * 1024 * 1024 * 1024;
        example = 64 * 1024 * 1024 * 1024;
        description = "How much JetStream may store on the disk, in bytes.";
      };

      maxMemoryStoreBytes = mkOption {
        type = types.ints.positive;
        default = 64 * 1024 * 1024;
        example = 512 * 1024 * 1024;
        description = "How much JetStream may store in memory, in bytes.";
      };

      syncInterval = mkOption {
        type = types.either (types.enum [ "always" ]) duration;
        default = "1s";
        example = "always";
        description = ''
          How long an acknowledged message may be only in the kernel's memory, and so be lost when the power is cut. With
          `always` none is, at a tenth to a twentieth of the throughput. Events of a leaf need it not: its journal has them.
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
        description = "The one IP address that leaves connect to.";
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
      description = "The hubs that this server connects to as a leaf, by a name of this host's own.";
      type = types.attrsOf (
        types.submodule {
          options = {
            urls = mkOption {
              type = types.nonEmptyListOf types.str;
              example = [ "tls://hub.example:7422" ];
              description = "The servers of the hub, one of which it connects to.";
            };

            account = mkOption {
              type = types.str;
              example = "AAYX4FE5KAD6U7LPQBHCMRIWTIGRR27ZNX6DN2HJZZWNGBD6KX6UKNUV";
              description = "The public key of this server's account that the hub is bound to.";
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
              description = "Subjects that the hub's messages may not have here, beside `$O.>`, that of object buckets, which never crosses.";
            };

            denyExports = mkOption {
              type = types.listOf types.str;
              default = [ ];
              example = [ "private.>" ];
              description = "Subjects that never go to the hub, beside `$O.>`, that of object buckets, which never crosses.";
            };

            tls = {
              caFile = mkOption {
                type = types.nullOr types.path;
                default = null;
                example = lib.literalExpression "./hub-ca.pem";
                description = ''
                  The authorities of the hub's certificate, in PEM; without it, the host's. They are no secret: a file of the
                  configuration.
                '';
              };

              certFile = mkOption (
                secret
                // {
                  example = "/run/keys/leaf.pem";
                  description = "The certificate that this leaf shows to the hub, in PEM. ${where}";
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
        description = "How many clients may be connected at once.";
      };

      maxSubscriptions = mkOption {
        type = types.ints.positive;
        default = 10000;
        example = 1000;
        description = "How many subscriptions a connection may have.";
      };

      maxPayloadBytes = mkOption {
        type = types.ints.between 1024 (64 * 1024 * 1024);
        default = 1024 * 1024;
        example = 8 * 1024 * 1024;
        description = "How long a message may be, in bytes; less than 1 MiB is too little for a leaf.";
      };

      maxPendingBytes = mkOption {
        type = types.ints.positive;
        default = 64 * 1024 * 1024;
        example = 16 * 1024 * 1024;
        description = "How much may wait for a connection that does not read, in bytes, before it is closed; at least the longest message.";
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
        How often the server asks each connection, that to its hub among them, whether it is still there. After two
        unanswered questions it is closed: with 2 s, a cut link is noticed within 7 s.
      '';
    };

    monitoring.port = mkOption {
      type = types.nullOr types.port;
      default = null;
      example = 8222;
      description = "The port on 127.0.0.1 for the server's monitoring over HTTP; without one there is none.";
    };

    settingsFile = mkOption {
      type = types.path;
      readOnly = true;
      internal = true;
      description = "The configuration as nats-server reads it; the build of it runs nats-server's own check.";
    };
  };
}
