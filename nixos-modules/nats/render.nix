# Returns nats-server's configuration as text: a line for each setting, its value in JSON, which nats-server reads. What is
# named `include` is read from that absolute path when the server starts, before everything else.
#
# Pure. The server's strings know few of JSON's escapes, so what would need another is an error.
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
  # The server joins the path to the folder of its configuration, wherever that is.
  upwards = concatStringsSep "/" (builtins.genList (_: "..") 16);
  include = if settings ? include then "include \"${upwards}${plain "include" settings.include}\"\n" else "";
in
include + concatStringsSep "" (map line (attrNames (removeAttrs settings [ "include" ])))
