# Reads the files in ./units, which the test host and other distributions use unchanged.
#
# Pure: it needs neither nixpkgs nor a system. `unit FILE` returns `{ Section = { Key = value; }; }`, where a key that
# is set more than once has the list of its values; `parse TEXT` does the same for a text; `options FILE` returns the
# options of `systemd.services.NAME` or `systemd.sockets.NAME` that result in the same unit, `optionsOf TEXT` for a text;
# `lines FILE` returns the lines of a file without comments.
{ package }:
let
  inherit (builtins)
    attrNames
    concatMap
    elemAt
    filter
    foldl'
    isList
    isString
    listToAttrs
    map
    match
    readFile
    replaceStrings
    split
    ;

  linesOf =
    text:
    filter (line: isString line && match "[[:space:]]*(#.*)?" line == null) (
      split "\n" (replaceStrings [ "@package@" ] [ "${package}" ] text)
    );

  add =
    section: key: value:
    section
    // {
      ${key} =
        if !(section ? ${key}) then
          value
        else
          (if isList section.${key} then section.${key} else [ section.${key} ]) ++ [ value ];
    };

  take =
    state: line:
    let
      header = match "\\[([A-Za-z]+)]" line;
      setting = match "([A-Za-z0-9-]+)=(.*)" line;
    in
    if header != null then
      state // { at = elemAt header 0; }
    else if setting == null || state.at == null then
      throw "\"${line}\" is not a line of a unit file"
    else
      state
      // {
        sections = state.sections // {
          ${state.at} = add (state.sections.${state.at} or { }) (elemAt setting 0) (elemAt setting 1);
        };
      };
  parse =
    text:
    (foldl' take {
      at = null;
      sections = { };
    } (linesOf text)).sections;

  toList = value: if isList value then value else [ value ];
  words = value: filter (word: isString word && word != "") (concatMap (split " +") (toList value));

  # The keys of [Unit] that NixOS has options for, to which other modules add.
  listOptions = {
    After = "after";
    Before = "before";
    BindsTo = "bindsTo";
    Conflicts = "conflicts";
    PartOf = "partOf";
    Requires = "requires";
    Requisite = "requisite";
    Wants = "wants";
  };
  optionsOf =
    text:
    let
      unit = parse text;
      keys = attrNames unit.Unit;
      install = unit.Install or { };
      section =
        name: option:
        if unit ? ${name} then { ${option} = unit.${name}; } else { };
      known = [
        "Unit"
        "Install"
        "Service"
        "Socket"
      ];
    in
    if removeAttrs unit known != { } || removeAttrs install [ "WantedBy" ] != { } then
      throw "a unit with other sections than ${toString known}, or with more than WantedBy in [Install]"
    else
      listToAttrs (
        map (key: {
          name = listOptions.${key};
          value = words unit.Unit.${key};
        }) (filter (key: listOptions ? ${key}) keys)
      )
      // {
        description = unit.Unit.Description;
        wantedBy = words (install.WantedBy or [ ]);
        unitConfig = removeAttrs unit.Unit (attrNames listOptions ++ [ "Description" ]);
      }
      // section "Service" "serviceConfig"
      // section "Socket" "socketConfig";
in
{
  inherit parse;
  unit = file: parse (readFile file);
  options = file: optionsOf (readFile file);
  inherit optionsOf;
  lines = file: linesOf (readFile file);
}
