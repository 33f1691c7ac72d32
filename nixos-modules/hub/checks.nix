# Returns the assertions about the options' values: a list of `{ assertion, message }`, where each message names the
# option and the correction. Pure, as settings.nix.
#
# `ownUrls` are the URLs of NATS servers on this host at other addresses than the loopback ones.
{
  ownUrls ? [ ],
}:
cfg:
let
  inherit (cfg) nats;
  paths = import ../nats/paths.nix;

  check = option: assertion: message: {
    inherit assertion;
    message = "services.cim-hub.${option}: ${message}";
  };
  secret =
    option: file:
    check option (file == null || (!paths.inStore file && paths.isAbsolute file))
      "\"${toString file}\" must be an absolute path outside the Nix store, which every user of the host can read.";
  required =
    option: file: user:
    check option (file != null) "the agent needs the credentials of its user in the account ${user}: set it to their file.";
in
[
  (check "nats.url" (nats.url != null)
    "the agent needs the hub's NATS server: set it, or enable services.cim-nats with the role hub on this host."
  )
  (check "nats.url" (nats.url == null || (import ../nats-url.nix).areSafe [ "tls" ] ownUrls nats.url) (
    "\"${toString nats.url}\" leaves the host without TLS, has a user or names no server: begin each URL with tls:// "
    + "(leaf-hub connects to no websocket: write the server's port for clients, tls://host:4222, in place of wss://)."
  ))
  (required "nats.fleetCredentialsFile" nats.fleetCredentialsFile "FLEET")
  (required "nats.linksCredentialsFile" nats.linksCredentialsFile "LINKS")
  (check "nats.linksCredentialsFile"
    (nats.linksCredentialsFile == null || nats.linksCredentialsFile != nats.fleetCredentialsFile)
    "the agent has a user in each of the accounts FLEET and LINKS: set it to another file than nats.fleetCredentialsFile."
  )
  (secret "nats.fleetCredentialsFile" nats.fleetCredentialsFile)
  (secret "nats.linksCredentialsFile" nats.linksCredentialsFile)
  (secret "nats.certFile" nats.certFile)
  (secret "nats.keyFile" nats.keyFile)
  (secret "witnessKeyFile" cfg.witnessKeyFile)
  (check "nats" ((nats.certFile == null) == (nats.keyFile == null))
    "certFile and keyFile must be set together; set both or neither."
  )
  (check "copies.maxBytes" (cfg.copies.maxBytes >= 1048576) "must be at least 1048576 (1 MiB).")
]
