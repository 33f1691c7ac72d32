# An example leaf: copy the directory, replace `facter.json` (`sudo nixos-facter -o facter.json`) and the disk with
# those of your machine, and install it with `nixos-anywhere --flake .#NAME root@ADDRESS`.
{ lib, ... }:
{
  system.stateVersion = "26.05";
  nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";

  boot.loader.systemd-boot.enable = true;
  boot.loader.efi.canTouchEfiVariables = true;

  nix.settings.experimental-features = [
    "nix-command"
    "flakes"
  ];

  # A leaf is controlled through NATS, not SSH. SSH is for repairs when NATS or leafd is broken.
  services.openssh = {
    enable = true;
    settings.PasswordAuthentication = false;
  };

  services.cim-leaf = {
    enable = true;
    nats.embedded.enable = true;
    containers.enable = true;
  };
}
