# The functions of nixpkgs' package set that make derivations, as far as NixOS modules call them. `root` is Debian's tree
# whose programs run by themselves; without it, scripts are the build machine's.
{
  lib,
  system,
  root,
}:
let
  shell = if root == null then "/bin/sh" else "${root}/bin/bash";
  # All of a package's outputs are one here.
  outputs = [
    "bin"
    "dev"
    "devdoc"
    "doc"
    "info"
    "lib"
    "man"
    "static"
  ];

  make =
    given:
    let
      attrs = if lib.isFunction given then lib.fix given else given;
      title = attrs.name or "${attrs.pname}-${attrs.version or "0"}";
      name = lib.strings.sanitizeDerivationName (builtins.unsafeDiscardStringContext title);
      meta = attrs.meta or { };
      passthru = attrs.passthru or { };
      built = derivation (
        {
          inherit system;
          builder = "/bin/bash";
          args = [
            "-e"
            ./builder.sh
          ];
          shellForWrappers = shell;
        }
        // removeAttrs attrs [
          "meta"
          "outputs"
          "passthru"
          "pos"
        ]
        // {
          inherit name;
        }
      );
      # A function of the attributes, or of the final and the former ones.
      changed =
        change:
        if !lib.isFunction change then
          change
        else
          let
            once = change attrs;
          in
          if lib.isFunction once then change attrs attrs else once;
      self =
        built
        // lib.genAttrs outputs (_: self)
        // {
          inherit name meta passthru;
          pname = attrs.pname or name;
          version = attrs.version or "0";
          override = _: self;
          overrideAttrs = change: make (attrs // changed change);
        }
        // passthru;
    in
    self;

  runCommand =
    name: env: command:
    make (
      {
        inherit name;
        buildCommand = command;
      }
      // env
      // {
        passAsFile = [ "buildCommand" ] ++ (env.passAsFile or [ ]);
      }
    );

  writeTextFile =
    {
      name,
      text,
      executable ? false,
      destination ? "",
      meta ? { },
      passthru ? { },
      derivationArgs ? { },
      ...
    }:
    runCommand name
      (
        {
          inherit
            text
            meta
            passthru
            executable
            destination
            ;
          passAsFile = [ "text" ];
        }
        // derivationArgs
      )
      ''
        target=$out$destination
        mkdir -p "$(dirname "$target")"
        cp "$textPath" "$target"
        if [ -n "$executable" ]; then chmod +x "$target"; fi
      '';

  script = text: "#!${shell}\n${text}";
  program =
    name: text:
    writeTextFile {
      inherit name text;
      executable = true;
      destination = "/bin/${name}";
      meta.mainProgram = name;
    };

  # A tree of links; of two files of one name the first stays.
  linkTree =
    {
      name,
      paths,
      pathsToLink ? [ "/" ],
      postBuild ? "",
      passthru ? { },
      meta ? { },
      nativeBuildInputs ? [ ],
      ...
    }:
    runCommand name
      {
        inherit
          passthru
          meta
          nativeBuildInputs
          pathsToLink
          ;
        paths = map toString (lib.filter (path: path != null) paths);
        # In a file, as nixpkgs' own: what comes after reads it.
        passAsFile = [ "paths" ];
      }
      ''
        mkdir -p $out
        for path in $(cat $pathsPath); do
          for part in $pathsToLink; do
            part=''${part#/}
            if [ -d "$path/$part" ]; then
              mkdir -p "$out/$part"
              cp -rsn --no-dereference "$(readlink -f "$path/$part")/." "$out/$part/"
              chmod -R u+w $out
            elif [ -n "$part" ] && [ -e "$path/$part" ]; then
              mkdir -p $out/$(dirname $part)
              [ -e $out/$part ] || ln -s $path/$part $out/$part
            fi
          done
        done
        ${postBuild}
      '';

  # `--subst-var-by` for each of a set's names.
  asOptions =
    replacements:
    lib.concatStringsSep " " (
      lib.mapAttrsToList (name: value: "--subst-var-by ${name} ${lib.escapeShellArg (toString value)}") replacements
    );
in
{
  inherit make runCommand writeTextFile;
  mkDerivation = make;
  runCommandLocal = runCommand;
  runCommandNoCC = runCommand;

  writeText = name: text: writeTextFile { inherit name text; };
  writeTextDir =
    path: text:
    writeTextFile {
      inherit text;
      name = baseNameOf path;
      destination = "/${path}";
    };
  writeScript =
    name: text:
    writeTextFile {
      inherit name text;
      executable = true;
    };
  writeShellScript =
    name: text:
    writeTextFile {
      inherit name;
      text = script text;
      executable = true;
    };
  writeScriptBin = program;
  writeShellScriptBin = name: text: program name (script text);
  writeShellApplication =
    {
      name,
      text,
      runtimeInputs ? [ ],
      ...
    }:
    program name (
      script ''
        set -euo pipefail
        ${lib.optionalString (runtimeInputs != [ ]) "export PATH=${lib.makeBinPath runtimeInputs}:$PATH"}
        ${text}
      ''
    );
  concatText = name: files: runCommand name { inherit files; } "cat $files >$out";

  buildEnv = linkTree;
  symlinkJoin = attrs: linkTree ({ name = attrs.pname or "joined"; } // attrs);

  substitute =
    {
      src,
      substitutions ? [ ],
      name ? baseNameOf src,
      ...
    }:
    runCommand name { inherit src; } "substitute $src $out ${lib.escapeShellArgs substitutions}";
  substituteAll =
    attrs:
    make (
      {
        name = baseNameOf (toString attrs.src);
        buildCommand = ''
          target=$out''${dir:+/$dir/$name}
          mkdir -p "$(dirname "$target")"
          substituteAllTo $src "$target"
          if [ -n "''${isExecutable:-}" ]; then chmod +x "$target"; fi
          eval "''${postInstall:-}"
        '';
      }
      // attrs
    );
  replaceVars =
    src: replacements:
    runCommand (baseNameOf (toString src)) { inherit src; } "substitute $src $out ${asOptions replacements}";
  replaceVarsWith =
    { src, replacements, ... }@attrs:
    make (
      {
        name = baseNameOf (toString src);
        buildCommand = ''
          substitute $src $out ${asOptions replacements}
          if [ -n "''${isExecutable:-}" ]; then chmod +x $out; fi
        '';
      }
      // removeAttrs attrs [ "replacements" ]
    );
}
