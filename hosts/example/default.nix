# A leaf to begin with: copy the folder, give it your machine's `facter.json` (`sudo nixos-facter -o facter.json`) and
# disk, and install it with `nixos-anywhere --flake .#NAME root@ADDRESS`.
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

  # No SSH for control: leafctl and NATS are. The key is for the day when they are what is broken.
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
