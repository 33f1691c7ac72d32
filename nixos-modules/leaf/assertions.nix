# What must hold between the options. The rules are in checks.nix, where they can be tested without a system.
{ config, lib, ... }:
let
  cfg = config.services.cim-leaf;
in
{
  assertions = lib.mkIf cfg.enable (import ./checks.nix cfg);
}
