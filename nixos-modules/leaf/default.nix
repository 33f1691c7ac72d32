# The daemon `leafd` on a NixOS host. Start with options.nix; service.nix says what the system makes of them.
{
  imports = [
    ./options.nix
    ./service.nix
    ./assertions.nix
  ];
}
