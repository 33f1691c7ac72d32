{ ... }:
let
  checks = import ../../../nixos-modules/leaf/checks.nix { };
  values = import ../values.nix;
  # The options that the failed assertions name.
  refused =
    cfg:
    map (check: builtins.head (builtins.match "services\\.cim-leaf\\.([^:]*):.*" check.message)) (
      builtins.filter (check: !check.assertion) (checks cfg)
    );
  nats = change: values // { nats = values.nats // change; };
  remote = change: nats ({ embedded = values.nats.embedded // { enable = false; }; url = "tls://hub"; } // change);
  pool = addressPool: refused (values // { containers = values.containers // { inherit addressPool; }; });
  named = name: refused (values // { inherit name; });
in
{
  "the defaults with an embedded server are accepted" = {
    expr = refused values;
    expected = [ ];
  };
  "an external server with credentials and a certificate is accepted" = {
    expr = refused (remote {
      credentialsFile = "/run/secrets/a.creds";
      streamCredentialsFile = "/run/secrets/b.creds";
      certFile = "/run/secrets/a.pem";
      keyFile = "/run/secrets/a.key";
    });
    expected = [ ];
  };
  "a leaf without a NATS server is refused" = {
    expr = refused (remote { url = null; });
    expected = [ "nats" ];
  };
  "a leaf with two NATS servers is refused" = {
    expr = refused (nats { url = "tls://hub"; });
    expected = [ "nats" ];
  };
  "a URL is encrypted or of this host, and has no user" = {
    expr =
      let
        given = url: refused (remote { inherit url; });
      in
      {
        accepted = builtins.concatMap given [
          "tls://hub.example:4222"
          "tls://a.example:4222, tls://b.example/nats,tls://c.example"
          "nats://127.0.0.1:4222"
          "nats://localhost"
          "nats://[::1]:4222"
        ];
        refused = builtins.concatMap given [
          "nats://hub.example:4222"
          "hub.example:4222"
          "tls://me:secret@hub.example:4222"
          "tls://token@hub.example"
          "nats://me:secret@127.0.0.1:4222"
          "tls://a.example,nats://b.example"
          "nats://127.0.0.1.hub.example:4222"
          "nats://10.233.0.1:4222"
          "ws://hub.example"
          "wss://hub.example"
          ""
        ];
      };
    expected = {
      accepted = [ ];
      refused = builtins.genList (_: "nats.url") 11;
    };
  };
  "the URL of a server on this host's own address needs no TLS" = {
    expr = builtins.filter (check: !check.assertion) (
      import ../../../nixos-modules/leaf/checks.nix { ownUrls = [ "nats://10.233.0.1:4222" ]; } (remote {
        url = "nats://10.233.0.1:4222";
      })
    );
    expected = [ ];
  };
  "containers on a leaf with an external server need the key that issues their users" = {
    expr =
      let
        given = change: enable: refused (remote change // { containers = values.containers // { inherit enable; }; });
        key.containerSigningKeyFile = "/run/secrets/c.seed";
        callers.credentialsFile = "/run/secrets/a.creds";
        streams.streamCredentialsFile = "/run/secrets/b.creds";
      in
      [
        (given { } true)
        (given { } false)
        (given key true)
        (given (key // callers) true)
        (given (key // callers // streams) true)
        (given (key // callers // streams // { containersPort = 422; }) true)
        (given (key // callers // streams // { containersPort = 422; }) false)
      ];
    expected = [
      [ "containers.enable" ]
      [ ]
      [ "nats" ]
      [ "nats" ]
      [ ]
      [ "nats.containersPort" ]
      [ ]
    ];
  };
  "a signing key in the store, or beside an embedded server, is refused" = {
    expr =
      refused (remote {
        credentialsFile = "/run/secrets/a.creds";
        streamCredentialsFile = "/run/secrets/b.creds";
        containerSigningKeyFile = "${builtins.storeDir}/x-c.seed";
      })
      ++ refused (nats { containerSigningKeyFile = "/run/secrets/c.seed"; });
    expected = [
      "nats.containerSigningKeyFile"
      "nats"
      "nats"
    ];
  };
  "credentials beside an embedded server are refused" = {
    expr = refused (nats { credentialsFile = "/run/secrets/a.creds"; });
    expected = [ "nats" ];
  };
  "credentials for the streams without those for the callers are refused" = {
    expr = refused (remote {
      credentialsFile = null;
      streamCredentialsFile = "/run/secrets/b.creds";
    });
    expected = [ "nats" ];
  };
  "a secret in the store is refused" = {
    expr = refused (remote { credentialsFile = "${builtins.storeDir}/x-a.creds"; });
    expected = [ "nats.credentialsFile" ];
  };
  "a relative path to a secret is refused" = {
    expr = refused (remote { credentialsFile = "a.creds"; });
    expected = [ "nats.credentialsFile" ];
  };
  "a certificate without its key is refused" = {
    expr = refused (remote { certFile = "/run/secrets/a.pem"; });
    expected = [ "nats" ];
  };
  "a server that listens on all addresses is refused" = {
    expr = refused (nats { embedded = values.nats.embedded // { address = "0.0.0.0"; }; });
    expected = [ "nats.embedded.address" ];
  };
  "a name that is a token is accepted" = {
    expr = builtins.concatMap named [ "a" "edge-1" "_x" "0" "abcdefghijklmnopqrstuvwxyz012345" ];
    expected = [ ];
  };
  "a name that is not a token is refused" = {
    expr = builtins.concatMap named [ "" "Edge" "a.b" "-a" "a b" "ä" "a/b" "abcdefghijklmnopqrstuvwxyz0123456" ];
    expected = builtins.genList (_: "name") 8;
  };
  "labels follow the rules" = {
    expr =
      let
        given = labels: refused (values // { inherit labels; });
        long = "a234567890123456789012345678901234567890123456789012345678901234";
        many = count: builtins.listToAttrs (builtins.genList (n: { name = "k${toString n}"; value = "x"; }) count);
      in
      {
        accepted = builtins.concatMap given [
          { site = "hall 2"; "example.org/rack_7-b" = "Größe"; }
          (many 32)
        ];
        refused = builtins.concatMap given [
          { Site = "a"; }
          { "" = "a"; }
          { "-a" = "a"; }
          { a = ""; }
          { a = "a,b"; }
          { a = "a\nb"; }
          { a = long; }
          { ${long} = "a"; }
          (many 33)
        ];
      };
    expected = {
      accepted = [ ];
      refused = builtins.genList (_: "labels") 9;
    };
  };
  "a private /16 network is accepted" = {
    expr = builtins.concatMap pool [ "10.0.0.0/16" "10.255.0.0/16" "172.16.0.0/16" "172.31.0.0/16" "192.168.0.0/16" ];
    expected = [ ];
  };
  "another network is refused" = {
    expr = builtins.concatMap pool [
      "8.8.0.0/16"
      "10.256.0.0/16"
      "10.01.0.0/16"
      "10.233.1.0/16"
      "10.233.0.0/24"
      "172.15.0.0/16"
      "172.32.0.0/16"
      "192.169.0.0/16"
      ""
    ];
    expected = builtins.genList (_: "containers.addressPool") 9;
  };
  "a server on an address that containers don't reach is refused where there are containers" = {
    expr = map (change: refused (values // { containers = values.containers // change; } // {
      nats = values.nats // { embedded = values.nats.embedded // { address = "10.233.0.1"; }; };
    })) [
      { enable = true; }
      {
        enable = true;
        addressPool = "172.20.0.0/16";
      }
      { addressPool = "172.20.0.0/16"; }
    ];
    expected = [
      [ ]
      [ "nats.embedded.address" ]
      [ ]
    ];
  };
  "directories for containers that are relative or in the store are refused" = {
    expr = builtins.concatMap (directories: refused (values // { containers = values.containers // { enable = true; } // directories; })) [
      { bindFolders = [ "/srv" ]; }
      { bindFolders = [ "srv" ]; }
      { secretFolders = [ "/nix/store/x" ]; }
    ];
    expected = [
      "containers"
      "containers"
    ];
  };
  "a relative state directory is refused" = {
    expr = refused (values // { stateDir = "cim-leaf"; });
    expected = [ "stateDir" ];
  };
  "an event stream too small for two snapshots is refused" = {
    expr = refused (values // { events = values.events // { maxBytes = 5; }; });
    expected = [ "events.maxBytes" ];
  };
}
