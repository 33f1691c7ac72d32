# Tests of the container template nats: its modules, separately and together.
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
  # Evaluates the modules without the module system: defaults are the values.
  lib = {
    mkDefault = value: value;
    mkForce = value: value;
  };
  security = import ../../../containers/nats/security.nix { inherit lib; };
  jetstream = import ../../../containers/nats/jetstream.nix { inherit lib; };
  system = import ../../../containers/nats/system.nix {
    inherit lib;
    config.services.cim-nats.serverName = "nats";
  };
  containerWith = options: import ../../../nixos-modules/container { inherit lib options; };
  container = containerWith { boot = { }; };

  merge =
    a: b:
    a
    // mapAttrs (name: value: if isAttrs value && isAttrs (a.${name} or null) then merge a.${name} value else value) b;
  # The host's defaults, overridden by the template's modules.
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
  settings = import ../../../nixos-modules/nats/settings.nix { credentialsDirectory = "/run/credentials/nats.service"; } together;
  refused = map (check: check.message) (
    filter (check: !check.assertion) (import ../../../nixos-modules/nats/checks.nix { ownNetwork = true; } together)
  );
in
{
  "it accepts the arguments of every template, and nixpkgs; all are optional" = {
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
  "its modules together satisfy the assertions" = {
    expr = refused;
    expected = [ ];
  };
  "the server's identity comes only from the container's credentials" = {
    expr = import ../../../nixos-modules/nats/credentials.nix together;
    expected = {
      "operator.jwt" = "nats.operator.jwt";
      "accounts.conf" = "nats.accounts.conf";
      "tls.pem" = "nats.tls.pem";
      "tls.key" = "nats.tls.key";
    };
  };
  "it is in operator mode and uses TLS for clients and leaves" = {
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
  "it allows fewer connections and subscriptions than a host's server" = {
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
  "it does not configure the network that the leaf has set up" = {
    expr = [
      container.networking.useDHCP
      container.networking.useHostResolvConf
      system.services.cim-nats.addressOnLo
    ];
    expected = [
      false
      false
      false
    ];
  };
  "older and newer NixOS evaluate it as a container" = {
    expr = map (boot: removeAttrs boot [ "kernel" "specialFileSystems" ]) [
      container.boot
      (containerWith { boot.isNspawnContainer = { }; }).boot
    ];
    expected = [
      { isContainer = true; }
      { isNspawnContainer = true; }
    ];
  };
}
