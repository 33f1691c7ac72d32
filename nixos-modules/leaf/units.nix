# Reads the files in ./units, which the test host and other distributions use unchanged.
#
# Pure: it needs neither nixpkgs nor a system. `unit FILE` returns `{ Section = { Key = value; }; }`, where a key that
# is set more than once has the list of its values; `parse TEXT` does the same for a text; `lines FILE` returns the
# lines of a file without comments.
{ package }:
let
  inherit (builtins)
    elemAt
    filter
    foldl'
    isList
    isString
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
      setting = match "([A-Za-z0-9]+)=(.*)" line;
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
in
{
  inherit parse;
  unit = file: parse (readFile file);
  lines = file: linesOf (readFile file);
}
