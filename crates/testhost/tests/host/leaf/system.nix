# A container's system without nixpkgs: busybox, an init script and a main script. It builds offline.
{ name, main, ready ? true, switch ? "" }:
let
  # busybox selects the applet by its file's name, so its directory is copied to the store.
  tools = builtins.path { path = /var/tmp/tools; name = "tools"; };
  busybox = "${tools}/busybox";
  build = arguments: script: derivation (arguments // {
    inherit busybox;
    system = builtins.currentSystem;
    builder = busybox;
    args = [ "sh" "-ec" script ];
  });
  # Made once for all systems.
  applets = build { name = "applets"; } "$busybox mkdir $out; $busybox --install -s $out";
  begin = if ready then "exec /run/leaf/init ready --" else "exec";
in
build { inherit name main switch applets begin; } ''
  $busybox mkdir -p $out/bin
  $busybox printf '%s\n' "#!$applets/sh" "export PATH=$applets" "$begin $applets/sh $out/main" >$out/init
  $busybox printf '%s\n' "$main" >$out/main
  $busybox chmod +x $out/init
  if [ -n "$switch" ]; then
    $busybox printf '%s\n' "#!$applets/sh" "export PATH=$applets" "$switch" >$out/bin/switch-to-configuration
    $busybox chmod +x $out/bin/switch-to-configuration
  fi
''
