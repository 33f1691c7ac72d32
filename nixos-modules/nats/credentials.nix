# Returns the systemd credentials that the server needs: the source of each, by the credential's name.
#
# Pure. A file in the store is not a credential: it is public, and the server reads it there.
cfg:
let
  inherit (builtins)
    attrNames
    filter
    listToAttrs
    map
    foldl'
    ;
  inherit (import ./paths.nix) inStore;

  given =
    files:
    listToAttrs (
      map (name: {
        inherit name;
        value = files.${name};
      }) (filter (name: files.${name} != null && !inStore files.${name}) (attrNames files))
    );
  ofRemote =
    name:
    let
      remote = cfg.remotes.${name};
    in
    given {
      "${name}.creds" = remote.credentialsFile;
      "${name}.pem" = remote.tls.certFile;
      "${name}.key" = remote.tls.keyFile;
    };
in
foldl' (all: name: all // ofRemote name) (given {
  "operator.jwt" = cfg.operator.jwtFile;
  "accounts.conf" = cfg.operator.accountsFile;
  "tls.pem" = cfg.tls.certFile;
  "tls.key" = cfg.tls.keyFile;
}) (attrNames cfg.remotes)
