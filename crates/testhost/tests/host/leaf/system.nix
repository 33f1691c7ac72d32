# A container's system without nixpkgs: busybox, an init script and a main script. It builds offline.
{ name, main, ready ? true, switch ? "" }:
let
  # busybox selects the applet by its file's name, so its directory is copied to the store.
  tools = builtins.path { path = /var/tmp/tools; name = "tools"; };
  busybox = "${tools}/busybox";
  begin = if ready then "exec /run/leaf/init ready --" else "exec";
in
derivation {
  inherit name main switch busybox begin;
  system = builtins.currentSystem;
  builder = busybox;
  args = [ "sh" "-ec" ''
    $busybox mkdir -p $out/bin
    $busybox cp $busybox $out/bin/busybox
    for applet in $($busybox --list); do
      [ $applet = busybox ] || $busybox ln -s busybox $out/bin/$applet
    done
    $busybox printf '%s\n' "#!$out/bin/sh" "export PATH=$out/bin" "$begin $out/bin/sh $out/main" >$out/init
    $busybox printf '%s\n' "$main" >$out/main
    $busybox chmod +x $out/init
    if [ -n "$switch" ]; then
      $busybox printf '%s\n' "#!$out/bin/sh" "export PATH=$out/bin" "$switch" >$out/bin/switch-to-configuration
      $busybox chmod +x $out/bin/switch-to-configuration
    fi
  '' ];
}
