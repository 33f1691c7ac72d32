# The file formats of nixpkgs (`pkgs.formats`) that a small system uses.
{ lib, pkgs }:
let
  value = lib.types.attrsOf lib.types.anything // {
    description = "settings";
  };
  format = render: {
    type = value;
    lib = { };
    generate = name: settings: pkgs.writeText name (render settings);
  };
in
{
  json = _: format builtins.toJSON;
  yaml = _: format builtins.toJSON;
  ini = options: format (lib.generators.toINI { listsAsDuplicateKeys = options.listsAsDuplicateKeys or false; });
  systemd = _: format (lib.generators.toINI { listsAsDuplicateKeys = true; });
  iniWithGlobalSection = options: format (lib.generators.toINIWithGlobalSection options);
  keyValue = options: format (lib.generators.toKeyValue (removeAttrs options [ "type" ]));
  toml = _: format (_: throw "pkgs.formats.toml is not here: no module of these systems has needed it");
}
