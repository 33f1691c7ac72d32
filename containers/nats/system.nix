# The system around the server: a NixOS container with one service, and nothing that the service does not need.
{
  config,
  lib,
  options,
  ...
}:
{
  boot =
    if options.boot ? isNspawnContainer then
      { isNspawnContainer = true; }
    else
      { isContainer = true; };

  services.cim-nats = {
    enable = true;
    # The container's network is its own: a loopback, and the one end of a veth whose address the leaf chooses.
    address = lib.mkDefault "0.0.0.0";
    addressOnLo = lib.mkDefault false;
    firewallInterfaces = lib.mkDefault [ "eth0" ];
  };

  networking = {
    hostName = lib.mkDefault config.services.cim-nats.serverName;
    # The leaf has set the address before this system's init starts.
    useDHCP = false;
    useHostResolvConf = false;
  };

  # Containers that are made of one system share it: nothing is built or switched inside.
  nix.enable = lib.mkDefault false;
  environment.defaultPackages = lib.mkDefault [ ];
  documentation.enable = lib.mkDefault false;
  system.stateVersion = lib.mkDefault "26.05";
}
