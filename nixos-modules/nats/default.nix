# A NATS server as a system service: that of a leaf, which replaces leafd's embedded one, or the hub of a fleet. Start
# with options.nix; settings.nix computes the server's configuration, service.nix the unit.
{
  imports = [
    ./options.nix
    ./service.nix
    ./assertions.nix
    ./leaf.nix
  ];
}
