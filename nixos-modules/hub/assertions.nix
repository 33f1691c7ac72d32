# The assertions of the module. The rules are in checks.nix, where they are tested without a system.
{ config, lib, ... }:
let
  cfg = config.services.cim-hub;
  server = config.services.cim-nats or { enable = false; };
in
{
  assertions = lib.mkIf cfg.enable (
    import ./checks.nix {
      ownUrls = lib.optional (server.enable && server.role == "hub" && server.addressOnLo) server.url;
    } cfg
  );
}
