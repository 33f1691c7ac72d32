# The assertions of the module. The rules are in checks.nix, where they are tested without a system.
{ config, lib, ... }:
let
  cfg = config.services.cim-nats;
in
{
  assertions = lib.mkIf cfg.enable (
    import ./checks.nix {
      ownNetwork = config.boot.isContainer;
      leaf = config.services.cim-leaf or null;
      mounts = import ../mounts.nix { inherit config lib; };
    } cfg
    ++ [
      {
        assertion = !config.services.nats.enable;
        message = "services.cim-nats.enable: NixOS's own services.nats defines the same unit; enable one of them.";
      }
    ]
  );
}
