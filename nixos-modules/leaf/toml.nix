# Returns a text in TOML 1.0 for an attribute set, made with nothing but builtins.
#
# Sets become tables, `null` is left out. What TOML would take as another value than Nix means is an error: floats
# (unneeded, and printed differently by different Nix), functions, and paths, which would copy a file into the store
# without a word.
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

  # TOML's basic strings know every escape that JSON has, and forbid one character more than JSON does: DEL.
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
