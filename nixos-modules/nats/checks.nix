# Returns the assertions about the values of the options: a list of `{ assertion, message }`, in the words of a person who
# has to correct them. Pure, as settings.nix.
#
# `ownNetwork` says whether the system is a container with a network of its own; `leaf` is the value of
# `services.cim-leaf`, or null where there is no daemon.
{
  ownNetwork ? false,
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
      "\"${address}\" is no IP address."
  );
  leavesHost =
    option: address: onLo:
    check option (tls.certFile != null || isLoopback address || onLo)
      "${address} leaves this host, and needs TLS: set services.cim-nats.tls.certFile and keyFile.";

  secret =
    option: file:
    check option (file == null || paths.onHost file) (
      "\"${toString file}\" must be an absolute path outside of the Nix store, which everybody on the host may read, "
      + "or the name of a credential."
    );
  public =
    option: file:
    check option (file == null || paths.inStore file)
      "\"${toString file}\" must be a file of the configuration, such as ./ca.pem: it is no secret, and the build checks with it.";
  pair =
    option: of:
    check option ((of.certFile == null) == (of.keyFile == null)) "certFile and keyFile go together; set both or neither.";

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
      # host:port of a URL
      isLocal = url: match "(nats-leaf|nats)://(127\\.[0-9.]+|localhost|\\[::1])(:[0-9]+)?" url != null;
      isEncrypted = url: match "(tls|wss)://[^@/]+(/.*)?" url != null;
    in
    [
      (check option (isName name && !(builtins.elem name [ "operator" "accounts" "tls" ])) (
        "the name stands in those of files: take letters, digits, _ and -, and neither operator, accounts nor tls."
      ))
      (check "${option}.urls" (all (url: isEncrypted url || isLocal url) remote.urls)
        "the way to a hub needs TLS: begin each URL with tls:// or wss://, and leave out users and passwords."
      )
      (check "${option}.account" (isAccount remote.account) "\"${remote.account}\" is no public key of an account (A and 55 characters).")
      (secret "${option}.credentialsFile" remote.credentialsFile)
      (secret "${option}.tls.certFile" remote.tls.certFile)
      (secret "${option}.tls.keyFile" remote.tls.keyFile)
      (public "${option}.tls.caFile" remote.tls.caFile)
      (pair "${option}.tls" remote.tls)
    ];

  given = operator.systemAccount != null || operator.accounts != { } || operator.resolver != "memory";
in
[
  (check "serverName" (isName cfg.serverName) "\"${cfg.serverName}\" must be at most 64 letters, digits, _ and -.")
  (listens "address" cfg.address)
  (leavesHost "address" cfg.address cfg.addressOnLo)
  (check "addressOnLo" (!cfg.addressOnLo || !isEvery cfg.address) "${cfg.address} is no address for an interface.")
  (check "port" (distinct ports) "clients, leaves and monitoring each need a port of their own.")
  (check "dataDir" (paths.isAbsolute cfg.dataDir && !paths.inStore cfg.dataDir)
    "\"${cfg.dataDir}\" must be an absolute path outside of the Nix store."
  )

  (check "operator.jwtFile" (operator.jwtFile != null)
    "without an operator everybody may do everything: set it to the file with the operator's JWT."
  )
  (check "operator.jwtFile" (operator.jwtFile == null || paths.inStore operator.jwtFile || paths.onHost operator.jwtFile)
    "\"${toString operator.jwtFile}\" must be a file of the configuration, an absolute path, or the name of a credential."
  )
  (secret "operator.accountsFile" operator.accountsFile)
  (check "operator" ((operator.accountsFile != null) != given)
    "the accounts come either from accountsFile, or from systemAccount, accounts and resolver; set one of the two."
  )
  (check "operator.systemAccount" (operator.accountsFile != null || operator.accounts ? ${toString operator.systemAccount})
    "the system account must be named, and be among the accounts: without it the server knows nobody who could tell it of others."
  )
  (check "operator.accounts" (all (name: isAccount name && isJwt operator.accounts.${name}) (attrNames operator.accounts))
    "each name is the public key of an account (A and 55 characters), each value its JWT."
  )

  (secret "tls.certFile" tls.certFile)
  (secret "tls.keyFile" tls.keyFile)
  (public "tls.caFile" tls.caFile)
  (pair "tls" tls)
  (check "tls.verify" (!tls.verify || (tls.certFile != null && tls.caFile != null))
    "to verify certificates of clients takes certFile, keyFile, and the authorities in caFile."
  )

  (check "jetstream.domain" (!jetstream.enable || isName jetstream.domain)
    "\"${jetstream.domain}\" must be at most 64 letters, digits, _ and -, since it stands in subjects."
  )
  (check "limits.maxPendingBytes" (limits.maxPendingBytes >= limits.maxPayloadBytes) "it must hold the longest message.")
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
  if leaf == null || !leaf.enable || cfg.role != "leaf" then
    [ ]
  else
    [
      (check "enable" (!leaf.nats.embedded.enable)
        "this server takes the place of leafd's own: set services.cim-leaf.nats.embedded.enable = false, or leave this one off."
      )
      (check "operator" (leaf.nats.embedded.enable || leaf.nats.credentialsFile != null)
        "a server in operator mode takes nobody without credentials: set services.cim-leaf.nats.credentialsFile to those of leafd's user."
      )
    ]
)
