# The parts of the container template nats, each on its own and together.
{ ... }:
let
  inherit (builtins)
    attrValues
    all
    filter
    foldl'
    functionArgs
    isAttrs
    map
    mapAttrs
    removeAttrs
    ;
  template = import ../../../containers/nats;
  # Modules, without the module system: what they say is so.
  lib.mkDefault = value: value;
  security = import ../../../containers/nats/security.nix { inherit lib; };
  jetstream = import ../../../containers/nats/jetstream.nix { inherit lib; };
  systemWith =
    options:
    import ../../../containers/nats/system.nix {
      inherit lib options;
      config.services.cim-nats.serverName = "nats";
    };
  system = systemWith { boot = { }; };

  merge =
    a: b:
    a
    // mapAttrs (name: value: if isAttrs value && isAttrs (a.${name} or null) then merge a.${name} value else value) b;
  # Of a host's defaults, all but what the template says anew.
  values = import ../nats/values.nix;
  together = foldl' merge (values // {
    role = "hub";
    operator = values.operator // {
      systemAccount = null;
      accounts = { };
    };
    leafnodes = values.leafnodes // {
      enable = true;
      address = "0.0.0.0";
    };
  }) (map (part: part.services.cim-nats) [ system security jetstream ]);
  settings = import ../../../nixos-modules/nats/settings.nix { folder = "/run/credentials/nats.service"; } together;
  refused = map (check: check.message) (
    filter (check: !check.assertion) (import ../../../nixos-modules/nats/checks.nix { ownNetwork = true; } together)
  );
in
{
  "it takes what every template is given, and needs nothing more than nixpkgs" = {
    expr =
      let
        arguments = functionArgs template;
      in
      [
        (arguments ? leafInit)
        (arguments ? nixpkgs)
        (all (optional: optional) (attrValues arguments))
      ];
    expected = [
      true
      true
      true
    ];
  };
  "its parts together hold" = {
    expr = refused;
    expected = [ ];
  };
  "who the server is comes to the container as credentials, and nothing of it stands in the system" = {
    expr = import ../../../nixos-modules/nats/credentials.nix together;
    expected = {
      "operator.jwt" = "nats.operator.jwt";
      "accounts.conf" = "nats.accounts.conf";
      "tls.pem" = "nats.tls.pem";
      "tls.key" = "nats.tls.key";
    };
  };
  "it is in operator mode, and speaks TLS with clients and with leaves" = {
    expr = [
      settings.operator
      settings.include
      settings.tls.cert_file
      (settings.leafnodes.tls == settings.tls)
    ];
    expected = [
      "/run/credentials/nats.service/operator.jwt"
      "/run/credentials/nats.service/accounts.conf"
      "/run/credentials/nats.service/tls.pem"
      true
    ];
  };
  "it takes fewer connections and subscriptions than a host's server" = {
    expr =
      settings.max_connections < values.limits.maxConnections
      && settings.max_subscriptions < values.limits.maxSubscriptions;
    expected = true;
  };
  "it stores durably, within limits that fit a container" = {
    expr = removeAttrs settings.jetstream [ "domain" ];
    expected = {
      store_dir = "/var/lib/nats/jetstream";
      max_file_store = 2147483648;
      max_memory_store = 33554432;
      sync_interval = "always";
    };
  };
  "nobody logs in" = {
    expr = [
      security.services.openssh.enable
      security.security.sudo.enable
      security.users.mutableUsers
    ];
    expected = [
      false
      false
      false
    ];
  };
  "it leaves its network as the leaf has set it up" = {
    expr = [
      system.networking.useDHCP
      system.networking.useHostResolvConf
      system.services.cim-nats.addressOnLo
    ];
    expected = [
      false
      false
      false
    ];
  };
  "it is a container to older and to newer NixOS" = {
    expr = [
      system.boot
      (systemWith { boot.isNspawnContainer = { }; }).boot
    ];
    expected = [
      { isContainer = true; }
      { isNspawnContainer = true; }
    ];
  };
}
