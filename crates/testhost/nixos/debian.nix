# What a NixOS system needs beside the real modules where its programs are Debian's.
{
  config,
  lib,
  pkgs,
  ...
}:
{
  # Paths that are compiled into Debian's programs. Nothing comes before it in the activation: they are there when systemd
  # starts. nixpkgs' systemd finds its own programs by their names; Debian's looks in /usr/local/sbin among others.
  system.activationScripts.debian-paths = lib.stringAfter [ ] ''
    mkdir -p /usr/lib /usr/bin /usr/sbin /usr/local/sbin
    ln -sfn ${config.systemd.package}/lib/systemd /usr/lib/systemd
    ln -sfn ${config.systemd.package}/lib/udev /usr/lib/udev
    for directory in openssh locale x86_64-linux-gnu; do
      ln -sfn ${pkgs.debianRoot}/lib/$directory /usr/lib/$directory
    done
    for program in ${config.systemd.package}/bin/*; do
      ln -sfn $program /usr/local/sbin/''${program##*/}
    done
    for path in bin/mount bin/umount bin/login bin/su sbin/swapon sbin/swapoff sbin/sulogin sbin/agetty sbin/unix_chkpwd; do
      ln -sfn ${pkgs.debianRoot}/bin/''${path##*/} /usr/$path
    done
  '';
  # Debian's `su` is util-linux', which asks for a service of its own.
  security.pam.services.su-l = {
    rootOK = true;
    logFailures = true;
  };
  system.nssModules = lib.mkForce [ ];
  services.nscd.enable = false;

  # What the package set has no programs for.
  i18n.defaultLocale = "C.UTF-8";
  i18n.supportedLocales = [ "C.UTF-8/UTF-8" ];
  documentation = lib.genAttrs [ "man" "info" "doc" "nixos" ] (_: { enable = false; }) // { enable = false; };
  environment.defaultPackages = [ ];
  environment.ldso32 = null;
  environment.stub-ld.enable = false;
  programs.bash.completion.enable = false;
  programs.command-not-found.enable = false;
  programs.less.lessopen = null;
  programs.nano.enable = false;
  fonts.fontconfig.enable = false;
  xdg = lib.genAttrs [ "autostart" "icons" "menus" "mime" "sounds" ] (_: { enable = false; });
  boot.bcache.enable = false;
  services.logrotate.enable = false;
  systemd.coredump.enable = false;
  systemd.oomd.enable = false;
  systemd.shutdownRamfs.enable = false;

  system.stateVersion = "25.05";
}
