# The assertions of the module. The rules are in checks.nix and host-checks.nix, where they are tested without a system.
{ config, lib, ... }:
let
  cfg = config.services.cim-leaf;
  # The server of nixos-modules/nats, where that is imported.
  server = config.services.cim-nats or { enable = false; };
  overlay = config.system.etc.overlay or { enable = false; };
  job = config.users.users.leaf-job;
in
{
  assertions = lib.mkIf cfg.enable (
    import ./checks.nix {
      ownUrls = lib.optional (server.enable && server.role == "leaf" && server.addressOnLo) server.url;
    } cfg
    ++ import ./host-checks.nix {
      nixEnabled = config.nix.enable;
      nixUsers = config.nix.settings.allowed-users ++ config.nix.settings.trusted-users;
      jobGroups =
        [ job.group ]
        ++ job.extraGroups
        ++ lib.attrNames (lib.filterAttrs (_: group: lib.elem "leaf-job" group.members) config.users.groups);
      etcIsMutable = !overlay.enable || overlay.mutable;
      mounts = import ../mounts.nix { inherit config lib; };
      otherNatsPort = if config.services.nats.enable then config.services.nats.port else null;
    } cfg
  );
}
