# Returns the agent's settings (an attribute set in the shape of its file) for the options' values.
#
# Pure: it needs neither nixpkgs nor a system. The unit tests compare the resulting text.
cfg:
let
  credential = name: file: if file == null then null else "/run/credentials/leaf-hub.service/${name}";
in
{
  inherit (cfg) log;
  witness_key = credential "witness.key" cfg.witnessKeyFile;
  nats = {
    inherit (cfg.nats) url;
    fleet_credentials = credential "fleet.creds" cfg.nats.fleetCredentialsFile;
    links_credentials = credential "links.creds" cfg.nats.linksCredentialsFile;
    ca = if cfg.nats.caFile == null then null else "${cfg.nats.caFile}";
    cert = credential "nats.pem" cfg.nats.certFile;
    key = credential "nats.key" cfg.nats.keyFile;
  };
  copies.max_bytes = cfg.copies.maxBytes;
  inherit (cfg) leaves people;
}
