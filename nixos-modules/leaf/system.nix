# Returns what a system says of its leaf to the helper that is to switch to it: `/etc/cim-leaf/system.json`.
#
# Pure, as settings.nix.
cfg: {
  # Of the mechanism of switches (docs/decisions/0029).
  version = 1;
  # The newest format of the journal that its leafd reads; a test compares it with leaf-journal's.
  journal_format = 1;
  leaf = cfg.name;
  inherit (cfg.system) switch;
  healthy_units = cfg.system.healthyUnits;
}
