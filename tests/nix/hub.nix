# The values of all options of services.cim-hub beside the hub's NATS server, for tests without modules.
{
  package = "/nix/store/00000000000000000000000000000000-cim-leaf";
  log = "info";
  nats = {
    url = "nats://127.0.0.1:4222";
    fleetCredentialsFile = "/run/keys/hub-fleet.creds";
    linksCredentialsFile = "/run/keys/hub-links.creds";
    caFile = null;
    certFile = null;
    keyFile = null;
  };
  witnessKeyFile = null;
  copies.maxBytes = 1073741824;
  leaves = { };
  people = { };
}
