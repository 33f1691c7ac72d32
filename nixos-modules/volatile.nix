# Whether a reboot empties a directory: the deepest mount above it is a file system in memory. A directory that has such a
# mount of its own was given that on purpose. Pure; `mounts` has the types of the file systems by mount point.
mounts: path:
let
  inherit (builtins)
    attrNames
    elem
    filter
    foldl'
    stringLength
    substring
    ;
  isAbove = mount: mount == "/" || substring 0 (stringLength mount + 1) path == mount + "/";
  deepest = foldl' (deep: mount: if stringLength mount > stringLength deep then mount else deep) "" (
    filter isAbove (attrNames mounts)
  );
in
!(mounts ? ${path})
&& elem (mounts.${deepest} or null) [
  "tmpfs"
  "ramfs"
]
