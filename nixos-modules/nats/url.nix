# Returns the URL of the server for clients on the same host.
cfg:
let
  # A server in a container listens on all of the container's addresses.
  host = if cfg.address == "0.0.0.0" || cfg.address == "::" then "127.0.0.1" else cfg.address;
  inherit (builtins) match;
in
"${if cfg.tls.certFile == null then "nats" else "tls"}://${
  if match ".*:.*" host == null then host else "[${host}]"
}:${toString cfg.port}"
