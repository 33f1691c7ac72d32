# Configurations of nats-server as the module writes them, to be read by nats-server:
#
#   nix-instantiate --eval --strict --json tests/nix/nats/samples.nix --argstr given '{…}'
#
# prints `{"<name>":"<text of nats.conf>",…}`. The values that depend on the machine are passed as JSON: `directory` (the
# directory of the credentials and the storage), `system`, `account`, `accounts` (their JWTs by public key), `address`,
# `port`, `leafnodesPort`, `monitoringPort`, `hub` (its URL), `ca`. It needs no nixpkgs.
{ given }:
let
  of = builtins.fromJSON given;
  render =
    cfg:
    import ../../../nixos-modules/nats/render.nix (
      import ../../../nixos-modules/nats/settings.nix { credentialsDirectory = of.directory; } cfg
    );

  values = import ./values.nix;
  merge = import ../merge.nix;

  base =
    merge values {
      inherit (of) address port;
      dataDir = "${of.directory}/data";
      jetstream.maxFileStoreBytes = 16777216;
    }
    // {
      operator = values.operator // {
        jwtFile = "/run/keys/operator.jwt";
        systemAccount = of.system;
        inherit (of) accounts;
      };
    };
  tls = {
    certFile = "/run/keys/nats.pem";
    keyFile = "/run/keys/nats.key";
    caFile = of.ca;
    verify = true;
  };
  samples = {
    leaf = base;
    full_resolver = merge base { operator.resolver = "full"; };
    durable_and_monitored = merge base {
      jetstream.syncInterval = "always";
      monitoring.port = of.monitoringPort;
    };
    without_jetstream = merge base { jetstream.enable = false; };
    # As in a container, which gets its identity at its start.
    of_the_host = merge base { inherit tls; } // {
      operator = values.operator // {
        jwtFile = "nats.operator.jwt";
        accountsFile = "nats.accounts.conf";
        accounts = { };
      };
    };
    connected = merge base {
      remotes.hub = {
        urls = [ of.hub ];
        inherit (of) account;
        credentialsFile = "/run/keys/hub.creds";
        denyImports = [ ];
        denyExports = [ "private.>" ];
        tls = {
          caFile = of.ca;
          certFile = "/run/keys/leaf.pem";
          keyFile = "/run/keys/leaf.key";
        };
      };
    };
    hub = merge base {
      role = "hub";
      serverName = "hub";
      jetstream.domain = "hub";
      inherit tls;
      leafnodes = {
        enable = true;
        inherit (of) address;
        port = of.leafnodesPort;
      };
    };
  };
in
builtins.mapAttrs (_: render) samples
