# A NixOS system for a container that runs a NATS server for other containers, leaves or domains.
#
#   nix build -f containers/nats/default.nix --arg nixpkgs /path/to/nixpkgs
#
# Returns the system's toplevel. One system runs any number of such servers: each container gets its server's identity
# as credentials at its start. security.nix lists the credentials, jetstream.nix configures the storage; both are NixOS
# modules that can be used without the rest.
#
# Unlike the template `minimal` it needs a package set. In a flake, pass your input:
#
#   packages.x86_64-linux.hub = import "${cim-leaf}/containers/nats" { inherit nixpkgs; system = "x86_64-linux"; };
{
  # The nixpkgs tree; if null, the one in Nix's search path.
  nixpkgs ? null,
  system ? builtins.currentSystem,
  # Your own modules, which override the defaults here.
  modules ? [ ],
  # The server's name.
  name ? "nats",
  # The server's role: "hub" if leaves connect to it, otherwise "leaf".
  role ? "hub",
  # The JetStream domain.
  domain ? name,
  maxFileStoreBytes ? null,
  maxMemoryStoreBytes ? null,
  # The server's module, if this directory was copied elsewhere: `cim-leaf.nixosModules.nats`.
  natsModule ? ../../nixos-modules/nats,
  # The module of a container's system: `cim-leaf.nixosModules.container`.
  containerModule ? ../../nixos-modules/container,
  # Whether to return the evaluated system (`config`, `options`) instead of its toplevel.
  whole ? false,
  # Passed to every template; unused, since a NixOS system has its own init.
  leafInit ? null,
}:
let
  found = builtins.tryEval <nixpkgs>;
  tree =
    if nixpkgs != null then
      nixpkgs
    else if found.success then
      found.value
    else
      throw (
        "the container template nats is a NixOS system and needs nixpkgs: pass --arg nixpkgs PATH, or set `nix-path` "
        + "(nixpkgs=PATH) in nix.conf; in a flake, import it with your input nixpkgs and create the container with --flake"
      );

  given = {
    services.cim-nats = {
      inherit role;
      serverName = name;
      jetstream = {
        inherit domain;
      }
      // (if maxFileStoreBytes == null then { } else { inherit maxFileStoreBytes; })
      // (if maxMemoryStoreBytes == null then { } else { inherit maxMemoryStoreBytes; });
    };
  };

  evaluated = import (tree + "/nixos/lib/eval-config.nix") {
    lib = import (tree + "/lib");
    system = null;
    modules = [
      natsModule
      containerModule
      ./system.nix
      ./security.nix
      ./jetstream.nix
      given
      { nixpkgs.hostPlatform = system; }
    ]
    ++ modules;
  };
in
if whole then evaluated else evaluated.config.system.build.toplevel
