# The options of services.cim-leaf.nats for a server that is not the leaf's own.
{
  embedded.enable = false;
  url = "tls://hub.example:4222";
  credentialsFile = "/run/secrets/leafd.creds";
  streamCredentialsFile = "/run/secrets/leafd-streams.creds";
  containerSigningKeyFile = "/run/secrets/leafd-containers.seed";
  caFile = "/etc/hub-ca.pem";
  certFile = "/run/secrets/leafd.pem";
  keyFile = "/run/secrets/leafd.key";
}
