# Returns the URL at which clients on the same host find the server.
cfg:
let
  # A server in a container listens on all of its addresses, and is there at any.
  host = if cfg.address == "0.0.0.0" || cfg.address == "::" then "127.0.0.1" else cfg.address;
  inherit (builtins) match;
in
"${if cfg.tls.certFile == null then "nats" else "tls"}://${
  if match ".*:.*" host == null then host else "[${host}]"
}:${toString cfg.port}"
