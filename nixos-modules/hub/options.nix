# The options of the hub agent: one for each setting of its file, with the same default, and a few for the system.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption mkEnableOption types;
  server = config.services.cim-nats or { enable = false; };

  secretFile = import ../secret-file.nix {
    inherit lib;
    reader = "The agent";
  };
in
{
  options.services.cim-hub = {
    enable = mkEnableOption "leaf-hub, the agent of a hub: it grants leaves their names, and keeps copies of their events and state";

    package = mkOption {
      type = types.package;
      default =
        if options.services ? cim-leaf then
          config.services.cim-leaf.package
        else
          pkgs.cim-leaf
            or (throw "services.cim-hub.package: nixpkgs has no cim-leaf; import nixosModules.default or nixosModules.hub of its flake, add overlays.default, or set this option");
      defaultText = lib.literalExpression "config.services.cim-leaf.package, or pkgs.cim-leaf";
      example = lib.literalExpression "inputs.cim-leaf.packages.x86_64-linux.default";
      description = "The package with leaf-hub.";
    };

    log = mkOption {
      type = types.str;
      default = "info";
      example = "info,leaf_hub=debug";
      description = "The log filter, in the syntax of Rust's `tracing`.";
    };

    nats = {
      url = mkOption {
        type = types.nullOr types.str;
        default = if server.enable && server.role == "hub" then server.url else null;
        defaultText = lib.literalExpression "config.services.cim-nats.url, where its role is hub";
        example = "tls://hub.example:4222";
        description = "The URL of the hub's NATS server. Several are separated by commas.";
      };

      fleetCredentialsFile = secretFile {
        example = "/run/keys/hub-fleet.creds";
        description = ''
          The credentials of the agent's user in the account `FLEET`, which keeps the streams and reads from leaves: a creds
          file, or the seed of an NKEY.
        '';
      };

      linksCredentialsFile = secretFile {
        example = "/run/keys/hub-links.creds";
        description = "The credentials of the agent's user in the account `LINKS`, which answers the requests of leaves.";
      };

      caFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = lib.literalExpression "./hub-ca.pem";
        description = "The CA certificates that the server's certificate is checked with; the system's if null.";
      };

      certFile = secretFile {
        example = "/run/keys/hub-agent.pem";
        description = "The agent's client certificate, if the server requires one.";
      };

      keyFile = secretFile {
        example = "/run/keys/hub-agent.key";
        description = "The key of that certificate.";
      };
    };

    witnessKeyFile = secretFile {
      example = "/run/keys/witness.key";
      description = ''
        The private key (ssh-ed25519 of OpenSSH, without a passphrase) with which the agent confirms, as a witness, changes of leaves that
        can cut them off. Without it the agent confirms none.
      '';
    };

    leaves = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = lib.literalExpression ''{ edge-1 = "UA6H5XGF3KIK74JSL2MKBESR7GEWGX7AUYGIB3TVLGY2YJSL3NED2NTY"; }'';
      description = ''
        The leaves' users, by name: the public key of each one's NKEY, as `leaf-hub key FILE` prints it. `leaf-hub accounts` makes
        the hub's accounts, or the commands of `nsc`, from these.
      '';
    };

    people = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = lib.literalExpression ''{ ann = "UD63DBU4XVVQNKZF5BYU6CVJGQQH5RHO2T563VXEDNYMCOMLEBPWMNTJ"; }'';
      description = "People's users, likewise.";
    };

    copies.maxBytes = mkOption {
      type = types.ints.positive;
      default = 1073741824;
      example = 268435456;
      description = ''
        The limit of each leaf's copy, the stream `EVENTS_<leaf>`, in bytes; new events replace the oldest ones. Each copy counts
        with its full size against the limits of the account and of the server (`max_file`).
      '';
    };

    settingsFile = mkOption {
      type = types.path;
      readOnly = true;
      internal = true;
      description = "The settings file that leaf-hub reads; its build runs `leaf-hub check-config`.";
    };
  };
}
