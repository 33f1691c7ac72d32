# Returns the settings file of a program of this package. Its build checks it with the program, so that an invalid setting never
# reaches a host; a cross build can't run the program.
pkgs:
{
  name,
  program,
  # The settings, as an attribute set in the shape of the file.
  settings,
}:
pkgs.runCommand name {
  toml = import ./leaf/toml.nix settings;
  passAsFile = [ "toml" ];
} ''
  cp "$tomlPath" $out
  ${pkgs.lib.optionalString (
    pkgs.stdenv.buildPlatform.canExecute or (_: true) pkgs.stdenv.hostPlatform
  ) "${program} check-config $out"}
''
