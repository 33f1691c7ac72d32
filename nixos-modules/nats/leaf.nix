# Makes the daemon on the same host use this server, where the daemon's module is imported and sets no other one:
#
#   services.cim-nats = { enable = true; operator = { … }; };
#   services.cim-leaf = { enable = true; nats.credentialsFile = "/run/keys/leafd.creds"; };
{
  config,
  lib,
  options,
  ...
}:
let
  cfg = config.services.cim-nats;
in
{
  config = lib.optionalAttrs (options.services ? cim-leaf) (
    lib.mkIf (cfg.enable && cfg.role == "leaf" && config.services.cim-leaf.enable) {
      services.cim-leaf.nats = {
        url = lib.mkDefault cfg.url;
        jetstreamDomain = lib.mkIf cfg.jetstream.enable (lib.mkDefault cfg.jetstream.domain);
      };
      # leafd works without the server as well, so it wants the unit and does not require it.
      systemd.services.leafd = {
        wants = [ "nats.service" ];
        after = [ "nats.service" ];
      };
    }
  );
}
