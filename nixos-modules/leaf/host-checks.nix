# Returns the assertions about the rest of the host's configuration, as far as a leaf depends on it: a list as that of
# checks.nix. Pure; assertions.nix collects the argument from the host's options.
{
  # Whether the host has a Nix daemon.
  nixEnabled ? true,
  # The users and groups (`@NAME`) that may use it, and the groups of the user leaf-job.
  nixUsers ? [ "*" ],
  jobGroups ? [ "leaf-job" ],
  # Whether /etc can be written to.
  etcIsMutable ? true,
  # The types of the file systems, by mount point.
  mounts ? {
    "/" = "ext4";
  },
  # The port of NixOS's own services.nats, or null where that is off.
  otherNatsPort ? null,
}:
cfg:
let
  inherit (builtins)
    any
    concatStringsSep
    elem
    filter
    ;
  inherit (cfg) nats containers;

  durable =
    [
      cfg.stateDir
      # The logs of jobs, and what keeps their results from the garbage collector.
      "/var/lib/cim-leaf-jobs"
      # The way back from an open change, and the hub that the leaf was moved to.
      "/var/lib/cim-leaf-change"
    ]
    ++ (
      if containers.enable then
        [
          "/etc/nixos-containers"
          "/var/lib/nixos-containers"
          "/var/lib/cim-leaf-containers"
          "/var/lib/cim-leaf-secrets"
        ]
      else
        [ ]
    );
  volatile = filter (import ../volatile.nix mounts) durable;
in
[
  {
    assertion = nixEnabled;
    message = "services.cim-leaf.enable: a leaf needs the Nix daemon, which nix.enable = false leaves out; set nix.enable to true.";
  }
  {
    assertion = !nixEnabled || any (user: elem user nixUsers) ([ "*" "leaf-job" ] ++ map (group: "@${group}") jobGroups);
    message =
      "services.cim-leaf.enable: Nix jobs run as the user leaf-job, to whom nix.settings.allowed-users "
      + "(${concatStringsSep " " nixUsers}) gives no access to the Nix daemon; add \"leaf-job\" to it.";
  }
  {
    assertion = !containers.enable || etcIsMutable;
    message =
      "services.cim-leaf.containers.enable: containers are configured in /etc/nixos-containers, which "
      + "system.etc.overlay.mutable = false makes read-only; set system.etc.overlay.mutable to true.";
  }
  {
    assertion = volatile == [ ];
    message =
      "services.cim-leaf.enable: a reboot empties ${concatStringsSep ", " volatile}, which the leaf's state needs; mount a "
      + "persistent file system there (fileSystems.\"DIRECTORY\"), or above; for the state alone, set "
      + "services.cim-leaf.stateDir to a directory of a persistent one.";
  }
  {
    assertion =
      otherNatsPort == null || nats.embedded.enable || !containers.enable || otherNatsPort != nats.containersPort;
    message =
      "services.cim-leaf.nats.containersPort: services.nats listens on port ${toString otherNatsPort} of all addresses; set "
      + "another port here or in services.nats.port.";
  }
  {
    assertion = otherNatsPort == null || !nats.embedded.enable || otherNatsPort != nats.embedded.port;
    message =
      "services.cim-leaf.nats.embedded.port: services.nats listens on port ${toString otherNatsPort} of all addresses; set "
      + "another port here or in services.nats.port.";
  }
]
