# The server's identity and access: operator mode, TLS, limits, and the system's users.
#
# The container gets four credentials at its start, from the secrets of its spec. None of them is in the system:
#
#   nats.operator.jwt    the operator's JWT
#   nats.accounts.conf   `system_account`, `resolver` and `resolver_preload`, in nats-server's configuration language
#   nats.tls.pem, nats.tls.key   the certificate and its key
#
# A user's permissions are in the user's JWT, or in the scoped signing key that issued it. In operator mode the server
# has no other place for permissions, and rejects clients without a JWT.
{ lib, ... }:
{
  services.cim-nats = {
    operator = {
      jwtFile = lib.mkDefault "nats.operator.jwt";
      accountsFile = lib.mkDefault "nats.accounts.conf";
    };
    tls = {
      certFile = lib.mkDefault "nats.tls.pem";
      keyFile = lib.mkDefault "nats.tls.key";
    };
    limits = {
      maxConnections = lib.mkDefault 256;
      maxSubscriptions = lib.mkDefault 1000;
    };
  };

  # Nobody logs in or becomes root: the leaf manages the container from outside.
  users.mutableUsers = lib.mkDefault false;
  users.allowNoPasswordLogin = lib.mkDefault true;
  security.sudo.enable = lib.mkDefault false;
  services.openssh.enable = lib.mkDefault false;
  services.getty.autologinUser = lib.mkDefault null;
  networking.firewall.enable = lib.mkDefault true;
}
