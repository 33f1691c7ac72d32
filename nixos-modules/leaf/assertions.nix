# The assertions of the module. The rules are in checks.nix, where they are tested without a system.
{ config, lib, ... }:
let
  cfg = config.services.cim-leaf;
in
{
  assertions = lib.mkIf cfg.enable (import ./checks.nix cfg);
}
