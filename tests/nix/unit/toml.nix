{ throws }:
let
  toml = import ../../../nixos-modules/leaf/toml.nix;
  del = builtins.fromJSON ''"\u007f"'';
  bell = builtins.fromJSON ''"\u0007"'';
  # The value that a TOML parser reads back.
  back = value: builtins.fromTOML (toml value);
  odd = {
    quotes = ''"a" 'b' \c'';
    lines = "one\ntwo\r\n\ttabbed";
    unicode = "Grün 🌿";
    empty = "";
    looks_like = "[table]\nkey = 1 # no comment";
  };
in
{
  "an empty set is an empty text" = {
    expr = toml { };
    expected = "";
  };
  "values come before tables, null is left out" = {
    expr = toml {
      b.c = true;
      a = 1;
      z = null;
    };
    expected = "a = 1\n\n[b]\nc = true\n";
  };
  "an empty table is kept, since its presence means something" = {
    expr = toml { nats.embedded = { }; };
    expected = "[nats.embedded]\n";
  };
  "a table that holds only tables has no header" = {
    expr = toml { a.b.c = [ 1 2 ]; };
    expected = "[a.b]\nc = [1, 2]\n";
  };
  "names that are not bare keys are quoted" = {
    expr = toml { "a b"."c.d" = "e"; };
    expected = "[\"a b\"]\n\"c.d\" = \"e\"\n";
  };
  "odd strings are read back unchanged" = {
    expr = back odd;
    expected = odd;
  };
  "DEL and control characters are escaped" = {
    expr = toml { a = del + bell; };
    expected = "a = \"\\u007F\\u0007\"\n";
  };
  "a derivation is written as its path" = {
    expr = toml { program.outPath = "/nix/store/x"; };
    expected = "program = \"/nix/store/x\"\n";
  };
  "a path is refused, since it would be copied into the store" = {
    expr = throws (toml { key = ./toml.nix; });
    expected = true;
  };
  "a float is refused" = {
    expr = throws (toml { a = 1.5; });
    expected = true;
  };
  "a function is refused" = {
    expr = throws (toml { a = x: x; });
    expected = true;
  };
}
