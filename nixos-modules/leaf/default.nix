# The daemon `leafd` on a NixOS host. Start with options.nix; service.nix turns the options into files, users and units.
{
  imports = [
    ./options.nix
    ./service.nix
    ./assertions.nix
  ];
}
