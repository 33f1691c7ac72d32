# Returns the configuration that follows from a nixos-facter report: an attribute set of options, always of the same
# shape.
#
# Pure. The argument is the report (`builtins.fromJSON` of `facter.json`, version 1 or 2). The result holds what
# nixpkgs' `hardware.facter` does not set. The one exception is `boot.initrd.availableKernelModules`, without which a
# host does not boot where nixpkgs is older than `hardware.facter`.
report:
let
  inherit (builtins)
    attrNames
    concatMap
    filter
    head
    isAttrs
    isList
    isString
    listToAttrs
    ;

  # An entry may be null (version 2), a class may be missing.
  entries = class: filter isAttrs (let of = (report.hardware or { }).${class} or [ ]; in if isList of then of else [ ]);
  has = class: entries class != [ ];

  modulesOf = entry: filter isString ((entry.driver_modules or [ ]) ++ [ (entry.driver_module or null) ]);
  # Sorted, without duplicates.
  set = names: attrNames (listToAttrs (map (name: { inherit name; value = null; }) names));

  virtual = (report.virtualisation or "none") != "none";
  # The disks that report their own health: not those behind a hypervisor, a RAID controller or a USB bridge.
  ownDisks = filter (disk: (disk.driver or "") == "nvme" || (disk.driver or "") == "ahci") (entries "disk");
  laptop = ((report.hardware or { }).system or { }).form_factor or "" == "laptop";
  vendors = map (cpu: cpu.vendor_name or "") (entries "cpu");
in
{
  boot.initrd.availableKernelModules = set (
    concatMap modulesOf (entries "disk" ++ entries "storage_controller" ++ entries "usb_controller" ++ entries "mmc_controller")
  );
  services = {
    # health of disks
    smartd.enable = !virtual && ownDisks != [ ];
    # smart cards
    pcscd.enable = has "chip_card";
    # firmware updates: where the machine has its own firmware
    fwupd.enable = !virtual && report ? uefi;
    thermald.enable = !virtual && laptop && vendors != [ ] && head vendors == "GenuineIntel";
    printing.enable = has "printer";
  };
  hardware = {
    bluetooth.enable = has "bluetooth";
    sane.enable = has "scanner";
  };
}
