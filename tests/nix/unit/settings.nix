{ ... }:
let
  render = cfg: import ../../../nixos-modules/leaf/toml.nix (import ../../../nixos-modules/leaf/settings.nix cfg);
  settings = import ../../../nixos-modules/leaf/settings.nix;
  values = import ../values.nix;
  given = import ../merge.nix values { nats = import ../external.nix // { jetstreamDomain = "edge-1"; }; };
in
{
  "who may sign, and what must be signed" = {
    expr =
      (settings (
        import ../merge.nix values {
          trust = {
            allowedSignersFile = "/etc/cim-leaf/allowed_signers";
            allowedOpenpgpFile = "/etc/cim-leaf/allowed_openpgp";
            clock = "untrusted";
            requireSignature = [
              "runs-code"
              "cuts-off"
              "container.*"
            ];
            callers.ann = [ "runs-code" ];
          };
        }
      )).trust;
    expected = {
      allowed_signers = "/etc/cim-leaf/allowed_signers";
      allowed_openpgp = "/etc/cim-leaf/allowed_openpgp";
      revoked_signers = null;
      clock = "untrusted";
      require_signature = [
        "runs-code"
        "cuts-off"
        "container.*"
      ];
      callers.ann = [ "runs-code" ];
    };
  };

  "the defaults render this file" = {
    expr = render values;
    expected = ''
      log = "info"
      name = "edge-1"
      state_dir = "/var/lib/cim-leaf"

      [containers]
      address_pool = "10.233.0.0/16"
      enable = false
      helper = "/nix/store/00000000000000000000000000000000-cim-leaf/bin/leaf-helper"
      leaf_init = "/nix/store/00000000000000000000000000000000-cim-leaf/bin/leaf-init"
      network_check_seconds = 300
      ready_timeout_seconds = 60
      stop_timeout_seconds = 30
      templates = "/nix/store/00000000000000000000000000000000-cim-leaf/share/cim-leaf/containers"

      [events]
      backlog_bytes = 268435456
      max_bytes = 1073741824
      reserve_bytes = 33554432
      snapshot_every = 10000

      [hardware]
      rescan_debounce_ms = 500

      [nats.embedded]
      admin_hours = 24
      max_storage_bytes = 0
      port = 4222
      program = "/nix/store/00000000000000000000000000000000-nats-server/bin/nats-server"

      [nix]
      eval_memory_mib = 4096
      max_jobs = 2
      max_queued_jobs = 100
      max_upload_bytes = 4294967296
      min_free_bytes = 268435456
      program = "/nix/store/00000000000000000000000000000000-nix/bin/nix"
      timeout_seconds = 7200

      [nix.options]
      nix-path = "nixpkgs=/nix/store/00000000000000000000000000000000-source"

      [nix.policy]
      host_paths = ["/"]
      import_from_derivation = true
      impure = false
      unlocked_references = true

      [nix.room]
      cpu_percent = 75
      io_percent = 75
      memory_percent = 20
    '';
  };
  "labels become a table, and keys that are no bare ones are quoted" = {
    expr =
      let
        labels = {
          site = "hall \"2\"";
          "example.org/rack" = "7";
        };
      in
      {
        given = (builtins.fromTOML (render (values // { inherit labels; }))).labels;
        none = (settings values).labels;
      };
    expected = {
      given = {
        site = "hall \"2\"";
        "example.org/rack" = "7";
      };
      none = null;
    };
  };
  "an external server has its credentials in systemd's directory, and there is no embedded one" = {
    expr = (settings given).nats;
    expected = {
      url = "tls://hub.example:4222";
      credentials = "/run/credentials/leafd.service/nats.creds";
      stream_credentials = "/run/credentials/leafd.service/nats-streams.creds";
      container_signing_key = "/run/credentials/leafd.service/nats-containers.seed";
      containers_port = null;
      container_hours = null;
      ca = "/etc/hub-ca.pem";
      cert = "/run/credentials/leafd.service/nats.pem";
      key = "/run/credentials/leafd.service/nats.key";
      jetstream_domain = "edge-1";
    };
  };
  "the life of containers' credentials is set beside both kinds of NATS, where there are containers" = {
    expr =
      let
        hours =
          of:
          (settings (
            of
            // {
              nats = of.nats // {
                containerHours = 8;
              };
              containers = of.containers // {
                enable = true;
              };
            }
          )).nats.container_hours;
      in
      [
        (hours values)
        (hours given)
        (settings values).nats.container_hours
      ];
    expected = [
      8
      8
      null
    ];
  };
  "the sources of secrets are not in the settings" = {
    expr = builtins.match ".*/run/secrets.*" (builtins.replaceStrings [ "\n" ] [ " " ] (render given));
    expected = null;
  };
  "Nix options are passed unchanged" = {
    expr =
      (builtins.fromTOML (
        render (
          values
          // {
            nix = values.nix // {
              options = {
                substituters = "";
                nix-path = "nixpkgs=/srv/nixpkgs";
              };
            };
          }
        )
      )).nix.options;
    expected = {
      substituters = "";
      nix-path = "nixpkgs=/srv/nixpkgs";
    };
  };
  "without a nixpkgs, jobs have no search path of the module's" = {
    expr = (settings (values // { nix = values.nix // { nixpkgs = null; }; })).nix.options;
    expected = { };
  };
  "a nixpkgs that is a path has one name in the store" = {
    expr =
      let
        path = (settings (values // { nix = values.nix // { nixpkgs = ../nats; }; })).nix.options.nix-path;
      in
      builtins.match "nixpkgs=${builtins.storeDir}/[a-z0-9]{32}-source" path != null;
    expected = true;
  };
}
