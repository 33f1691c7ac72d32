# Returns leaf-helper's settings (an attribute set in the shape of `helper.toml`) for the options' values and the
# system's packages `{ systemd, nftables, git }`.
#
# Pure, as settings.nix.
cfg: programs: {
  leaf = cfg.name;
  client = "leafd";
  leaf_init = "${cfg.package.leaf-init or cfg.package}/bin/leaf-init";
  address_pool = cfg.containers.addressPool;
  nspawn = "${programs.systemd}/bin/systemd-nspawn";
  nft = "${programs.nftables}/bin/nft";
  bind_folders = cfg.containers.bindFolders;
  secret_folders = cfg.containers.secretFolders;
  host_users = cfg.containers.hostUsers;
  inherit (cfg) witnesses;
  system = {
    inherit (cfg.system) switch;
    healthy_units = cfg.system.healthyUnits;
    reboot_as_last_resort = cfg.system.rebootAsLastResort;
    keep_generations = cfg.system.keepGenerations;
    keep_days = cfg.system.keepDays;
  };
  jobs = {
    program = "${cfg.package}/bin/leafd";
    path = "${cfg.nix.package}/bin:${programs.git}/bin";
  };
}
