# Returns nats-server's configuration as text: one line for each setting, with its value in JSON, which nats-server
# accepts. The server reads the file at the absolute path `include` when it starts, before the other settings.
#
# Pure. The server's strings support few of JSON's escapes; a string that needs another one is an error.
settings:
let
  inherit (builtins)
    attrNames
    concatStringsSep
    isAttrs
    isList
    isString
    length
    map
    removeAttrs
    split
    toJSON
    ;

  plain =
    at: value:
    if isString value then
      if length (split "[[:cntrl:]]" value) > 1 then
        throw "${at}: nats-server's configuration has no place for control characters"
      else
        value
    else if isAttrs value then
      builtins.mapAttrs (name: plain "${at}.${name}") value
    else if isList value then
      map (plain at) value
    else
      value;

  line = name: "${name}: ${toJSON (plain name settings.${name})}\n";
  # The server resolves the path relative to the directory of its configuration.
  upwards = concatStringsSep "/" (builtins.genList (_: "..") 16);
  include = if settings ? include then "include \"${upwards}${plain "include" settings.include}\"\n" else "";
in
include + concatStringsSep "" (map line (attrNames (removeAttrs settings [ "include" ])))
