# A NixOS system for a container that runs a NATS server for others: other containers, other leaves, other domains.
#
#   nix build -f containers/nats/default.nix --arg nixpkgs /path/to/nixpkgs
#
# Returns the system's toplevel. One system runs any number of such servers: who
# they are comes to each container as credentials at its start. security.nix says which, jetstream.nix what is stored;
# both are NixOS modules that also stand on their own.
#
# It needs a package set, unlike the template `minimal`. In a flake give it that of your inputs:
#
#   packages.x86_64-linux.hub = import "${cim-leaf}/containers/nats" { inherit nixpkgs; system = "x86_64-linux"; };
{
  # The tree of nixpkgs. Without it, it is the one that Nix's search path has.
  nixpkgs ? null,
  system ? builtins.currentSystem,
  # Modules of your own, which override everything here.
  modules ? [ ],
  # The server's name.
  name ? "nats",
  # Whether other leaves connect to it.
  role ? "hub",
  # The JetStream domain.
  domain ? name,
  maxFileStoreBytes ? null,
  maxMemoryStoreBytes ? null,
  # The module of the server, where this folder was copied to another place: `cim-leaf.nixosModules.nats`.
  natsModule ? ../../nixos-modules/nats,
  # Whether to return the evaluated system (`config`, `options`) in place of its toplevel.
  whole ? false,
  # Given to every template; a NixOS system has an init of its own.
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
        "the container template nats is a NixOS system and needs nixpkgs: give it --arg nixpkgs PATH, or set `nix-path` "
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
