# A NixOS host for QEMU. Its kernel and first root are the test host's own (../src/nixos.rs): no stage 1, no boot loader.
{
  config,
  lib,
  pkgs,
  ...
}:
{
  networking.hostName = "leaf";
  networking.useDHCP = false;
  # The module of nixos-containers copies the host's to each container that it starts.
  networking.resolvconf.enable = false;
  environment.etc."resolv.conf".text = "nameserver 10.0.2.3\n";
  users.users.root.initialHashedPassword = "";

  boot.loader.grub.enable = false;
  boot.initrd.enable = false;
  boot.bootspec.enable = false;
  system.build.initialRamdisk = pkgs.emptyInitrd;
  system.build.initialRamdiskSecretAppender = pkgs.writeScriptBin "append-initrd-secrets" "";
  # In the place of a boot loader: the first root goes on with /sbin/init.
  system.build.installBootLoader = pkgs.writeShellScript "install-boot-loader" ''
    ${pkgs.coreutils}/bin/ln -sfn $1/init /sbin/init.new
    ${pkgs.coreutils}/bin/mv -T /sbin/init.new /sbin/init
  '';
  system.requiredKernelConfig = lib.mkForce [ ];
  fileSystems."/" = {
    device = "/dev/vda";
    fsType = "ext4";
  };
  hardware.firmware = lib.mkForce [ ];
  # Emulated beside other work, even journald may need longer than the usual 90 s.
  systemd.extraConfig = ''
    DefaultTimeoutStartSec=300s
    DefaultDeviceTimeoutSec=300s
  '';
  # The same for containers of nixos-container, which have a minute.
  systemd.services."container@".serviceConfig.TimeoutStartSec = lib.mkForce "900s";
  services.lvm.enable = false;
  services.timesyncd.enable = false;
  services.fstrim.enable = false;
  system.disableInstallerTools = true;
  console.enable = false;
  security.polkit.enable = false;
  security.audit.enable = false;

  # Debian's kmod looks for modules there.
  system.activationScripts.debian-modules = ''
    mkdir -p /usr/lib
    ln -sfn /run/booted-system/kernel-modules/lib/modules /usr/lib/modules
    ln -sfn usr/lib /lib
  '';
  # As on the images that NixOS makes: the database of Nix knows what is in the image's store.
  boot.postBootCommands = ''
    if [ -f /nix-path-registration ]; then
      ${pkgs.nix}/bin/nix-store --load-db </nix-path-registration && rm /nix-path-registration
    fi
  '';
  # The other systems of the image must not be collected.
  nix.gc.automatic = false;

  # How the test host reaches it, and its way outside: as on the Debian one.
  services.qemuGuest.enable = true;
  systemd.services.qemu-guest-agent = {
    unitConfig.DefaultDependencies = false;
    serviceConfig = {
      Delegate = true;
      OOMScoreAdjust = -900;
      Restart = lib.mkForce "always";
      LogLevelMax = "notice";
    };
    # What runs commands for a test does not change while it runs one.
    restartIfChanged = false;
  };
  environment.etc."test-host.network".source = ../src/guest/network.batch;
  services.udev.extraRules = builtins.readFile ../src/guest/test-host.rules;
  systemd.services.test-host-network = {
    description = "The test host's way outside";
    unitConfig.DefaultDependencies = false;
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
      ExecStart = "${pkgs.iproute2}/bin/ip -batch /etc/test-host.network";
    };
  };
  environment.systemPackages = [
    pkgs.e2fsprogs
    pkgs.procps
    pkgs.nftables
    pkgs.jq
  ];

  nix.checkConfig = false;
  nix.nixPath = [ ];
  nix.channel.enable = false;
  nix.registry = lib.mkForce { };
  nix.settings = {
    experimental-features = [
      "nix-command"
      "flakes"
    ];
    substituters = lib.mkForce [ ];
    sandbox-paths = [
      "/bin/sh=${pkgs.busybox}/bin/busybox"
      # Where a build of a test is told something, if it is there.
      "/test?"
    ];
    flake-registry = "";
  };
}
