# The values of all options of services.cim-leaf on a host with `nats.embedded.enable`, for tests without modules.
{
  package = "/nix/store/00000000000000000000000000000000-cim-leaf";
  name = "edge-1";
  labels = { };
  stateDir = "/var/lib/cim-leaf";
  log = "info";
  nats = {
    url = null;
    credentialsFile = null;
    streamCredentialsFile = null;
    containerSigningKeyFile = null;
    containersPort = 4222;
    containerHours = 24;
    caFile = null;
    certFile = null;
    keyFile = null;
    jetstreamDomain = null;
    embedded = {
      enable = true;
      package = "/nix/store/00000000000000000000000000000000-nats-server";
      address = null;
      port = 4222;
      maxStorageBytes = 0;
      adminHours = 24;
      hub = {
        url = null;
        credentialsFile = null;
        caFile = null;
      };
    };
  };
  witnesses = [ ];
  events = {
    maxBytes = 1073741824;
    backlogBytes = 268435456;
    reserveBytes = 33554432;
    snapshotEvery = 10000;
  };
  hardware = {
    facterReport = null;
    facterProgram = null;
    rescanDebounceMs = 500;
  };
  containers = {
    enable = false;
    bindFolders = [ ];
    secretFolders = [ ];
    hostUsers = false;
    addressPool = "10.233.0.0/16";
    readyTimeoutSeconds = 60;
    stopTimeoutSeconds = 30;
    networkCheckSeconds = 300;
    templates = "/nix/store/00000000000000000000000000000000-cim-leaf/share/cim-leaf/containers";
  };
  nix = {
    package = "/nix/store/00000000000000000000000000000000-nix";
    nixpkgs = "/nix/store/00000000000000000000000000000000-source";
    maxJobs = 2;
    maxQueuedJobs = 100;
    timeoutSeconds = 7200;
    evalMemoryMib = 4096;
    minFreeBytes = 268435456;
    maxUploadBytes = 4294967296;
    policy = {
      unlockedReferences = true;
      impure = false;
      importFromDerivation = true;
      allowedUris = null;
      hostPaths = [ "/" ];
    };
    features = { };
    room = {
      cpuPercent = 75;
      memoryPercent = 20;
      ioPercent = 75;
    };
    options = { };
  };
  trust = {
    allowedSignersFile = null;
    allowedOpenpgpFile = null;
    revokedSignersFile = null;
    clock = "auto";
    requireSignature = null;
    callers = { };
  };
}
