//! The shell of the derivations that `cargo xtask` builds.

/// A Nix expression: the `builder` with its first `args`. It is a static shell of this machine's, since the sandbox may have
/// none, or `/bin/sh` where there is no such shell.
pub(crate) const BUILD_SHELL: &str = r#"(
  let
    static = builtins.path {
      name = "shell";
      path = /usr/bin;
      filter = path: _: baseNameOf path == "busybox";
    };
  in
  if builtins.pathExists /usr/bin/busybox then
    { builder = "${static}/busybox"; args = [ "sh" "-c" ]; }
  else
    { builder = "/bin/sh"; args = [ "-c" ]; }
)"#;
