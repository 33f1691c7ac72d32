# A package set with nixpkgs' names whose programs are Debian's. What a module only names is an empty package.
{
  lib,
  nixpkgs,
  tree,
  kernelModules,
  programs,
  natsServer,
  nixosContainer,
  system ? "x86_64-linux",
}:
let
  inherit (import ./stdenv.nix {
    inherit lib system;
    root = null;
  }) runCommand;
  root = runCommand "debian-root" {
    inherit tree;
    script = ./debian-root.sh;
  } ". $script";
  std = import ./stdenv.nix { inherit lib system root; };
  inherit (std) make;

  platform = lib.systems.elaborate system;

  # A package of nixpkgs: the files of some of Debian's packages, as links into the root. Text that systemd, udev or D-Bus
  # reads is copied, and its paths led into the root.
  debian = pname: debs: debianWith pname debs { };
  debianWith =
    pname: debs: attrs:
    make (
      {
        inherit pname root;
        version = "debian";
        debs = lib.toList debs;
        buildCommand = ''
          mkdir -p $out
          for deb in $debs; do
            list=$root/share/dpkg/$deb.list
            [ -e $list ] || list=$root/share/dpkg/$deb:amd64.list
            if [ ! -e $list ]; then
              echo "Debian's package $deb is not in its tree" >&2
              exit 1
            fi
            while read -r file; do
              file=''${file#/usr}
              file=''${file#/}
              case $file in
                sbin/*) file=bin/''${file#sbin/} ;;
              esac
              case $file in
                bin/* | lib/* | libexec/* | share/*) ;;
                *) continue ;;
              esac
              from=$root/$file
              if [ -d $from ] && [ ! -L $from ]; then continue; fi
              if [ ! -e $from ] && [ ! -L $from ]; then continue; fi
              to=$out/''${file/lib\/x86_64-linux-gnu\//lib/}
              [ -d ''${to%/*} ] || mkdir -p ''${to%/*}
              case ''${to#$out/} in
                lib/systemd/*.service | lib/systemd/*.socket | lib/systemd/*.target | lib/systemd/*.timer | \
                lib/systemd/*.path | lib/systemd/*/*.conf | lib/udev/rules.d/* | lib/sysusers.d/* | lib/tmpfiles.d/* | \
                share/dbus-1/*)
                  if [ -L $from ]; then
                    cp -P $from $to
                  else
                    sed -E "s,(^|[^a-z.])/usr/s?bin/,\1$root/bin/,g; s,(^|[^a-z./])/s?bin/,\1$root/bin/,g; \
                      s,(^|[^a-z./])/(usr/)?lib/,\1$root/lib/,g; s,^(Exec[A-Za-z]*=[-@:+!]*)([a-z]),\1$root/bin/\2," \
                      $from >$to
                  fi
                  ;;
                *)
                  [ -e $to ] || [ -L $to ] || ln -s $from $to
                  ;;
              esac
            done <$list
          done
          if [ -d $out/bin ]; then ln -s bin $out/sbin; fi
          eval "''${more:-}"
        '';
      }
      // attrs
    );
  same = lib.flip lib.genAttrs (name: debian name name);
  empty =
    name:
    make {
      inherit name;
      buildCommand = "mkdir -p $out/bin";
    };
  # Programs by other names: `{ NAME = PATH in the root; }`.
  links =
    name: paths:
    make {
      inherit name;
      buildCommand = ''
        mkdir -p $out/bin
      ''
      + lib.concatStrings (lib.mapAttrsToList (to: from: "ln -s ${root}/${from} $out/bin/${to}\n") paths);
    };
  file =
    name: command:
    make {
      inherit name;
      buildCommand = "mkdir -p $out\n" + command;
    };

  flags = value: names: lib.genAttrs names (_: value);
  systemd =
    debianWith "systemd"
      [
        "systemd"
        "systemd-container"
        "udev"
        "libnss-systemd"
        "libnss-myhostname"
        "libpam-systemd"
        "libsystemd-shared"
        "libsystemd0"
      ]
      {
        # nixpkgs keeps the units where systemd does not look for them; those that Debian lacks are masked.
        lacking = [
          "systemd-bootctl.socket"
          "systemd-bootctl@.service"
          "systemd-vconsole-setup.service"
        ];
        more = ''
          mkdir -p $out/example/systemd
          mv $out/lib/systemd/{system,user} $out/example/systemd/
          for directory in sysctl.d tmpfiles.d sysusers.d; do
            if [ -d $out/lib/$directory ]; then mv $out/lib/$directory $out/example/; fi
          done
          for unit in $lacking; do
            [ -e $out/example/systemd/system/$unit ] || ln -s /dev/null $out/example/systemd/system/$unit
          done
          # nixpkgs' own takes a directory without usr/ for a container's (its Fix-NixOS-containers.patch), and NixOS's start
          # script relies on it.
          rm $out/bin/systemd-nspawn
          cat >$out/bin/systemd-nspawn <<END
          #!$root/bin/bash
          previous=
          for argument; do
            [ "\$previous" != -D ] || $root/bin/mkdir -p "\$argument/usr"
            previous=\$argument
          done
          exec -a "\$0" $root/bin/systemd-nspawn "\$@"
          END
          chmod +x $out/bin/systemd-nspawn
        '';
        passthru = {
          interfaceVersion = 2;
          inherit (pkgs) kbd kmod util-linux;
        }
        // flags true [
          "withCoredump"
          "withHostnamed"
          "withLocaled"
          "withLogind"
          "withMachined"
          "withNetworkd"
          "withNspawn"
          "withResolved"
          "withTimedated"
          "withTimesyncd"
        ]
        // flags false [
          "withBootloader"
          "withCryptsetup"
          "withEfi"
          "withHomed"
          "withImportd"
          "withKmod"
          "withOomd"
          "withPortabled"
          "withRemote"
          "withRepart"
          "withSysupdate"
          "withSysusers"
          "withTpm2Tss"
          "withUserDb"
          "withUtmp"
        ];
      };

  kernel = make {
    pname = "linux";
    version = "6-debian";
    inherit kernelModules;
    buildCommand = ''
      mkdir -p $out/lib/modules
      cp -r $kernelModules/* $out/lib/modules/
      # The test host starts it by itself.
      touch $out/bzImage
    '';
    passthru = {
      features = { };
      config = lib.genAttrs [ "isEnabled" "isModule" "isNo" "isYes" ] (_: _: true) // {
        isDisabled = _: true;
      };
      isHardened = false;
      kernelAtLeast = _: true;
      kernelOlder = _: false;
      modDirVersion = "6.12";
    };
  };

  # Our programs, as cargo built them. Those that are not static are led into the root.
  cim-leaf = make {
    pname = "cim-leaf";
    version = "built";
    inherit root;
    programs = builtins.path {
      path = programs;
      name = "programs";
    };
    buildCommand = ''
      mkdir -p $out
      cp -r $programs/{bin,share} $out/
      chmod -R u+w $out
      for program in $out/bin/*; do
        if patchelf --print-interpreter $program >/dev/null 2>&1; then
          patchelf --set-interpreter $root/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 \
            --force-rpath --set-rpath $root/lib/x86_64-linux-gnu $program
        fi
      done
      $out/bin/leafd --version
    '';
  };

  pkgs =
    std
    // {
      inherit
        lib
        perl
        pkgs
        stdenv
        system
        systemd
        ;
      debianRoot = root;
      path = nixpkgs;
      config.allowAliases = false;
      overlays = [ ];
      callPackage = lib.callPackageWith pkgs;
      stdenvNoCC = stdenv;
      pkgsStatic = pkgs;
      buildPackages = pkgs;
      runtimeShell = "${pkgs.bash}/bin/bash";
      runtimeShellPackage = pkgs.bash;
      formats = import ./formats.nix { inherit lib pkgs; };
      systemdMinimal = systemd;
      udev = systemd;
      libc = pkgs.glibc;

      # Ours.
      inherit cim-leaf;
      # The same leafd in another path.
      cim-leaf-next = make {
        pname = "cim-leaf";
        version = "next";
        buildCommand = ''
          cp -rs ${cim-leaf}/. $out
          chmod u+w $out/bin
          rm $out/bin/leafd
          cp ${cim-leaf}/bin/leafd $out/bin/
        '';
      };
      nats-server = make {
        pname = "nats-server";
        version = "2";
        program = builtins.path {
          path = natsServer;
          name = "nats-server";
        };
        buildCommand = ''
          mkdir -p $out/bin
          cp $program $out/bin/nats-server
          chmod +x $out/bin/nats-server
        '';
        meta.mainProgram = "nats-server";
      };
      emptyInitrd = file "initrd" "touch $out/initrd";

      # The stock program, where its source is there.
      nixos-container =
        if nixosContainer == null then
          empty "nixos-container"
        else
          lib.makeOverridable (
            { stateDirectory, configurationDirectory }:
            make {
              name = "nixos-container";
              src = builtins.path {
                path = nixosContainer;
                name = "nixos-container.pl";
              };
              inherit stateDirectory configurationDirectory perl;
              utillinux = pkgs.util-linux;
              su = "${pkgs.su}/bin/su";
              buildCommand = ''
                mkdir -p $out/bin
                substituteAllTo $src $out/bin/nixos-container
                chmod +x $out/bin/nixos-container
              '';
            }
          ) {
            stateDirectory = "/var/lib/nixos-containers";
            configurationDirectory = "/etc/nixos-containers";
          };

      # What Debian names otherwise, or has in several packages.
      bash = debianWith "bash" "bash" { more = "ln -sf bash $out/bin/sh"; } // {
        shellPath = "/bin/bash";
      };
      bashInteractive = pkgs.bash;
      busybox = debian "busybox" "busybox-static";
      coreutils-full = pkgs.coreutils;
      dbus = debianWith "dbus" [ "dbus" "dbus-daemon" "dbus-bin" "dbus-system-bus-common" "dbus-session-bus-common" ] {
        more = ''
          mkdir -p $out/libexec
          ln -s ${root}/lib/dbus-1.0/dbus-daemon-launch-helper $out/libexec/dbus-daemon-launch-helper
          sed -i -E "/^(ExecStartPre|AmbientCapabilities|NonBlocking)/d; /^ExecStart=/s,--system ,--config-file=/etc/dbus-1/system.conf ," \
            $out/lib/systemd/system/dbus.service
        '';
      };
      dhcpcd = debian "dhcpcd" "dhcpcd-base";
      gawk = debian "gawk" [ "gawk" "mawk" ];
      getconf = debian "getconf" "libc-bin";
      getent = debian "getent" "libc-bin";
      git = debian "git" "git";
      gitFull = pkgs.git;
      gitMinimal = pkgs.git;
      glibc = debianWith "glibc" [ "libc-bin" "libc6" ] { more = "ln -s ${root}/bin/true $out/bin/nscd"; };
      gnugrep = debian "gnugrep" "grep";
      gnupatch = debian "gnupatch" "patch";
      gnused = debian "gnused" "sed";
      gnutar = debian "gnutar" "tar";
      iptables = debianWith "iptables" "iptables" {
        more = "for name in ip{,6}tables{,-save,-restore}; do ln -sf ${root}/bin/xtables-nft-multi $out/bin/$name; done";
      };
      iputils = debian "iputils" "iputils-ping";
      libcap = debian "libcap" "libcap2-bin";
      linux-pam = debian "linux-pam" [ "libpam-modules" "libpam-modules-bin" "libpam0g" ];
      mkpasswd = debian "mkpasswd" "whois";
      ncurses = debian "ncurses" [ "ncurses-bin" "ncurses-base" ];
      netcat = debian "netcat" "netcat-openbsd";
      nettools = debian "nettools" "hostname";
      # Its directories belong to nobody's group, as with nixpkgs' own.
      nix = debianWith "nix" [ "nix-bin" "nix-setup-systemd" ] {
        version = "2.26.3";
        more = "sed -i 's/770 root nix-users/0755 root root/' $out/lib/tmpfiles.d/nix-daemon.conf";
      };
      openssh = debian "openssh" [ "openssh-server" "openssh-client" "openssh-sftp-server" ];
      pam = pkgs.linux-pam;
      polkit = debian "polkit" [ "polkitd" "libpolkit-gobject-1-0" ];
      qemu_kvm.ga = debian "qemu-ga" "qemu-guest-agent";
      shadow =
        debianWith "shadow" [ "passwd" "uidmap" "login.defs" "login" ] {
          passthru.shellPath = "/bin/nologin";
          more = "ln -sf ${root}/bin/login $out/bin/login; ln -sf ${root}/bin/su $out/bin/su";
        }
        // {
          inherit (pkgs) su;
        };
      unixtools = lib.genAttrs [ "hostname" "ifconfig" "netstat" ] (_: pkgs.nettools);
      util-linux =
        debian "util-linux" [ "util-linux" "util-linux-extra" "mount" "bsdextrautils" "login" "fdisk" ]
        // {
          withPatches = pkgs.util-linux;
        };
      util-linuxMinimal = pkgs.util-linux;
      xz = debian "xz" "xz-utils";

      # Programs by other names.
      su = links "su" { su = "bin/su"; };
      which = links "which" { which = "bin/which.debianutils"; };
      audit = links "audit" { auditctl = "bin/true"; };
      fuse = links "fuse" {
        fusermount = "bin/true";
        fusermount3 = "bin/true";
      };
      fuse3 = pkgs.fuse;
      lndir = std.writeShellScriptBin "lndir" ''cp -rsn --no-dereference "$(readlink -f "$1")/." "$2/"'';
      shellcheck-minimal = pkgs.bash;
      xorg = { inherit (pkgs) lndir xauth; };

      # Files.
      bash-completion = file "bash-completion" "";
      cacert = make {
        name = "cacert";
        passthru.p11kit = pkgs.fish;
        buildCommand = ''
          mkdir -p $out/etc/ssl/certs
          cp ${tree}/etc/ssl/certs/ca-certificates.crt $out/etc/ssl/certs/ca-bundle.crt
        '';
      };
      glibcLocales = file "glibc-locales" "mkdir -p $out/lib/locale; touch $out/lib/locale/locale-archive";
      iana-etc = file "iana-etc" ''
        mkdir $out/etc
        printf 'tcp 6 TCP\nudp 17 UDP\n' >$out/etc/protocols
        printf 'ssh 22/tcp\nhttp 80/tcp\nhttps 443/tcp\n' >$out/etc/services
      '';
      kmod-blacklist-ubuntu = file "kmod-blacklist" "touch $out/modprobe.conf";
      kmod-debian-aliases = std.writeText "debian.conf" "";
      linuxHeaders = file "linux-headers" "";
      mailcap = file "mailcap" "mkdir $out/etc; touch $out/etc/mime.types $out/etc/mailcap";
      makeWrapper = file "make-wrapper" "mkdir $out/nix-support; touch $out/nix-support/setup-hook";
      tzdata = file "tzdata" "mkdir $out/share; ln -s ${root}/share/zoneinfo $out/share/zoneinfo";
      kexec-tools = make {
        name = "kexec-tools";
        buildCommand = "mkdir $out";
        meta.platforms = [ "m68k-linux" ];
      };

      # What modules call to make files.
      aggregateModules =
        modules:
        lib.head modules
        // {
          override = _: lib.head modules;
        };
      closureInfo =
        { rootPaths }:
        make {
          name = "closure-info";
          exportReferencesGraph = lib.concatMap (path: [
            "closure-${baseNameOf (builtins.unsafeDiscardStringContext (toString path))}"
            path
          ]) rootPaths;
          buildCommand = ''
            mkdir $out
            cat $NIX_BUILD_TOP/closure-* | grep ^/nix/store | sort -u >$out/store-paths
          '';
        };
      makeDBusConf =
        {
          suidHelper,
          serviceDirectories,
          ...
        }:
        runCommand "dbus-1"
          {
            inherit suidHelper;
            directories = map toString serviceDirectories;
          }
          ''
            mkdir $out
            for bus in system session; do
              services=services
              if [ $bus = system ]; then services=system-services; fi
              {
                echo '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "busconfig.dtd">'
                echo '<busconfig>'
                # What Debian's own has, without where that looks for more.
                sed -e '1,/<busconfig>/d' -e '/<\/busconfig>/d' -e '/<standard_s.*servicedirs/d' -e '/<include/d' \
                  -e "s,<servicehelper>.*</servicehelper>,<servicehelper>$suidHelper</servicehelper>," \
                  ${root}/share/dbus-1/$bus.conf
                for directory in $directories; do
                  echo "<servicedir>$directory/share/dbus-1/$services</servicedir>"
                  echo "<includedir>$directory/etc/dbus-1/$bus.d</includedir>"
                  echo "<includedir>$directory/share/dbus-1/$bus.d</includedir>"
                done
                echo '</busconfig>'
              } >$out/$bus.conf
            done
          '';
      # For the list of variables that setuid programs don't pass on; glibc has it in a header.
      srcOnly =
        _:
        make {
          name = "glibc-headers";
          variables = [
            "GCONV_PATH"
            "GETCONF_DIR"
            "GLIBC_TUNABLES"
            "HOSTALIASES"
            "LD_AUDIT"
            "LD_BIND_NOT"
            "LD_DEBUG"
            "LD_DEBUG_OUTPUT"
            "LD_DYNAMIC_WEAK"
            "LD_HWCAP_MASK"
            "LD_LIBRARY_PATH"
            "LD_ORIGIN_PATH"
            "LD_PRELOAD"
            "LD_PROFILE"
            "LD_SHOW_AUXV"
            "LOCALDOMAIN"
            "LOCPATH"
            "MALLOC_TRACE"
            "NIS_PATH"
            "NLSPATH"
            "RESOLV_HOST_CONF"
            "RES_OPTIONS"
            "TMPDIR"
            "TZDIR"
          ];
          buildCommand = ''
            mkdir -p sysdeps/generic
            {
              printf '#define UNSECURE_ENVVARS "'
              printf '%s\\0' $variables
              printf '"\n'
            } >sysdeps/generic/unsecvars.h
            eval "''${installPhase:-mkdir $out}"
          '';
        };
      libxcrypt.enabledCryptSchemeIds = [
        "y"
        "gy"
        "7"
        "2b"
        "2y"
        "2a"
        "2x"
        "6"
        "5"
      ];
      linuxPackages = lib.makeExtensible (_: {
        inherit stdenv kernel;
      });
      perlPackages = { };
    }
    // lib.genAttrs [
      "btrfs-progs"
      "fish"
      "host"
      "mdadm"
      "nix-info"
      "nixos-firewall-tool"
      "xauth"
      "xonsh"
      "zsh"
    ] empty
    // same [
      "acl"
      "attr"
      "bzip2"
      "coreutils"
      "cpio"
      "curl"
      "diffutils"
      "dosfstools"
      "e2fsprogs"
      "file"
      "findutils"
      "gzip"
      "hostname"
      "iproute2"
      "jq"
      "kbd"
      "kmod"
      "less"
      "nftables"
      "openresolv"
      "procps"
      "rsync"
      "strace"
      "sudo"
      "time"
      "zstd"
    ];

  perl = debian "perl" [ "perl" "perl-base" ] // {
    withPackages = _: perl;
  };

  stdenv = {
    inherit system;
    inherit (std) mkDerivation;
    hostPlatform = platform;
    buildPlatform = platform;
    targetPlatform = platform;
    isLinux = true;
    is64bit = true;
    isx86_64 = true;
    cc = make {
      name = "cc";
      buildCommand = "mkdir $out";
      passthru = {
        libc = pkgs.glibc;
        bintools.dynamicLinker = "ld-linux-x86-64.so.2";
      };
    };
  };
in
pkgs
