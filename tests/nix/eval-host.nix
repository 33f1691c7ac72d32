# Evaluates the modules and every host of hosts/ with the real NixOS modules, up to the text of the unit:
#
#   NIXPKGS=<tree> nix-instantiate --eval --strict --json tests/nix/eval-host.nix
#
# The tree is nixpkgs, or has at least its lib/ and nixos/. No package set is needed: stub-packages.nix replaces it.
# Prints `{"passed":N,"hosts":{"<host>":{"unit":…,"settings":…},…}}`. A failed assertion of a module or a failed
# expectation below fails the command, with its name.
let
  evaluation = import ./evaluation.nix {
    modules = [
      ../../nixos-modules/leaf
      ../../nixos-modules/host
    ];
  };
  inherit (evaluation) lib evaluate;
  inherit (lib) hasInfix;
  ourModule = "/nixos-modules/leaf/";

  text =
    host:
    let
      inherit (host) config;
    in
    evaluation.accepted ourModule host {
      unit = config.systemd.units."leafd.service".text;
      helper = config.systemd.units."leaf-helper.service".text;
      socket = config.systemd.units."leaf-helper.socket".text;
      guard = config.systemd.units."leaf-change.service".text;
      witness = config.systemd.units."leaf-change-witness.service".text;
      secrets = config.systemd.units."leaf-secrets@.service".text;
      secrets_socket = config.systemd.units."leaf-secrets.socket".text;
      helper_settings = builtins.unsafeDiscardStringContext config.environment.etc."cim-leaf/helper.toml".text;
      settings = builtins.unsafeDiscardStringContext config.services.cim-leaf.settingsFile.env.toml;
      check = config.services.cim-leaf.settingsFile.text;
      kernel_modules = config.boot.initrd.availableKernelModules;
    };

  hosts = lib.mapAttrs (_: host: text (evaluate host.modules)) (import ../../hosts);

  # A leaf without containers, with an external NATS server.
  quiet = evaluate [
    {
      system.stateVersion = "25.05";
      boot.loader.grub.enable = false;
      networking.hostName = "Quiet";
      services.cim-leaf = {
        enable = true;
        witnesses = [ "ssh-ed25519 AAAA hub-1" ];
        nats = {
          url = "tls://hub.example:4222";
          credentialsFile = "/run/secrets/leafd.creds";
        };
      };
    }
  ];
  wrong = evaluate [
    {
      system.stateVersion = "25.05";
      boot.loader.grub.enable = false;
      services.cim-leaf = {
        enable = true;
        name = "Not A Token";
        containers.addressPool = "8.8.0.0/16";
      };
    }
  ];

  # A host with containers whose firewall flushes all rules, or only its own tables.
  firewall =
    flushRuleset:
    (evaluate [
      {
        system.stateVersion = "25.05";
        boot.loader.grub.enable = false;
        networking = {
          hostName = "firewall";
          nftables = {
            enable = true;
            inherit flushRuleset;
          };
        };
        services.cim-leaf = {
          enable = true;
          nats.embedded.enable = true;
          containers.enable = true;
        };
      }
    ]).config.systemd.services;
  flushing = firewall true;
  flushes = flushing.nftables.serviceConfig;
  network = change: command: lib.hasSuffix "/bin/leaf-helper network ${change}" command;

  has = name: unit: line: {
    name = "${name} has the line ${line}";
    holds = hasInfix "\n${line}\n" unit;
  };
  hasNot = name: unit: part: {
    name = "${name} does not have ${part}";
    holds = !hasInfix part unit;
  };

  # The unit of the module is the one in nixos-modules/leaf/units, which the test host and other distributions have, key
  # by key, but for `own`, the keys that are the module's own; NixOS adds those of `added`.
  units = import ../../nixos-modules/leaf/units.nix { package = "@package@"; };
  sameUnit =
    name: text: file: own:
    let
      ofFile = units.unit (../../nixos-modules/leaf/units + "/${file}");
      ofModule = units.parse (
        builtins.replaceStrings [ "${package}" ] [ "@package@" ] (builtins.unsafeDiscardStringContext text)
      );
      added = [
        "Unit.X-Restart-Triggers"
        "Service.Environment"
        "Service.LoadCredential"
        "Service.X-StopIfChanged"
        "Service.X-RestartIfChanged"
      ];
      # The values, or their words where the order of lines means nothing.
      values =
        section: value:
        if section == "Service" || section == "Socket" then
          lib.toList value
        else
          lib.concatMap (lib.splitString " ") (lib.toList value);
      flat =
        unit:
        lib.concatMapAttrs (
          section: lib.mapAttrs' (key: value: lib.nameValuePair "${section}.${key}" (values section value))
        ) unit;
      wanted = flat ofFile;
      found = flat ofModule;
      differ = lib.filter (key: !(lib.elem key own) && (found.${key} or null) != wanted.${key}) (
        lib.attrNames (removeAttrs wanted added)
      );
      more = lib.filter (key: !(wanted ? ${key}) && !(lib.elem key added)) (lib.attrNames found);
      # What the file says of an added key, the module says as well.
      fewer = lib.filter (key: wanted ? ${key} && lib.subtractLists found.${key} wanted.${key} != [ ]) added;
    in
    {
      name = "${name} has each key of units/${file} with its value and no others, but ${toString (differ ++ more ++ fewer)}";
      holds = differ == [ ] && more == [ ] && fewer == [ ];
    };
  package = builtins.unsafeDiscardStringContext "${quiet.config.services.cim-leaf.package}";

  # A host that began as a copy of the example.
  copy =
    more:
    evaluate (
      [
        ../../hosts/example
        {
          networking.hostName = "edge-7";
          cim.host.facterReport = ../../hosts/example/facter.json;
        }
      ]
      ++ more
    );
  lockedOut =
    "hosts/edge-7: nobody can log in to this host, and its NATS server can be reached from the host only; set `owner` to "
    + "your public SSH keys.";

  expectations =
    lib.concatLists (
      lib.mapAttrsToList (name: host: [
        (sameUnit name host.unit "leafd.service" [
          "Unit.Description"
          "Service.ExecStart"
        ])
        (sameUnit name host.helper "leaf-helper.service" [ ])
        (sameUnit name host.socket "leaf-helper.socket" [ ])
        (sameUnit name host.guard "leaf-change.service" [ ])
        (sameUnit name host.witness "leaf-change-witness.service" [ "Service.ExecStart" ])
        (has name host.guard "Before=leafd.service")
        (has name host.guard "ConditionPathExists=|/var/lib/cim-leaf-change/armed.json")
        (has name host.guard "Restart=always")
        (has name host.guard "PrivateNetwork=yes")
        (has name host.witness "User=leafd")
        (has name host.witness "CapabilityBoundingSet=")
        (sameUnit name host.secrets "leaf-secrets@.service" [ ])
        (sameUnit name host.secrets_socket "leaf-secrets.socket" [ ])
        (has name host.unit "StartLimitIntervalSec=0")
        (has name host.helper "StartLimitIntervalSec=0")
        (has name host.unit "Type=notify")
        (has name host.unit "WatchdogSec=30")
        (has name host.unit "ProtectSystem=strict")
        (has name host.unit "KillMode=mixed")
        (has name host.unit "User=leafd")
        (has name host.unit "NoNewPrivileges=yes")
        (has name host.unit "CapabilityBoundingSet=")
        (hasNot name host.unit "CAP_")
        (has name host.helper "RestrictAddressFamilies=AF_UNIX AF_NETLINK")
        (has name host.socket "SocketUser=leafd")
        (has name host.socket "SocketMode=0600")
        {
          name = "${name}'s helper serves the same leaf";
          holds = (builtins.fromTOML host.helper_settings).leaf == name;
        }
        {
          name = "${name}'s settings name it";
          holds = (builtins.fromTOML host.settings).name == name;
        }
        {
          name = "${name}'s settings are checked by leafd while the system is built";
          holds = hasInfix "/bin/leafd check-config $out" host.check;
        }
      ]) hosts
    )
    ++ [
      {
        name = "the example host has the kernel module of its report's disk in the initrd";
        holds = builtins.elem "nvme" hosts.example.kernel_modules;
      }
      {
        name = "the helper of a leaf has the keys of its witnesses";
        holds = (builtins.fromTOML (text quiet).helper_settings).witnesses == [ "ssh-ed25519 AAAA hub-1" ];
      }
      (has "a leaf without containers" (text quiet).unit "User=leafd")
      (has "a leaf without containers" (text quiet).unit "CapabilityBoundingSet=")
      (has "a leaf without containers" (text quiet).unit "LoadCredential=nats.creds:/run/secrets/leafd.creds")
      {
        name = "a leaf without containers has its own user";
        holds = quiet.config.users.users.leafd.isSystemUser && quiet.config.users.users.leafd.group == "leafd";
      }
      {
        name = "the leaf's name is the host's in lower case";
        holds = (builtins.fromTOML (text quiet).settings).name == "quiet";
      }
      {
        name = "a copy of the example host without an owner's key is refused, and the example warns of that";
        holds =
          evaluation.refused "/hosts/" (copy [ ]) == [ lockedOut ]
          && evaluation.refused "/hosts/" (evaluate (import ../../hosts).example.modules) == [ ]
          && builtins.any (hasInfix "set `owner`") (import ../../hosts/example {
            inherit (evaluate (import ../../hosts).example.modules) config;
            inherit lib;
          }).warnings;
      }
      {
        name = "a copy of the example host with an owner's key is a leaf, and takes root's logins by key only";
        holds =
          let
            host = copy [ { users.users.root.openssh.authorizedKeys.keys = [ "ssh-ed25519 AAAA me@laptop" ]; } ];
          in
          evaluation.refused "/hosts/" host == [ ]
          && evaluation.refused "/nixos-modules/" host == [ ]
          && host.config.services.openssh.enable
          && host.config.services.openssh.settings.PermitRootLogin == "prohibit-password"
          && !host.config.services.openssh.settings.PasswordAuthentication
          && builtins.elem 22 host.config.networking.firewall.allowedTCPPorts;
      }
      {
        name = "the operators of a leaf are members of the group that may command it, which has no others";
        holds =
          (copy [ { services.cim-leaf.operators = [ "alice" ]; } ]).config.users.groups.leafd.members == [ "alice" ]
          && quiet.config.users.groups.leafd.members == [ ];
      }
      (evaluation.documented { inherit (quiet.options.services) cim-leaf; inherit (quiet.options) cim; })
      {
        name = "the containers are cut off before a flush of all rules, and connected again after it";
        holds =
          builtins.all (key: network "close" (lib.head flushes.${key})) [
            "ExecStartPre"
            "ExecReload"
            "ExecStop"
          ]
          && builtins.all (key: network "open" (lib.last flushes.${key})) [
            "ExecStartPost"
            "ExecReload"
            "ExecStopPost"
          ];
      }
      {
        name = "the network of containers is opened after a reload of the firewall that fails";
        holds =
          let
            opening = flushing.leaf-network-open;
          in
          hasInfix "/bin/systemctl start --no-block leaf-network-open" (lib.elemAt flushes.ExecReload 1)
          && lib.hasPrefix "-" (lib.elemAt flushes.ExecReload 1)
          # Its start waits for the end of a reload, which does not wait for it.
          && opening.after == [ "nftables.service" ]
          && opening.serviceConfig.Type == "oneshot"
          && network "open" opening.serviceConfig.ExecStart
          && !builtins.elem "leaf-network-open.service" (flushing.nftables.after ++ flushing.nftables.requires);
      }
      {
        name = "a firewall that replaces its own tables only is left alone";
        holds =
          let
            own = firewall false;
          in
          !(own.nftables.serviceConfig ? ExecStartPre || own.nftables.serviceConfig ? ExecStopPost)
          && !(own ? leaf-network-open);
      }
      {
        name = "each wrong option is refused with its own message";
        holds = builtins.length (evaluation.refused ourModule wrong) == 3;
      }
    ];
in
evaluation.report expectations {
  hosts = hosts // { "a leaf without containers" = text quiet; };
}
