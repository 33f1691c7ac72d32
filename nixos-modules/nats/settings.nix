# Returns nats-server's configuration (an attribute set with nats-server's own names) for the options' values;
# `credentialsDirectory` is where the credentials are when the server runs. render.nix turns the result into text.
#
# Pure: it needs neither nixpkgs nor a system. The unit tests compare the result, and nats-server itself checks it.
{ credentialsDirectory }:
cfg:
let
  inherit (builtins) attrNames map removeAttrs;
  inherit (import ./paths.nix) inStore;

  # The attribute set without null values.
  set = values: removeAttrs values (builtins.filter (name: values.${name} == null) (attrNames values));
  text = file: if file == null then null else "${file}";
  credential = name: file: if file == null then null else if inStore file then "${file}" else "${credentialsDirectory}/${name}";

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

  # Clients publish to object buckets on `$O.…` without a domain, so every server with such a bucket would store the
  # message.
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
        # One leaf hears nothing of another's subscriptions: it could feign a loop and cut the other off.
        isolate_leafnode_interest = true;
        host = cfg.leafnodes.address;
        inherit (cfg.leafnodes) port;
        inherit tls;
      }
    else
      { };
  leafnodes = listener // (if remotes == [ ] then { } else { inherit remotes; });

  accounts =
    if cfg.operator.accountsFile != null then
      # The server reads both when it starts, and does not start if one is missing.
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
              # An account that is deleted takes its revocations with it, and comes back from an older preload without them.
              allow_delete = false;
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
