# The parts of a leaf's system beside the daemon: for now, what follows from its nixos-facter report. `facts.nix`
# computes that; here it becomes defaults, which the host's own settings override.
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
      The report that nixos-facter wrote on this host. It is passed to nixpkgs' `hardware.facter` (where nixpkgs has
      that) and to the daemon's inventory, and sets defaults that follow from the hardware: the drivers needed to boot,
      and services for the devices found.
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
