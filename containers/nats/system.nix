# The system around the server: a NixOS container with one service and only what that service needs.
{ config, lib, ... }:
{
  services.cim-nats = {
    enable = true;
    # The container has its own network: a loopback, and one end of a veth, whose address the leaf chooses.
    address = lib.mkDefault "0.0.0.0";
    addressOnLo = lib.mkDefault false;
    firewallInterfaces = lib.mkDefault [ "eth0" ];
  };

  networking.hostName = lib.mkDefault config.services.cim-nats.serverName;

  # Containers share this system through the store; nothing is built inside.
  nix.enable = lib.mkDefault false;
  environment.defaultPackages = lib.mkDefault [ ];
  documentation.enable = lib.mkDefault false;
  system.stateVersion = lib.mkDefault "26.05";
}
