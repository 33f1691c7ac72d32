# Returns nats-server's configuration (an attribute set under nats-server's own names) for the values of the options;
# `folder` is where the credentials are when the server runs. render.nix makes the text of it.
#
# Pure: it needs neither nixpkgs nor a system. The unit tests hold what comes of it, and nats-server itself is asked.
{ folder }:
cfg:
let
  inherit (builtins) attrNames map removeAttrs;
  inherit (import ./paths.nix) inStore;

  # Without what is null.
  set = values: removeAttrs values (builtins.filter (name: values.${name} == null) (attrNames values));
  text = file: if file == null then null else "${file}";
  credential = name: file: if file == null then null else if inStore file then "${file}" else "${folder}/${name}";

  tls =
    if cfg.tls.certFile == null then
      null
    else
      set {
        cert_file = credential "tls.pem" cfg.tls.certFile;
        key_file = credential "tls.key" cfg.tls.keyFile;
        ca_file = text cfg.tls.caFile;
        inherit (cfg.tls) verify;
      };

  # Object buckets publish to `$O.…` without a domain: every server that has such a bucket would store it.
  objects = [ "$O.>" ];
  remote =
    name:
    let
      of = cfg.remotes.${name};
      ofTls = set {
        cert_file = credential "${name}.pem" of.tls.certFile;
        key_file = credential "${name}.key" of.tls.keyFile;
        ca_file = text of.tls.caFile;
      };
    in
    set {
      inherit (of) urls account;
      credentials = credential "${name}.creds" of.credentialsFile;
      deny_imports = objects ++ of.denyImports;
      deny_exports = objects ++ of.denyExports;
      tls = if ofTls == { } then null else ofTls;
    };
  remotes = map remote (attrNames cfg.remotes);

  listener =
    if cfg.leafnodes.enable then
      set {
        host = cfg.leafnodes.address;
        inherit (cfg.leafnodes) port;
        # Addresses of this host that a leaf was not told of are not for it.
        no_advertise = true;
        inherit tls;
      }
    else
      { };
  leafnodes = listener // (if remotes == [ ] then { } else { inherit remotes; });

  accounts =
    if cfg.operator.accountsFile != null then
      # Both are read when the server starts; without either it does not start.
      { include = credential "accounts.conf" cfg.operator.accountsFile; }
    else
      {
        system_account = cfg.operator.systemAccount;
        resolver =
          if cfg.operator.resolver == "memory" then
            "MEMORY"
          else
            {
              type = "full";
              dir = "${cfg.dataDir}/accounts";
              # A deleted account is kept, renamed, so that a mistake can be undone.
              allow_delete = true;
              interval = "2m";
            };
        resolver_preload = if cfg.operator.accounts == { } then null else cfg.operator.accounts;
      };
in
set (
  {
    server_name = cfg.serverName;
    host = cfg.address;
    inherit (cfg) port;
    inherit tls;
    http = if cfg.monitoring.port == null then null else "127.0.0.1:${toString cfg.monitoring.port}";

    operator = credential "operator.jwt" cfg.operator.jwtFile;

    jetstream =
      if cfg.jetstream.enable then
        {
          inherit (cfg.jetstream) domain;
          store_dir = "${cfg.dataDir}/jetstream";
          max_file_store = cfg.jetstream.maxFileStoreBytes;
          max_memory_store = cfg.jetstream.maxMemoryStoreBytes;
          sync_interval = cfg.jetstream.syncInterval;
        }
      else
        null;

    leafnodes = if leafnodes == { } then null else leafnodes;

    max_connections = cfg.limits.maxConnections;
    max_subscriptions = cfg.limits.maxSubscriptions;
    max_payload = cfg.limits.maxPayloadBytes;
    max_pending = cfg.limits.maxPendingBytes;
    write_deadline = cfg.limits.writeDeadline;
    ping_interval = cfg.pingInterval;
    ping_max = 2;
  }
  // accounts
)
