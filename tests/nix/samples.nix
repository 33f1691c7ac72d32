# Settings files as the module writes them, to be checked with the daemon:
#
#   nix-instantiate --eval --strict --json tests/nix/samples.nix
#
# prints `{"<name>":"<text of leafd.toml>",…}`; `leafd check-config` must accept each. This finds differences between
# module and daemon where no system can be built. It needs no nixpkgs.
let
  render = cfg: import ../../nixos-modules/leaf/toml.nix (import ../../nixos-modules/leaf/settings.nix cfg);
  values = import ./values.nix;
  merge = import ./merge.nix;
  samples = {
    embedded = values;
    containers = merge values {
      containers.enable = true;
      hardware.facterReport = "/etc/nixos/facter.json";
      hardware.facterProgram = "/run/current-system/sw/bin/nixos-facter";
      nats.embedded.address = "10.233.0.1";
      nats.embedded.maxStorageBytes = 1073741824;
      nats.jetstreamDomain = "edge-1";
      nix.options.substituters = "";
    };
    hub = merge values { nats = import ./external.nix; };
    fleet = merge values {
      nats.embedded.hub.url = "tls://hub.example:7422";
      nats.embedded.hub.credentialsFile = "/run/keys/hub.creds";
      nats.embedded.hub.caFile = "/etc/hub-ca.pem";
    };
  };
in
builtins.mapAttrs (_: render) samples
