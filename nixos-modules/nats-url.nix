# The rule for the URL of a NATS server that a host connects to: encrypted, or on the host itself; and without a user,
# password or token, since every user of the host can read the configuration in the store. Pure.
#
# `own` are the URLs of servers on this host at other addresses than the loopback ones.
own: url:
let
  inherit (builtins) elem match;
  isEncrypted = match "(tls|wss)://[^@/]+(/[^@]*)?" url != null;
  isLocal = match "(nats|nats-leaf)://(127\\.[0-9.]+|localhost|\\[::1])(:[0-9]+)?" url != null;
in
isEncrypted || isLocal || elem url own
