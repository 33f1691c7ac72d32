# Whether a directory or file is hidden from a unit with ProtectHome= and PrivateTmp=, or is lost at a reboot: below the
# home directories, the temporary ones, or a file system of the kernel. Pure.
path:
let
  inherit (builtins) any stringLength substring;
  below = directory: path == directory || substring 0 (stringLength directory + 1) path == directory + "/";
in
any below [
  "/home"
  "/root"
  "/run"
  "/tmp"
  "/var/tmp"
  "/var/run"
  "/dev"
  "/proc"
  "/sys"
]
