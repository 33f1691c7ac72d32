# `cargo xtask demo` with the tools that it would else install.
{
  writeShellApplication,
  cargo,
  rustc,
  stdenv,
  pkg-config,
  udev,
  nats-server,
}:
writeShellApplication {
  name = "cim-leaf-demo";
  runtimeInputs = [
    cargo
    rustc
    stdenv.cc
    pkg-config
    nats-server
  ];
  text = ''
    if [ ! -e crates/xtask ]; then
      echo "run it in a checkout of cim-leaf" >&2
      exit 1
    fi
    export PKG_CONFIG_PATH=${udev.dev}/lib/pkgconfig
    exec cargo xtask demo "$@"
  '';
}
