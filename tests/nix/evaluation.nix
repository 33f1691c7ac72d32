# What eval-host.nix and eval-nats.nix share: systems with our modules among the real NixOS modules, and what is expected of
# them. `modules` are those of every system.
{ modules }:
let
  nixpkgs = import ./nixpkgs.nix;
  lib = import (nixpkgs + "/lib");
  system = "x86_64-linux";
  stubs = {
    _module.args.pkgs = lib.mkForce (import ./stub-packages.nix { inherit lib system; });
  };
in
rec {
  inherit
    nixpkgs
    lib
    system
    stubs
    ;

  # The nixpkgs of the package set.
  inherit (stubs._module.args.pkgs.content) path;

  evaluate =
    more:
    import (nixpkgs + "/nixos/lib/eval-config.nix") {
      inherit lib;
      system = null;
      modules =
        modules
        ++ more
        ++ [
          stubs
          {
            nixpkgs.hostPlatform = system;
            # What disko would set, which is not available here.
            fileSystems."/".device = "/dev/disk/by-partlabel/disk-main-root";
          }
        ];
    };

  # The failed assertions of the modules in a directory; evaluating all of NixOS's would need most of the package set.
  refused =
    directory: host:
    map (a: a.message) (
      builtins.filter (a: !a.assertion) (
        lib.concatMap (d: d.value) (
          builtins.filter (d: lib.hasInfix directory (toString d.file)) host.options.assertions.definitionsWithLocations
        )
      )
    );

  # A value of a host on which all of these assertions hold.
  accepted =
    directory: host: value:
    let
      wrong = refused directory host;
    in
    if wrong != [ ] then throw "assertions do not hold: ${builtins.concatStringsSep "; " wrong}" else value;

  # Each of our options has a type, a description in sentences and an example.
  documented = documentedAll 31;
  # The same, for at least this many options.
  documentedAll =
    least: options:
    let
      ours = builtins.filter (o: !o.internal) (lib.optionAttrSetToDocList options);
      bare = builtins.filter (
        o: !(o ? example) || !lib.hasSuffix "." (lib.removeSuffix "\n" (o.description.text or o.description or ""))
      ) ours;
    in
    {
      name = "every option has a description in sentences and an example, but not ${toString (map (o: o.name) bare)}";
      holds = bare == [ ] && builtins.length ours >= least;
    };

  # The result, if all expectations are met.
  report =
    expectations: result:
    let
      unmet = builtins.filter (e: !e.holds) expectations;
    in
    if unmet != [ ] then
      throw "${toString (builtins.length unmet)} expectations are not met:\n  ${
        lib.concatMapStringsSep "\n  " (e: e.name) unmet
      }"
    else
      { passed = builtins.length expectations; } // result;
}
