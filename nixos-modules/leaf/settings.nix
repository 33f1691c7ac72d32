# Returns leafd's settings (an attribute set in the shape of `leafd.toml`) for the options' values.
#
# Pure: it needs neither nixpkgs nor a system. The unit tests compare the resulting text.
cfg:
let
  credential = name: file: if file == null then null else "/run/credentials/leafd.service/${name}";
  containerHours = if cfg.containers.enable then cfg.nats.containerHours else null;
  text = value: if value == null then null else "${value}";
  # A path in the store is copied under the name that a flake's input has there, so that the two are one.
  source = tree: if builtins.isPath tree then builtins.path { path = tree; name = "source"; } else tree;
  searchPath = if cfg.nix.nixpkgs == null then { } else { nix-path = "nixpkgs=${source cfg.nix.nixpkgs}"; };
in
{
  inherit (cfg) name log;
  state_dir = cfg.stateDir;
  labels = if cfg.labels == { } then null else cfg.labels;

  nats =
    if cfg.nats.embedded.enable then
      {
        embedded = {
          program = "${cfg.nats.embedded.package}/bin/nats-server";
          inherit (cfg.nats.embedded) address port;
          max_storage_bytes = cfg.nats.embedded.maxStorageBytes;
          admin_hours = cfg.nats.embedded.adminHours;
          hub =
            if cfg.nats.embedded.hub.url == null then
              null
            else
              {
                inherit (cfg.nats.embedded.hub) url;
                credentials = credential "hub.creds" cfg.nats.embedded.hub.credentialsFile;
                ca = text cfg.nats.embedded.hub.caFile;
              };
        };
        container_hours = containerHours;
        jetstream_domain = cfg.nats.jetstreamDomain;
      }
    else
      {
        inherit (cfg.nats) url;
        credentials = credential "nats.creds" cfg.nats.credentialsFile;
        stream_credentials = credential "nats-streams.creds" cfg.nats.streamCredentialsFile;
        container_signing_key = credential "nats-containers.seed" cfg.nats.containerSigningKeyFile;
        containers_port = if cfg.containers.enable then cfg.nats.containersPort else null;
        container_hours = containerHours;
        ca = text cfg.nats.caFile;
        cert = credential "nats.pem" cfg.nats.certFile;
        key = credential "nats.key" cfg.nats.keyFile;
        jetstream_domain = cfg.nats.jetstreamDomain;
      };

  events = {
    max_bytes = cfg.events.maxBytes;
    backlog_bytes = cfg.events.backlogBytes;
    reserve_bytes = cfg.events.reserveBytes;
    snapshot_every = cfg.events.snapshotEvery;
  };

  hardware = {
    facter_report = text cfg.hardware.facterReport;
    facter_program = cfg.hardware.facterProgram;
    rescan_debounce_ms = cfg.hardware.rescanDebounceMs;
  };

  containers = {
    inherit (cfg.containers) enable;
    address_pool = cfg.containers.addressPool;
    ready_timeout_seconds = cfg.containers.readyTimeoutSeconds;
    stop_timeout_seconds = cfg.containers.stopTimeoutSeconds;
    network_check_seconds = cfg.containers.networkCheckSeconds;
    helper = "${cfg.package}/bin/leaf-helper";
    templates = text cfg.containers.templates;
    # From its own package where there is one, so that containers don't depend on the whole package.
    leaf_init = "${cfg.package.leaf-init or cfg.package}/bin/leaf-init";
  };

  nix = {
    program = "${cfg.nix.package}/bin/nix";
    max_jobs = cfg.nix.maxJobs;
    max_queued_jobs = cfg.nix.maxQueuedJobs;
    timeout_seconds = cfg.nix.timeoutSeconds;
    eval_memory_mib = cfg.nix.evalMemoryMib;
    min_free_bytes = cfg.nix.minFreeBytes;
    max_upload_bytes = cfg.nix.maxUploadBytes;
    features = if cfg.nix.features == { } then null else cfg.nix.features;
    room = {
      cpu_percent = cfg.nix.room.cpuPercent;
      memory_percent = cfg.nix.room.memoryPercent;
      io_percent = cfg.nix.room.ioPercent;
    };
    options = searchPath // cfg.nix.options;
    policy = {
      unlocked_references = cfg.nix.policy.unlockedReferences;
      inherit (cfg.nix.policy) impure;
      import_from_derivation = cfg.nix.policy.importFromDerivation;
      allowed_uris = cfg.nix.policy.allowedUris;
      host_paths = cfg.nix.policy.hostPaths;
    };
  };

  # Without a value that differs from leafd's own, the table is left out.
  trust =
    let
      trust = {
        allowed_signers = text cfg.trust.allowedSignersFile;
        allowed_openpgp = text cfg.trust.allowedOpenpgpFile;
        revoked_signers = text cfg.trust.revokedSignersFile;
        clock = if cfg.trust.clock == "auto" then null else cfg.trust.clock;
        require_signature = cfg.trust.requireSignature;
        callers = if cfg.trust.callers == { } then null else cfg.trust.callers;
      };
    in
    if builtins.all (value: value == null) (builtins.attrValues trust) then null else trust;
}
