# Evaluates modules, hosts, flake and the machines of the NixOS tests beside this file with the real NixOS modules, up
# to the text of the units, without nixpkgs' package set:
#
#   NIXPKGS=<tree> nix-instantiate --eval --strict --json tests/nixos
#
# Prints `{"passed":N,"evaluated_only":[…],…}`: the NixOS tests under `evaluated_only` were evaluated and not run.
# Running them needs the package set and KVM: `nix build .#checks.x86_64-linux.nixos-leaf`.
let
  host = import ../nix/eval-host.nix;
  nats = import ../nix/eval-nats.nix;
  flake = import ../nix/eval-flake.nix;
  cases = import ../nix/eval-cases.nix;
in
{
  passed = host.passed + nats.passed + flake.passed + cases.passed;
  evaluated_only = builtins.filter (name: builtins.substring 0 6 name == "nixos-") flake.outputs.checks.x86_64-linux;
  inherit (host) hosts;
  inherit (flake) outputs tests;
}
