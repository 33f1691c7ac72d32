# The development shell: what `cargo xtask test` needs on a machine.
{
  mkShell,
  cim-leaf,
  clippy,
  rustfmt,
  rust-analyzer,
  cargo-deny,
  age,
  nats-server,
  natscli,
  nix,
  openssh,
  glibc,
}:
mkShell {
  inputsFrom = [ cim-leaf.programs ];
  packages = [
    clippy
    rustfmt
    rust-analyzer
    cargo-deny
    age
    nats-server
    natscli
    nix
    openssh
    glibc.static # for leaf-init and leaf-helper
  ];
}
