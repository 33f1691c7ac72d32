{ throws, ... }:
let
  units = import ../../../nixos-modules/leaf/units.nix { package = "/package"; };
  directory = ../../../nixos-modules/leaf/units;
  leafd = units.unit (directory + "/leafd.service");
  helper = units.unit (directory + "/leaf-helper.service");
in
{
  "leafd runs as its own user, without any capability" = {
    expr = {
      inherit (leafd.Service)
        User
        CapabilityBoundingSet
        NoNewPrivileges
        ProtectSystem
        ;
    };
    expected = {
      User = "leafd";
      CapabilityBoundingSet = "";
      NoNewPrivileges = "yes";
      ProtectSystem = "strict";
    };
  };
  "leafd says itself when it is ready" = {
    expr = { inherit (leafd.Service) Type ExecStart; };
    expected = {
      Type = "notify";
      ExecStart = "/package/bin/leafd run --config /etc/cim-leaf/leafd.toml";
    };
  };
  "the helper may use unix and netlink sockets only" = {
    expr = helper.Service.RestrictAddressFamilies;
    expected = "AF_UNIX AF_NETLINK";
  };
  "the guard of a change has no network, and is before leafd at a boot" = {
    expr =
      let
        guard = units.unit (directory + "/leaf-change.service");
      in
      {
        inherit (guard.Service)
          Restart
          RestartPreventExitStatus
          PrivateNetwork
          RestrictAddressFamilies
          CapabilityBoundingSet
          ;
        inherit (guard.Unit) Before ConditionPathExists;
        inherit (guard.Install) WantedBy;
      };
    expected = {
      Restart = "always";
      RestartPreventExitStatus = "0";
      PrivateNetwork = "yes";
      RestrictAddressFamilies = "AF_UNIX";
      CapabilityBoundingSet = "CAP_CHOWN";
      Before = "leafd.service";
      ConditionPathExists = [
        "|/var/lib/cim-leaf-change/armed.json"
        "|/var/lib/cim-leaf-change/going-back.json"
        "|/var/lib/cim-leaf-change/blessed.json"
      ];
      WantedBy = "multi-user.target";
    };
  };
  "only leafd may connect to the socket" = {
    expr = { inherit ((units.unit (directory + "/leaf-helper.socket")).Socket) SocketUser SocketMode ListenStream; };
    expected = {
      SocketUser = "leafd";
      SocketMode = "0600";
      ListenStream = "/run/cim-leaf/helper.sock";
    };
  };
  "the options of a unit have all of its keys" = {
    expr = units.optionsOf (
      "[Unit]\nDescription=A\nAfter=b.service  c.service\nAfter=d.socket\nStartLimitIntervalSec=0\n"
      + "[Service]\nA=1\n[Install]\nWantedBy=x.target\n"
    );
    expected = {
      description = "A";
      after = [
        "b.service"
        "c.service"
        "d.socket"
      ];
      wantedBy = [ "x.target" ];
      unitConfig.StartLimitIntervalSec = "0";
      serviceConfig.A = "1";
    };
  };
  "a section or a key of [Install] that NixOS has no option for is refused" = {
    expr = map (text: throws (units.optionsOf "[Unit]\nDescription=A\n${text}")) [
      "[Timer]\nA=1\n"
      "[Install]\nAlias=b.service\n"
    ];
    expected = [
      true
      true
    ];
  };
  "a key that is set more than once keeps all its values in order" = {
    expr = units.parse ("# a comment\n[Service]\nA=1\nB=x=y\nA=\nA=3\n");
    expected = {
      Service = {
        A = [
          "1"
          ""
          "3"
        ];
        B = "x=y";
      };
    };
  };
  "a line that is not part of a unit is refused" = {
    expr = map (text: throws (units.parse text)) [
      "A=1\n"
      "[Service]\nnonsense\n"
    ];
    expected = [
      true
      true
    ];
  };
}
