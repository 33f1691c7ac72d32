# The server's storage: its own JetStream domain, with limits that fit a container.
#
# The storage is in the container's root file system: it survives a restart of the container and is removed when the
# container is destroyed. Bind a directory to `dataDir` to keep it longer.
{ lib, ... }:
{
  services.cim-nats.jetstream = {
    enable = lib.mkDefault true;
    maxFileStoreBytes = lib.mkDefault (2 * 1024 * 1024 * 1024);
    maxMemoryStoreBytes = lib.mkDefault (32 * 1024 * 1024);
    # This server's clients have no journal as leafd does, so an acknowledged message must survive a power cut.
    syncInterval = lib.mkDefault "always";
  };
}
