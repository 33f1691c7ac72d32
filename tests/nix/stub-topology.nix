# Stands for nix-topology in eval-flake.nix: gives back what it is called with.
args: args
