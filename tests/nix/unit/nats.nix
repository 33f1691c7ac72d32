{ throws }:
let
  inherit (builtins)
    concatMap
    filter
    genList
    head
    isAttrs
    map
    mapAttrs
    match
    storeDir
    stringLength
    ;
  settings = import ../../../nixos-modules/nats/settings.nix { credentialsDirectory = "/run/credentials/nats.service"; };
  render = import ../../../nixos-modules/nats/render.nix;
  credentials = import ../../../nixos-modules/nats/credentials.nix;
  checks = import ../../../nixos-modules/nats/checks.nix;
  url = import ../../../nixos-modules/nats/url.nix;
  values = import ../nats/values.nix;

  merge =
    a: b:
    a
    // mapAttrs (name: value: if isAttrs value && isAttrs (a.${name} or null) then merge a.${name} value else value) b;
  with' = merge values;
  account = values.operator.systemAccount;

  # A leaf with a hub; its files are on the host.
  hub = {
    urls = [ "tls://hub.example:7422" ];
    inherit account;
    credentialsFile = "/run/keys/hub.creds";
    denyImports = [ ];
    denyExports = [ "private.>" ];
    tls = {
      caFile = "${storeDir}/x-ca.pem";
      certFile = "/run/keys/leaf.pem";
      keyFile = "/run/keys/leaf.key";
    };
  };
  connected = with' { remotes = { inherit hub; }; };
  # A leaf whose operator and certificate are created on the host.
  onHost =
    with' {
      tls = {
        certFile = "/run/keys/nats.pem";
        keyFile = "/run/keys/nats.key";
      };
    }
    // {
      operator = values.operator // {
        jwtFile = "/var/lib/op/operator.jwt";
        accountsFile = "nats.accounts.conf";
        systemAccount = null;
        accounts = { };
      };
    };
  asHub = with' {
    role = "hub";
    address = "192.0.2.1";
    addressOnLo = false;
    leafnodes = {
      enable = true;
      address = "192.0.2.1";
    };
    tls = {
      certFile = "/run/keys/nats.pem";
      keyFile = "/run/keys/nats.key";
    };
  };

  # The options that the failed assertions name.
  refusedBy =
    given: cfg:
    map (check: head (match "services\\.cim-nats\\.([^:]*): .*" check.message)) (
      filter (check: !check.assertion) (checks given cfg)
    );
  refused = refusedBy { };
  refusedAt = change: refused (with' change);
  ofHub = change: refused (with' { remotes.hub = merge hub change; });
  leaf = change: {
    leaf = {
      enable = true;
      nats = {
        embedded.enable = false;
        credentialsFile = "/run/keys/leafd.creds";
      } // change;
      containers.addressPool = "10.233.0.0/16";
    };
  };
in
{
  # settings

  "a leaf's server listens on its one address, in operator mode, with JetStream in a domain and without monitoring" = {
    expr = render (settings values);
    expected = ''
      host: "10.233.0.1"
      jetstream: {"domain":"edge-1","max_file_store":8589934592,"max_memory_store":67108864,"store_dir":"/var/lib/nats/jetstream","sync_interval":"1s"}
      max_connections: 1024
      max_payload: 1048576
      max_pending: 67108864
      max_subscriptions: 10000
      operator: "/nix/store/00000000000000000000000000000000-operator.jwt"
      ping_interval: "2s"
      ping_max: 2
      port: 4222
      resolver: "MEMORY"
      resolver_preload: {"${account}":"${builtins.readFile ../nats/system.jwt}"}
      server_name: "edge-1"
      system_account: "${account}"
      write_deadline: "10s"
    '';
  };
  "a remote has its credentials in systemd's directory and denies object buckets in both directions" = {
    expr = (settings connected).leafnodes;
    expected.remotes = [
      {
        urls = [ "tls://hub.example:7422" ];
        inherit account;
        credentials = "/run/credentials/nats.service/hub.creds";
        deny_imports = [ "$O.>" ];
        deny_exports = [
          "$O.>"
          "private.>"
        ];
        tls = {
          ca_file = "${storeDir}/x-ca.pem";
          cert_file = "/run/credentials/nats.service/hub.pem";
          key_file = "/run/credentials/nats.service/hub.key";
        };
      }
    ];
  };
  "a hub uses one certificate for clients and leaves" = {
    expr = (settings asHub).leafnodes;
    expected = {
      host = "192.0.2.1";
      port = 7422;
      isolate_leafnode_interest = true;
      inherit (settings asHub) tls;
    };
  };
  "the server reads an operator and accounts of the host when it starts" = {
    expr =
      let
        made = settings onHost;
      in
      [
        made.operator
        made.include
        (made ? resolver)
        (made ? resolver_preload)
      ];
    expected = [
      "/run/credentials/nats.service/operator.jwt"
      "/run/credentials/nats.service/accounts.conf"
      false
      false
    ];
  };
  "a full resolver keeps its accounts beside JetStream's storage, and deletes none" = {
    expr = {
      inherit ((settings (with' { operator.resolver = "full"; })).resolver) dir allow_delete;
    };
    expected = {
      dir = "/var/lib/nats/accounts";
      allow_delete = false;
    };
  };
  "monitoring listens on the loopback" = {
    expr = (settings (with' { monitoring.port = 8222; })).http;
    expected = "127.0.0.1:8222";
  };
  "JetStream can be disabled" = {
    expr = settings (with' { jetstream.enable = false; }) ? jetstream;
    expected = false;
  };
  "messages can be made durable before they are acknowledged" = {
    expr = (settings (with' { jetstream.syncInterval = "always"; })).jetstream.sync_interval;
    expected = "always";
  };

  # credentials

  "each file on the host is a credential with its own name" = {
    expr = credentials (merge onHost { remotes = { inherit hub; }; });
    expected = {
      "operator.jwt" = "/var/lib/op/operator.jwt";
      "accounts.conf" = "nats.accounts.conf";
      "tls.pem" = "/run/keys/nats.pem";
      "tls.key" = "/run/keys/nats.key";
      "hub.creds" = "/run/keys/hub.creds";
      "hub.pem" = "/run/keys/leaf.pem";
      "hub.key" = "/run/keys/leaf.key";
    };
  };
  "a file in the store is not a credential" = {
    expr = credentials values;
    expected = { };
  };
  "the sources of secrets are not in the configuration" = {
    expr = match ".*(/run/keys|/var/lib/op).*" (
      builtins.replaceStrings [ "\n" ] [ " " ] (render (settings (merge onHost { remotes = { inherit hub; }; })))
    );
    expected = null;
  };

  # text

  "what is included comes first, from wherever the configuration is" = {
    expr = render {
      a = 1;
      include = "/run/x.conf";
    };
    expected = "include \"${builtins.concatStringsSep "/" (genList (_: "..") 16)}/run/x.conf\"\na: 1\n";
  };
  "control characters are refused, since nats-server reads few escapes" = {
    expr = map (text: throws (render { a.b = [ text ]; })) [
      "a\nb"
      "a\tb"
      (builtins.fromJSON ''"\u0007"'')
    ];
    expected = [
      true
      true
      true
    ];
  };

  # the URL

  "clients find the server under its address, by TLS if it has a certificate" = {
    expr = map url [
      values
      asHub
      (with' { address = "0.0.0.0"; })
      (with' { address = "fd00::1"; })
    ];
    expected = [
      "nats://10.233.0.1:4222"
      "tls://192.0.2.1:4222"
      "nats://127.0.0.1:4222"
      "nats://[fd00::1]:4222"
    ];
  };

  # checks

  "a leaf, a leaf with a hub, a leaf with its files on the host, and a hub are accepted" = {
    expr = concatMap refused [
      values
      connected
      onHost
      asHub
    ];
    expected = [ ];
  };
  "one address of the host is accepted" = {
    expr = concatMap (address: refusedAt { inherit address; }) [
      "127.0.0.1"
      "10.233.0.1"
      "fd00::1"
    ];
    expected = [ ];
  };
  "a server that listens on all addresses is refused" = {
    expr = concatMap (address: refusedAt { inherit address; addressOnLo = false; tls = asHub.tls; }) [
      "0.0.0.0"
      "::"
    ];
    expected = [
      "address"
      "address"
    ];
  };
  "a container with its own network may listen on all addresses" = {
    expr = refusedBy { ownNetwork = true; } (with' { address = "0.0.0.0"; addressOnLo = false; inherit (asHub) tls; });
    expected = [ ];
  };
  "a text that is not an address is refused" = {
    expr = concatMap (address: refusedAt { inherit address; }) [
      ""
      "edge-1"
      "10.233.0"
      "10.233.0.256"
      "10.233.0.01"
      "10.233.0.1/32"
    ];
    expected = genList (_: "address") 6;
  };
  "an address that other hosts can reach is refused without TLS" = {
    expr = refusedAt { addressOnLo = false; };
    expected = [ "address" ];
  };
  "a hub without TLS for clients and leaves is refused" = {
    expr = refused (merge asHub { tls = { certFile = null; keyFile = null; }; });
    expected = [
      "address"
      "leafnodes.address"
    ];
  };
  "a server without an operator is refused" = {
    expr = refusedAt { operator.jwtFile = null; };
    expected = [ "operator.jwtFile" ];
  };
  "a system account that is not one of the accounts is refused" = {
    expr = refused (values // { operator = values.operator // { accounts = { }; }; });
    expected = [ "operator.systemAccount" ];
  };
  "accounts from a file and from options are refused" = {
    expr = refusedAt { operator.accountsFile = "/run/keys/accounts.conf"; };
    expected = [ "operator" ];
  };
  "an invalid account or JWT is refused" = {
    expr =
      refusedAt { operator.accounts.ABC = "eyJh.eyJz.c2ln"; }
      ++ refusedAt { operator.accounts.${account} = "SUAM secret"; };
    expected = [
      "operator.accounts"
      "operator.accounts"
    ];
  };
  "secrets in the store, and relative paths that are not credentials' names, are refused" = {
    expr = concatMap (file: refusedAt { tls = { certFile = "/run/a.pem"; keyFile = file; }; }) [
      "${storeDir}/x-a.key"
      "./a.key"
      "keys/a.key"
    ];
    expected = genList (_: "tls.keyFile") 3;
  };
  "a CA certificate on the host is refused, since the build needs it" = {
    expr = refused (merge asHub { tls.caFile = "/etc/ca.pem"; });
    expected = [ "tls.caFile" ];
  };
  "a certificate without its key is refused" = {
    expr = refusedAt { tls.certFile = "/run/a.pem"; };
    expected = [ "tls" ];
  };
  "verifying clients' certificates without a CA is refused" = {
    expr = refused (merge asHub { tls.verify = true; });
    expected = [ "tls.verify" ];
  };
  "two listeners on one port are refused" = {
    expr = refused (merge asHub { leafnodes.port = 4222; }) ++ refusedAt { monitoring.port = 4222; };
    expected = [
      "port"
      "port"
    ];
  };
  "the URL of a hub without TLS or with a password is refused" = {
    expr = concatMap (url: ofHub { urls = [ url ]; }) [
      "nats-leaf://hub.example:7422"
      "nats://hub.example:7422"
      "hub.example:7422"
      "tls://user:password@hub.example:7422"
    ];
    expected = genList (_: "remotes.hub.urls") 4;
  };
  "a hub on the same host needs no TLS" = {
    expr = ofHub {
      urls = [
        "nats-leaf://127.0.0.1:7422"
        "nats-leaf://localhost:7422"
      ];
    };
    expected = [ ];
  };
  "a hub without a valid account, or with credentials in the store, is refused" = {
    expr = ofHub { account = "LEAF"; credentialsFile = "${storeDir}/x-hub.creds"; };
    expected = [
      "remotes.hub.account"
      "remotes.hub.credentialsFile"
    ];
  };
  "a hub's name that collides with a credential or can't be a file name is refused" = {
    expr = concatMap (name: refused (with' { remotes.${name} = hub; })) [
      "tls"
      "a/b"
    ];
    expected = [
      "remotes.tls"
      "remotes.a/b"
    ];
  };
  "a domain that can't be part of a subject is refused" = {
    expr = concatMap (domain: refusedAt { jetstream = { inherit domain; }; }) [
      ""
      "a.b"
      "a b"
      ">"
    ];
    expected = genList (_: "jetstream.domain") 4;
  };
  "a sync interval for which a leaf's journal does not keep its events is refused" = {
    expr =
      map (syncInterval: refusedAt { jetstream = { inherit syncInterval; }; })
        [
          "5m"
          "1h"
          "241s"
          "always"
          "4m"
          "240s"
          "500ms"
        ];
    expected =
      genList (_: [ "jetstream.syncInterval" ]) 3 ++ genList (_: [ ]) 4;
  };
  "a buffer shorter than the longest message is refused" = {
    expr = refusedAt { limits.maxPendingBytes = 5; };
    expected = [ "limits.maxPendingBytes" ];
  };
  "a state directory that is relative or in the store is refused" = {
    expr = refusedAt { dataDir = "nats"; } ++ refusedAt { dataDir = "${storeDir}/x"; };
    expected = [
      "dataDir"
      "dataDir"
    ];
  };
  "a leaf's daemon with credentials is accepted" = {
    expr = refusedBy (leaf { }) values;
    expected = [ ];
  };
  "the daemon's embedded server beside this one is refused" = {
    expr = refusedBy (leaf { embedded.enable = true; credentialsFile = null; }) values;
    expected = [ "enable" ];
  };
  "an address that is not the leaf's in its pool is refused, and one on the loopback interface's own is accepted" = {
    expr = map (change: refusedBy (leaf { }) (with' change)) [
      { address = "10.234.0.1"; }
      { address = "10.233.0.2"; }
      {
        address = "127.0.0.1";
        addressOnLo = false;
      }
    ];
    expected = [
      [ "address" ]
      [ "address" ]
      [ ]
    ];
  };
  "a leaf's daemon without credentials is refused" = {
    expr = refusedBy (leaf { credentialsFile = null; }) values;
    expected = [ "operator" ];
  };
  "every message is a sentence" = {
    expr = filter (check: match ".*[.]" check.message == null || stringLength check.message < 30) (
      checks (leaf { }) (merge asHub { remotes = { inherit hub; }; })
    );
    expected = [ ];
  };
}
