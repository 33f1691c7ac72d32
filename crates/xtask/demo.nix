# Runs `cargo xtask demo` in the development shell, which has the programs that the demo would otherwise install.
{
  writeShellApplication,
  nix,
  gitMinimal,
}:
writeShellApplication {
  name = "cim-leaf-demo";
  runtimeInputs = [
    nix
    gitMinimal
  ];
  text = ''
    if [ ! -e crates/xtask ]; then
      echo "run it in a checkout of cim-leaf" >&2
      exit 1
    fi
    exec nix --extra-experimental-features "nix-command flakes" develop . --command cargo xtask demo "$@"
  '';
}
