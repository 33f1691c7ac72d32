# An attribute set with the values of another one in place of its own, at any depth.
let
  merge =
    a: b:
    a
    // builtins.mapAttrs (
      name: value: if builtins.isAttrs value && builtins.isAttrs (a.${name} or null) then merge a.${name} value else value
    ) b;
in
merge
