# An example leaf: copy the directory, replace `facter.json` (`sudo nixos-facter -o facter.json`) and the disk with
# those of your machine, set `owner` to your SSH keys, and install it with
# `nixos-anywhere --flake .#NAME root@ADDRESS`. Then command it with
# `ssh root@ADDRESS leafctl leaf show`.
{ config, lib, ... }:
let
  # The public SSH keys of those who may log in as root, such as "ssh-ed25519 AAAA… me@laptop".
  owner = [ ];

  root = config.users.users.root;
  # The embedded NATS server listens on no other host's interface, so SSH is the only way in.
  canBeReached = root.openssh.authorizedKeys.keys != [ ] || root.openssh.authorizedKeys.keyFiles != [ ];
  lockedOut =
    "hosts/${config.networking.hostName}: nobody can log in to this host, and its NATS server can be reached from "
    + "the host only; set `owner` to your public SSH keys.";
  # The example itself is evaluated by the flake's checks, and installed nowhere.
  isExample = config.networking.hostName == "example";
in
{
  users.users.root.openssh.authorizedKeys.keys = owner;
  assertions = [
    {
      assertion = canBeReached || isExample;
      message = lockedOut;
    }
  ];
  warnings = lib.optional (!canBeReached && isExample) lockedOut;

  system.stateVersion = "26.05";
  nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";

  boot.loader.systemd-boot.enable = true;
  boot.loader.efi.canTouchEfiVariables = true;

  nix.settings.experimental-features = [
    "nix-command"
    "flakes"
  ];

  # A leaf is controlled through NATS. SSH is for repairs, and the way to the NATS server of this host until it has
  # one that other hosts reach (docs/nats.md).
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
