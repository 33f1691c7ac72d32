# The rules for the URLs of NATS servers that a host connects to. Pure.
rec {
  # The URLs of a text that names several: commas and blanks separate them.
  servers = text: builtins.filter (part: builtins.isString part && part != "") (builtins.split "[, ]+" text);

  # Encrypted, or on the host itself; and without a user, password or token, since every user of the host can read the
  # configuration in the store. `schemes` are the encrypted ones: nats-server connects to a hub through a
  # websocket too, leafd and leaf-hub don't. `own` are the URLs of servers on this host at other addresses than the loopback ones.
  isSafe =
    schemes: own: url:
    let
      inherit (builtins) concatStringsSep elem match;
      isEncrypted = match "(${concatStringsSep "|" schemes})://[^@/]+(/[^@]*)?" url != null;
      isLocal = match "(nats|nats-leaf)://(127\\.[0-9.]+|localhost|\\[::1])(:[0-9]+)?" url != null;
    in
    isEncrypted || isLocal || elem url own;

  # The text names at least one server, and only such.
  areSafe = schemes: own: text: servers text != [ ] && builtins.all (isSafe schemes own) (servers text);
}
