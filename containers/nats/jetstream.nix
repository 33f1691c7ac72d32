# What the server stores: in a domain of its own, within limits that fit a container.
#
# The container's root file system, in which the store is, belongs to the container: what is stored survives its restart and
# goes with it when it is destroyed. Bind a folder over `dataDir` to keep it for longer.
{ lib, ... }:
{
  services.cim-nats.jetstream = {
    enable = lib.mkDefault true;
    maxFileStoreBytes = lib.mkDefault (2 * 1024 * 1024 * 1024);
    maxMemoryStoreBytes = lib.mkDefault (32 * 1024 * 1024);
    # Clients of this server have no journal of their own as leafd has: what it acknowledged, a power cut must not take.
    syncInterval = lib.mkDefault "always";
  };
}
