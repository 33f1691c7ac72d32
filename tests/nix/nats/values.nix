# The values of all options of services.cim-nats on a leaf that sets only the required ones, for tests without modules.
# operator.jwt and system.jwt beside this file are public; the keys that signed them no longer exist.
{
  enable = true;
  package = "/nix/store/00000000000000000000000000000000-nats-server";
  role = "leaf";
  serverName = "edge-1";
  address = "10.233.0.1";
  addressOnLo = true;
  port = 4222;
  firewallInterfaces = [ "ve-+" ];
  url = "nats://10.233.0.1:4222";
  dataDir = "/var/lib/nats";
  operator = {
    jwtFile = "/nix/store/00000000000000000000000000000000-operator.jwt";
    systemAccount = "AAYX4FE5KAD6U7LPQBHCMRIWTIGRR27ZNX6DN2HJZZWNGBD6KX6UKNUV";
    accounts.AAYX4FE5KAD6U7LPQBHCMRIWTIGRR27ZNX6DN2HJZZWNGBD6KX6UKNUV = builtins.readFile ./system.jwt;
    resolver = "memory";
    accountsFile = null;
  };
  tls = {
    certFile = null;
    keyFile = null;
    caFile = null;
    verify = false;
  };
  jetstream = {
    enable = true;
    domain = "edge-1";
    maxFileStoreBytes = 8589934592;
    maxMemoryStoreBytes = 67108864;
    syncInterval = "1s";
  };
  leafnodes = {
    enable = false;
    address = "10.233.0.1";
    port = 7422;
  };
  remotes = { };
  limits = {
    maxConnections = 1024;
    maxSubscriptions = 10000;
    maxPayloadBytes = 1048576;
    maxPendingBytes = 67108864;
    writeDeadline = "10s";
  };
  pingInterval = "2s";
  monitoring.port = null;
}
