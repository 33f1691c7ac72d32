# The hub agent `leaf-hub` beside the hub's NATS server (services.cim-nats). Start with options.nix; service.nix turns the
# options into the settings file and the unit.
{
  imports = [
    ./options.nix
    ./service.nix
    ./assertions.nix
  ];
}
