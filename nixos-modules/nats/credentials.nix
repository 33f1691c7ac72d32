# Returns the systemd credentials that the server needs for the values of the options, by name: where each comes from.
#
# Pure. What is in the store is no credential: it is public, and read where it is.
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
