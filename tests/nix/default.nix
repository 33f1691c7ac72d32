# The unit tests of the Nix code. They need neither a network nor nixpkgs:
#
#   nix-instantiate --eval --strict --json tests/nix
#
# prints `{"passed":N,"tests":[…]}`. If a test fails, the command fails, and its error names each failed test with the
# actual and the expected value.
#
# Each file in unit/ returns `{ "a sentence" = { expr; expected; }; }`; `expr` may also be `throws value`, which is true
# if evaluating the value fails.
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    filter
    length
    match
    readDir
    seq
    toJSON
    tryEval
    ;

  throws = value: !(tryEval (seq (toJSON value) true)).success;

  files = filter (name: match ".*\\.nix" name != null) (attrNames (readDir ./unit));
  tests = concatMap (
    file:
    let
      cases = import (./unit + "/${file}") { inherit throws; };
    in
    map (name: cases.${name} // { name = "${file}: ${name}"; }) (attrNames cases)
  ) files;

  failed = filter (test: test.expr != test.expected) tests;
  report = test: "${test.name}\n    actual:   ${toJSON test.expr}\n    expected: ${toJSON test.expected}";
in
if tests == [ ] then
  throw "no tests were found in tests/nix/unit"
else if failed != [ ] then
  throw "${toString (length failed)} of ${toString (length tests)} tests failed:\n  ${concatStringsSep "\n  " (map report failed)}"
else
  {
    passed = length tests;
    tests = map (test: test.name) tests;
  }
