# A NATS server as a system service: a leaf's own, in place of the one that leafd would start, or the hub of a fleet.
# Start with options.nix; settings.nix says what the server reads, service.nix what the system makes of it.
{
  imports = [
    ./options.nix
    ./service.nix
    ./assertions.nix
    ./leaf.nix
  ];
}
