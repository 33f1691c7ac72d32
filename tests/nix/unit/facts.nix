{ ... }:
let
  facts = import ../../../nixos-modules/host/facts.nix;
  example = builtins.fromJSON (builtins.readFile ../../../hosts/example/facter.json);
  with' = hardware: facts { inherit hardware; };
  nothing = {
    boot.initrd.availableKernelModules = [ ];
    services = {
      smartd.enable = false;
      pcscd.enable = false;
      fwupd.enable = false;
      thermald.enable = false;
      printing.enable = false;
    };
    hardware = {
      bluetooth.enable = false;
      sane.enable = false;
    };
  };
in
{
  "the example's report yields its drivers and services" = {
    expr = facts example;
    expected = nothing // {
      boot.initrd.availableKernelModules = [
        "nvme"
        "xhci_pci"
      ];
      services = nothing.services // {
        smartd.enable = true;
        fwupd.enable = true;
      };
      hardware = nothing.hardware // {
        bluetooth.enable = true;
      };
    };
  };
  "an empty report enables nothing" = {
    expr = facts { };
    expected = nothing;
  };
  "null entries of version 2 are ignored" = {
    expr = with' {
      memory = [ null ];
      disk = [ null ];
      system = { };
    };
    expected = nothing;
  };
  "a virtual machine gets no services for disk health and firmware" = {
    expr = (facts (example // { virtualisation = "kvm"; })).services;
    expected = nothing.services;
  };
  "a disk behind a RAID controller gets no health service, but its driver is in the initrd" = {
    expr =
      let
        of = with' {
          disk = [
            {
              driver = "megaraid_sas";
              driver_modules = [
                "sd_mod"
                "megaraid_sas"
              ];
            }
          ];
        };
      in
      [
        of.services.smartd.enable
        of.boot.initrd.availableKernelModules
      ];
    expected = [
      false
      [
        "megaraid_sas"
        "sd_mod"
      ]
    ];
  };
  "a laptop with an Intel processor gets thermald" = {
    expr =
      (with' {
        system.form_factor = "laptop";
        cpu = [ { vendor_name = "GenuineIntel"; } ];
      }).services.thermald.enable;
    expected = true;
  };
  "printers, scanners and smart cards get their services" = {
    expr =
      let
        of = with' {
          printer = [ { } ];
          scanner = [ { } ];
          chip_card = [ { } ];
        };
      in
      [
        of.services.printing.enable
        of.hardware.sane.enable
        of.services.pcscd.enable
      ];
    expected = [
      true
      true
      true
    ];
  };
}
