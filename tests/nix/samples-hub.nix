# Settings files of the hub agent as its module writes them, to be checked with the agent: see samples.nix.
#
#   nix-instantiate --eval --strict --json tests/nix/samples-hub.nix
#
# `leaf-hub check-config` must accept each.
let
  render = cfg: import ../../nixos-modules/leaf/toml.nix (import ../../nixos-modules/hub/settings.nix cfg);
  values = import ./hub.nix;
  merge = import ./merge.nix;
in
builtins.mapAttrs (_: render) {
  beside = values;
  elsewhere = merge values {
    log = "info,leaf_hub=debug";
    nats = {
      url = "tls://a.example:4222,tls://b.example:4222";
      caFile = "/etc/hub-ca.pem";
      certFile = "/run/keys/hub-agent.pem";
      keyFile = "/run/keys/hub-agent.key";
    };
    witnessKeyFile = "/run/keys/witness.key";
    copies.maxBytes = 268435456;
    leaves.edge-1 = "UA6H5XGF3KIK74JSL2MKBESR7GEWGX7AUYGIB3TVLGY2YJSL3NED2NTY";
    people.ann = "UD63DBU4XVVQNKZF5BYU6CVJGQQH5RHO2T563VXEDNYMCOMLEBPWMNTJ";
  };
}
