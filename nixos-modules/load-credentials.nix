# Returns the lines of `LoadCredential=` for files, by the credential's name; one that is null is none. Pure.
files:
let
  inherit (builtins) attrNames filter map;
in
map (name: "${name}:${files.${name}}") (filter (name: files.${name} != null) (attrNames files))
