# Returns the TOML 1.0 text of an attribute set. Uses only builtins.
#
# Attribute sets become tables; `null` is left out. These are errors: floats (unused here, and versions of Nix print
# them differently), functions, and paths, which Nix would silently copy into the store.
let
  inherit (builtins)
    attrNames
    concatStringsSep
    filter
    fromJSON
    isAttrs
    isBool
    isInt
    isList
    isPath
    isString
    map
    match
    replaceStrings
    toJSON
    typeOf
    ;

  # TOML's basic strings accept every JSON escape, and forbid one character that JSON allows: DEL.
  del = fromJSON ''"\u007f"'';
  string = text: replaceStrings [ del ] [ "\\u007F" ] (toJSON text);

  key = name: if match "[A-Za-z0-9_-]+" name != null then name else string name;

  refuse = at: value: throw "${concatStringsSep "." at}: TOML has no place for a ${typeOf value} here";

  scalar =
    at: value:
    if isString value then
      string value
    else if isBool value then
      (if value then "true" else "false")
    else if isInt value then
      toString value
    else if isPath value then
      throw "${concatStringsSep "." at}: a path would be copied into the store; give it as a string"
    else if isList value then
      "[${concatStringsSep ", " (map (scalar at) value)}]"
    else
      refuse at value;

  isTable = value: isAttrs value && !(value ? outPath);
  plain = value: if isAttrs value && value ? outPath then "${value}" else value;

  table =
    at: values:
    let
      names = filter (name: values.${name} != null) (attrNames values);
      lines = map (name: "${key name} = ${scalar (at ++ [ name ]) (plain values.${name})}\n") (
        filter (name: !isTable values.${name}) names
      );
      header = if at == [ ] then [ ] else [ "[${concatStringsSep "." (map key at)}]\n" ];
      tables = map (name: table (at ++ [ name ]) values.${name}) (filter (name: isTable values.${name}) names);
      own = if lines == [ ] && tables != [ ] then [ ] else [ (concatStringsSep "" (header ++ lines)) ];
    in
    concatStringsSep "\n" (filter (text: text != "") (own ++ tables));
in
table [ ]
