# What a leaf's system is made of, beside the daemon: today, what its nixos-facter report says. `facts.nix` says what that
# is; here it becomes suggestions, which every setting of the host's own overrides.
{
  config,
  lib,
  options,
  ...
}:
let
  cfg = config.cim.host;
  facts = import ./facts.nix (lib.importJSON cfg.facterReport);
  suggest = lib.mapAttrsRecursive (_: lib.mkDefault);
in
{
  options.cim.host.facterReport = lib.mkOption {
    type = lib.types.nullOr lib.types.path;
    default = null;
    example = lib.literalExpression "./facter.json";
    description = ''
      The report that nixos-facter wrote on this host. It reaches nixpkgs' `hardware.facter` (where nixpkgs has that),
      the daemon's inventory, and what else follows from the hardware: drivers to boot, services for what is there.
    '';
  };

  config = lib.mkMerge [
    (lib.optionalAttrs (options.hardware ? facter) {
      hardware.facter.reportPath = lib.mkIf (cfg.facterReport != null) (lib.mkDefault cfg.facterReport);
    })
    (lib.optionalAttrs (options.services ? cim-leaf) {
      services.cim-leaf.hardware.facterReport = lib.mkIf (cfg.facterReport != null) (lib.mkDefault cfg.facterReport);
    })
    (lib.mkIf (cfg.facterReport != null) {
      boot.initrd = { inherit (facts.boot.initrd) availableKernelModules; };
      services = {
        smartd = suggest facts.services.smartd;
        pcscd = suggest facts.services.pcscd;
        fwupd = suggest facts.services.fwupd;
        thermald = suggest facts.services.thermald;
        printing = suggest facts.services.printing;
      };
      hardware = {
        bluetooth = suggest facts.hardware.bluetooth;
        sane = suggest facts.hardware.sane;
      };
    })
  ];
}
