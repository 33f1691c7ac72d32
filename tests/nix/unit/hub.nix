# The hub agent's module: its settings file and its assertions.
{ ... }:
let
  render = cfg: import ../../../nixos-modules/leaf/toml.nix (import ../../../nixos-modules/hub/settings.nix cfg);
  checks = import ../../../nixos-modules/hub/checks.nix { };
  values = import ../hub.nix;
  refused =
    change:
    map (check: builtins.head (builtins.match "services\\.cim-hub\\.([^:]*):.*" check.message)) (
      builtins.filter (check: !check.assertion) (checks (values // { nats = values.nats // change; }))
    );
in
{
  "the options render this file" = {
    expr = render values;
    expected = ''
      log = "info"

      [copies]
      max_bytes = 1073741824

      [leaves]

      [nats]
      fleet_credentials = "/run/credentials/leaf-hub.service/fleet.creds"
      links_credentials = "/run/credentials/leaf-hub.service/links.creds"
      url = "nats://127.0.0.1:4222"

      [people]
    '';
  };
  "the options are accepted" = {
    expr = refused { };
    expected = [ ];
  };
  "each missing or wrong value is refused by its name" = {
    expr = {
      url = refused { url = null; };
      plain = refused { url = "nats://hub.example:4222"; };
      user = refused { url = "tls://me:secret@hub.example"; };
      fleet = refused { fleetCredentialsFile = null; };
      links = refused { linksCredentialsFile = null; };
      same = refused { linksCredentialsFile = values.nats.fleetCredentialsFile; };
      store = refused { fleetCredentialsFile = "/nix/store/00000000000000000000000000000000-a.creds"; };
      relative = refused { linksCredentialsFile = "a.creds"; };
      witness = map (check: builtins.head (builtins.match "services\\.cim-hub\\.([^:]*):.*" check.message)) (
        builtins.filter (check: !check.assertion) (
          checks (values // { witnessKeyFile = "/nix/store/00000000000000000000000000000000-witness.key"; })
        )
      );
      key = refused { certFile = "/run/keys/a.pem"; };
      size = map (check: check.message) (builtins.filter (check: !check.assertion) (checks (values // { copies.maxBytes = 7; })));
    };
    expected = {
      url = [ "nats.url" ];
      plain = [ "nats.url" ];
      user = [ "nats.url" ];
      fleet = [ "nats.fleetCredentialsFile" ];
      links = [ "nats.linksCredentialsFile" ];
      same = [ "nats.linksCredentialsFile" ];
      store = [ "nats.fleetCredentialsFile" ];
      relative = [ "nats.linksCredentialsFile" ];
      witness = [ "witnessKeyFile" ];
      key = [ "nats" ];
      size = [ "services.cim-hub.copies.maxBytes: must be at least 1048576 (1 MiB)." ];
    };
  };
}
