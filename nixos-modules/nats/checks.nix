# Returns the assertions about the options' values: a list of `{ assertion, message }`, where each message names the
# option and the correction. Pure, as settings.nix.
#
# `ownNetwork` is true if the system is a container with its own network; `leaf` is the value of `services.cim-leaf`, or
# null where there is no daemon. `mounts` has the types of the host's file systems by mount point.
{
  ownNetwork ? false,
  mounts ? { },
  leaf ? null,
}:
cfg:
let
  inherit (builtins)
    all
    attrNames
    concatMap
    filter
    length
    map
    match
    stringLength
    ;
  inherit (cfg)
    operator
    tls
    leafnodes
    jetstream
    limits
    ;
  paths = import ./paths.nix;

  check = option: assertion: message: {
    inherit assertion;
    message = "services.cim-nats.${option}: ${message}";
  };

  isName = text: match "[A-Za-z0-9_][A-Za-z0-9_-]*" text != null && stringLength text <= 64;
  isAccount = text: match "A[A-Z2-7]{55}" text != null;
  isJwt = text: match "eyJ[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]+\\.[A-Za-z0-9_-]+" text != null;
  octet = "(0|[1-9][0-9]?|1[0-9][0-9]|2[0-4][0-9]|25[0-5])";
  isAddress =
    text: match "${octet}(\\.${octet}){3}" text != null || match "[0-9a-f]*:[0-9a-f:.]*" text != null;
  isEvery = address: address == "0.0.0.0" || address == "::";
  isLoopback = address: match "127\\..*|::1" address != null;

  listens = option: address: check option (isAddress address && (ownNetwork || !isEvery address)) (
    if isAddress address then
      "the server listens on one address of this host, not on all of them (${address})."
    else
      "\"${address}\" is not an IP address."
  );
  leavesHost =
    option: address: onLo:
    check option (tls.certFile != null || isLoopback address || onLo)
      "${address} is reachable from other hosts and needs TLS: set services.cim-nats.tls.certFile and keyFile.";

  secret =
    option: file:
    check option (file == null || paths.onHost file) (
      "\"${toString file}\" must be an absolute path outside the Nix store, which every user of the host can read, "
      + "or the name of a credential."
    );
  public =
    option: file:
    check option (file == null || paths.inStore file)
      "\"${toString file}\" must be a file of the configuration, such as ./ca.pem, since the build needs it.";
  pair =
    option: of:
    check option ((of.certFile == null) == (of.keyFile == null))
      "certFile and keyFile must be set together; set both or neither.";

  ports =
    [ cfg.port ]
    ++ (if leafnodes.enable then [ leafnodes.port ] else [ ])
    ++ (if cfg.monitoring.port == null then [ ] else [ cfg.monitoring.port ]);
  distinct = list: all (port: length (filter (other: other == port) list) == 1) list;

  ofRemote =
    name:
    let
      remote = cfg.remotes.${name};
      option = "remotes.${name}";
    in
    [
      (check option (isName name && !(builtins.elem name [ "operator" "accounts" "tls" ])) (
        "the name is part of file names: use letters, digits, _ and -, but not operator, accounts or tls."
      ))
      (check "${option}.urls" (all ((import ../nats-url.nix).isSafe [ "tls" "wss" ] [ ]) remote.urls)
        "a connection to a hub needs TLS: begin each URL with tls:// or wss://, and leave out users and passwords."
      )
      (check "${option}.account" (isAccount remote.account)
        "\"${remote.account}\" is not the public key of an account (A and 55 characters)."
      )
      (secret "${option}.credentialsFile" remote.credentialsFile)
      (secret "${option}.tls.certFile" remote.tls.certFile)
      (secret "${option}.tls.keyFile" remote.tls.keyFile)
      (public "${option}.tls.caFile" remote.tls.caFile)
      (pair "${option}.tls" remote.tls)
    ];

  # .0.1 of the pool, whose form services.cim-leaf checks.
  leafAddress = builtins.replaceStrings [ ".0.0/16" ] [ ".0.1" ] leaf.containers.addressPool;
  embeddedAddress =
    if leaf.nats.embedded.address != null then
      leaf.nats.embedded.address
    else if leaf.containers.enable then
      leafAddress
    else
      "127.0.0.1";

  # At most four minutes.
  syncsInTime =
    let
      parts = match "([0-9]+)(ms|s|m|h)" jetstream.syncInterval;
      most = {
        ms = 240000;
        s = 240;
        m = 4;
        h = 0;
      };
    in
    parts == null || builtins.fromJSON (builtins.elemAt parts 0) <= most.${builtins.elemAt parts 1};

  given = operator.systemAccount != null || operator.accounts != { } || operator.resolver != "memory";
in
[
  (check "serverName" (isName cfg.serverName) "\"${cfg.serverName}\" must be at most 64 letters, digits, _ and -.")
  (listens "address" cfg.address)
  (leavesHost "address" cfg.address cfg.addressOnLo)
  (check "addressOnLo" (!cfg.addressOnLo || !isEvery cfg.address) "${cfg.address} can't be assigned to an interface.")
  (check "port" (distinct ports) "clients, leaves and monitoring each need their own port.")
  (check "port" (all (port: port >= 1024) ports)
    "the server has no privileges: set ports from 1024 on for clients, leaves and monitoring."
  )
  (check "dataDir"
    (paths.isAbsolute cfg.dataDir && !paths.inStore cfg.dataDir && !(import ../hidden.nix cfg.dataDir) && cfg.dataDir != "/")
    (
      "\"${cfg.dataDir}\" must be an absolute path outside the Nix store that a reboot keeps and the server's unit sees: "
      + "not below /home, /root, /run, /tmp or /var/tmp."
    )
  )

  (check "dataDir" (!(import ../volatile.nix mounts cfg.dataDir))
    "a reboot empties ${cfg.dataDir}: set it to a directory of a persistent file system, or mount one there."
  )

  (check "operator.jwtFile" (operator.jwtFile != null)
    "without an operator the server accepts every client: set it to the file with the operator's JWT."
  )
  (check "operator.jwtFile" (operator.jwtFile == null || paths.inStore operator.jwtFile || paths.onHost operator.jwtFile)
    "\"${toString operator.jwtFile}\" must be a file of the configuration, an absolute path, or the name of a credential."
  )
  (secret "operator.accountsFile" operator.accountsFile)
  (check "operator" ((operator.accountsFile != null) != given)
    "set either accountsFile, or systemAccount, accounts and resolver."
  )
  (check "operator.systemAccount" (operator.accountsFile != null || operator.accounts ? ${toString operator.systemAccount})
    "systemAccount must be set and be one of the accounts: only its users can add other accounts to the server."
  )
  (check "operator.accounts" (all (name: isAccount name && isJwt operator.accounts.${name}) (attrNames operator.accounts))
    "each name is the public key of an account (A and 55 characters), each value its JWT."
  )

  (secret "tls.certFile" tls.certFile)
  (secret "tls.keyFile" tls.keyFile)
  (public "tls.caFile" tls.caFile)
  (pair "tls" tls)
  (check "tls.verify" (!tls.verify || (tls.certFile != null && tls.caFile != null))
    "verifying the certificates of clients needs certFile, keyFile and caFile."
  )

  (check "jetstream.domain" (!jetstream.enable || isName jetstream.domain)
    "\"${jetstream.domain}\" must be at most 64 letters, digits, _ and -, since it is part of subjects."
  )
  (check "jetstream.syncInterval" (!jetstream.enable || syncsInTime) (
    "${jetstream.syncInterval} is too long: at most 4m, since a leaf's journal lets go of an event ten minutes after the "
    + "server has acknowledged it."
  ))
  (check "limits.maxPendingBytes" (limits.maxPendingBytes >= limits.maxPayloadBytes)
    "must be at least limits.maxPayloadBytes, the longest message."
  )
]
++ (
  if leafnodes.enable then
    [
      (listens "leafnodes.address" leafnodes.address)
      (leavesHost "leafnodes.address" leafnodes.address (cfg.addressOnLo && leafnodes.address == cfg.address))
    ]
  else
    [ ]
)
++ concatMap ofRemote (attrNames cfg.remotes)
++ (
  if leaf == null || !leaf.enable then
    [ ]
  else if cfg.role == "hub" then
    [
      # leafd's own server listens on the leaf's address where containers are enabled.
      (check "port"
        (
          !leaf.nats.embedded.enable
          || leaf.nats.embedded.port != cfg.port
          || !(isEvery cfg.address || cfg.address == embeddedAddress)
        )
        "leafd's embedded server listens on the same port of ${cfg.address}: set another one here or there."
      )
    ]
  else
    [
      (check "enable" (!leaf.nats.embedded.enable)
        "this server replaces leafd's embedded one: set services.cim-leaf.nats.embedded.enable or this option to false."
      )
      (check "address" (!cfg.addressOnLo || cfg.address == leafAddress) (
        "${cfg.address} is not ${leafAddress}, the leaf's address in services.cim-leaf.containers.addressPool: the leaf's jobs, "
        + "which are kept from the pool, could reach it; set one of the two so that they agree."
      ))
      (check "operator" (leaf.nats.embedded.enable || leaf.nats.credentialsFile != null)
        "leafd needs credentials in operator mode: set services.cim-leaf.nats.credentialsFile to those of its user."
      )
    ]
)
