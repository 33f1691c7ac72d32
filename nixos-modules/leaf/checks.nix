# Returns the assertions about the options' values: a list of `{ assertion, message }`, where each message names the
# option and the correction. Pure, as settings.nix.
#
# `ownUrls` are the URLs of NATS servers on this host at other addresses than the loopback ones.
{
  ownUrls ? [ ],
}:
cfg:
let
  inherit (builtins)
    attrNames
    concatStringsSep
    filter
    isString
    length
    match
    stringLength
    substring
    storeDir
    toJSON
    ;
  inherit (cfg) nats containers;

  isToken = text: match "[a-z0-9_][a-z0-9_-]*" text != null;
  isAbsolute = path: substring 0 1 path == "/";
  inStore = path: substring 0 (stringLength storeDir) path == storeDir;

  # The daemon's own checker, which the build runs on the settings, also refuses what does not print.
  isLabel =
    key:
    let
      value = cfg.labels.${key};
    in
    match "[a-z0-9][a-z0-9._/-]*" key != null
    && stringLength key <= 63
    && value != ""
    && stringLength value <= 63
    && match "[^,[:cntrl:]]*" value != null;
  badLabels = filter (key: !isLabel key) (attrNames cfg.labels);

  octet = "(0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])";
  isIPv4 = text: match "${octet}(\\.${octet}){3}" text != null;

  isHidden = import ../hidden.nix;
  isPrivate = path: match "/(home|root|run/user|tmp|var/tmp)(/.*)?" path != null;
  # A Nix path becomes one in the store.
  visible = option: file: {
    assertion = !isString file || !isPrivate file;
    message =
      "services.cim-leaf.${option}: leafd's unit sees nothing below /home, /root, /run/user, /tmp and /var/tmp, so it "
      + "can't read \"${toString file}\"; put the file elsewhere, or into the configuration as a path.";
  };

  natsUrl = import ../nats-url.nix;

  # RFC 1918
  isPrivatePool =
    pool: match "(10\\.[0-9]{1,3}|172\\.(1[6-9]|2[0-9]|3[01])|192\\.168)\\.0\\.0/16" pool != null && firstTwoFit pool;
  # No octet is above 255 or has a leading zero.
  firstTwoFit =
    pool:
    let
      second = builtins.elemAt (match "[0-9]+\\.([0-9]+)\\..*" pool) 0;
    in
    match "0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5]" second != null;

  secret = option: path: {
    assertion = path == null || (isAbsolute path && !inStore path);
    message =
      "services.cim-leaf.nats.${option}: \"${toString path}\" must be an absolute path outside the Nix store, "
      + "since every user of the host can read the store.";
  };
in
[
  {
    assertion = (nats.url != null) != nats.embedded.enable;
    message =
      if nats.embedded.enable then
        "services.cim-leaf.nats: url and embedded.enable are mutually exclusive; set one of them."
      else
        "services.cim-leaf.nats: the leaf needs a NATS server; set url, or embedded.enable for a server of its own.";
  }
  {
    assertion =
      nats.url == null
      || natsUrl.areSafe [ "tls" ] ownUrls nats.url;
    message =
      "services.cim-leaf.nats.url: a connection to another host needs TLS: begin each URL with tls:// (leafd connects to no "
      + "websocket: write the server's port for clients, tls://host:4222, in place of wss://), and "
      + "leave out users, passwords and tokens, since every user of the host can read the store; "
      + "services.cim-leaf.nats.credentialsFile names the leaf's credentials.";
  }
  {
    assertion =
      !nats.embedded.enable
      || builtins.all (file: file == null) [
        nats.credentialsFile
        nats.streamCredentialsFile
        nats.containerSigningKeyFile
        nats.caFile
        nats.certFile
        nats.keyFile
      ];
    message =
      "services.cim-leaf.nats: credentialsFile, streamCredentialsFile, containerSigningKeyFile, caFile, certFile and "
      + "keyFile apply to url; an embedded server creates its own.";
  }
  {
    assertion = !containers.enable || nats.embedded.enable || nats.containerSigningKeyFile != null;
    message =
      "services.cim-leaf.containers.enable: on a leaf that connects to an external NATS server, such as that of "
      + "services.cim-nats, the NATS users of containers are issued with a scoped signing key of the callers' account; set "
      + "services.cim-leaf.nats.containerSigningKeyFile to the file with its seed (docs/nats.md).";
  }
  {
    assertion =
      nats.containerSigningKeyFile == null
      || (nats.credentialsFile != null && nats.streamCredentialsFile != null);
    message =
      "services.cim-leaf.nats: containerSigningKeyFile requires credentialsFile, whose account the key belongs to, and "
      + "streamCredentialsFile, so that containers are not in the account of the streams; set both.";
  }
  {
    assertion = nats.embedded.enable || !containers.enable || nats.containersPort >= 1024;
    message =
      "services.cim-leaf.nats.containersPort: leafd has no privileges and can't listen on port "
      + "${toString nats.containersPort}; set one from 1024 on.";
  }
  {
    assertion =
      nats.embedded.hub.url == null
      || (
        nats.embedded.enable
        && nats.embedded.hub.credentialsFile != null
        && natsUrl.areSafe [ "tls" "wss" ] [ ] nats.embedded.hub.url
      );
    message =
      "services.cim-leaf.nats.embedded.hub: a hub needs embedded.enable and hub.credentialsFile, and each of its URLs begins "
      + "with tls:// or wss:// and has no user, password or token.";
  }
  (secret "credentialsFile" nats.credentialsFile)
  (secret "embedded.hub.credentialsFile" nats.embedded.hub.credentialsFile)
  (secret "streamCredentialsFile" nats.streamCredentialsFile)
  (secret "containerSigningKeyFile" nats.containerSigningKeyFile)
  {
    assertion = nats.streamCredentialsFile == null || nats.credentialsFile != null;
    message =
      "services.cim-leaf.nats: streamCredentialsFile requires credentialsFile, the user that answers commands; "
      + "set both.";
  }
  (secret "certFile" nats.certFile)
  (secret "keyFile" nats.keyFile)
  {
    assertion = (nats.certFile == null) == (nats.keyFile == null);
    message = "services.cim-leaf.nats: certFile and keyFile must be set together; set both or neither.";
  }
  {
    # Containers reach the leaf at .0.1 of its pool, and nowhere else.
    assertion =
      !(nats.embedded.enable && containers.enable)
      || nats.embedded.address == null
      || nats.embedded.address == builtins.replaceStrings [ ".0.0/16" ] [ ".0.1" ] containers.addressPool;
    message =
      "services.cim-leaf.nats.embedded.address: ${toString nats.embedded.address} is not the leaf's address in "
      + "containers.addressPool (${containers.addressPool}), the only one that containers reach; leave it null.";
  }
  {
    assertion = nats.embedded.address == null || (isIPv4 nats.embedded.address && nats.embedded.address != "0.0.0.0");
    message =
      "services.cim-leaf.nats.embedded.address: \"${toString nats.embedded.address}\" is refused; the leaf's server "
      + "listens on one IPv4 address of this host, such as 127.0.0.1.";
  }
  {
    assertion = !nats.embedded.enable || nats.embedded.port >= 1024;
    message =
      "services.cim-leaf.nats.embedded.port: leafd has no privileges and can't listen on port "
      + "${toString nats.embedded.port}; set one from 1024 on.";
  }
  {
    assertion = isToken cfg.name && stringLength cfg.name <= 32;
    message =
      "services.cim-leaf.name: \"${cfg.name}\" must be at most 32 of the characters a-z, 0-9, _ and -, "
      + "and must not begin with -, since it is part of NATS subjects.";
  }
  {
    assertion = badLabels == [ ] && length (attrNames cfg.labels) <= 32;
    message =
      "services.cim-leaf.labels: ${concatStringsSep ", " (map toJSON badLabels)} of ${toString (length (attrNames cfg.labels))} "
      + "can't be labels of a leaf; at most 32 can. A key is at most 63 of the characters a-z, 0-9, ., _, / and -, and begins "
      + "with a letter or digit; a value has 1 to 63 bytes, without commas and control characters.";
  }
  {
    assertion = isAbsolute cfg.stateDir && !inStore cfg.stateDir && !isHidden cfg.stateDir && cfg.stateDir != "/";
    message =
      "services.cim-leaf.stateDir: \"${cfg.stateDir}\" must be an absolute path outside the Nix store that a reboot "
      + "keeps and leafd's unit sees: not below /home, /root, /run, /tmp or /var/tmp; /var/lib/cim-leaf is the default.";
  }
  (visible "nats.caFile" nats.caFile)
  (visible "hardware.facterReport" cfg.hardware.facterReport)
  (visible "containers.templates" containers.templates)
  {
    assertion = cfg.events.maxBytes >= 1048576;
    message = "services.cim-leaf.events.maxBytes: must be at least 1048576 (1 MiB), to keep two snapshots.";
  }
  {
    assertion = isPrivatePool containers.addressPool;
    message =
      "services.cim-leaf.containers.addressPool: \"${containers.addressPool}\" must be a private /16 network "
      + "such as 10.233.0.0/16.";
  }
  {
    assertion = builtins.all (path: isAbsolute path && !inStore path) (containers.bindFolders ++ containers.secretFolders);
    message =
      "services.cim-leaf.containers: bindFolders and secretFolders must be absolute paths outside the Nix store, "
      + "but are ${toString (containers.bindFolders ++ containers.secretFolders)}.";
  }
  {
    assertion = !(builtins.any isPrivate (containers.bindFolders ++ containers.secretFolders));
    message =
      "services.cim-leaf.containers: leaf-helper's unit sees nothing below /home, /root, /run/user, /tmp and /var/tmp, so "
      + "bindFolders and secretFolders can't be there; they are "
      + "${toString (containers.bindFolders ++ containers.secretFolders)}. Use a directory such as /srv/data.";
  }
]
