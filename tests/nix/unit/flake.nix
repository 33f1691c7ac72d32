# flake.lock matches flake.nix and is complete: Nix would fetch a missing input and change the lock.
{ ... }:
let
  inherit (builtins)
    attrNames
    attrValues
    concatLists
    filter
    fromJSON
    isList
    isString
    mapAttrs
    match
    readFile
    split
    ;

  flake = import ../../../flake.nix;
  lock = fromJSON (readFile ../../../flake.lock);
  inherit (lock) nodes;
  root = nodes.${lock.root};
  others = removeAttrs nodes [ lock.root ];

  # The node that a path of inputs leads to, or null.
  follow =
    from: path:
    if from == null || path == [ ] then
      from
    else
      follow (resolve (nodes.${from}.inputs or { }).${builtins.head path} or null) (builtins.tail path);
  resolve = input: if isList input then follow lock.root input else if input == null || !(nodes ? ${input}) then null else input;

  inputsOf = name: mapAttrs (_: resolve) (nodes.${name}.inputs or { });
  dangling = concatLists (
    map (
      name:
      map (input: "${name}.${input}") (filter (input: (inputsOf name).${input} == null) (attrNames (inputsOf name)))
    ) (attrNames nodes)
  );

  # The nodes that are reachable from a node, added to `seen`, a set of names.
  reach =
    seen: name: if seen ? ${name} then seen else builtins.foldl' reach (seen // { ${name} = true; }) (attrValues (inputsOf name));

  url =
    of: "${of.type}:${of.owner}/${of.repo}${if of ? ref then "/${of.ref}" else ""}";
  path = text: filter isString (split "/" text);
  # The `follows` of the inputs' own inputs in flake.nix.
  declared = mapAttrs (_: input: mapAttrs (_: own: path own.follows) (input.inputs or { })) flake.inputs;
  held = mapAttrs (
    name: follows: mapAttrs (input: _: (nodes.${name}.inputs or { }).${input} or null) follows
  ) declared;
in
{
  "the lock is of version 7" = {
    expr = lock.version;
    expected = 7;
  };
  "the lock has the inputs of the flake" = {
    expr = attrNames root.inputs;
    expected = attrNames flake.inputs;
  };
  "the lock has the same URL for each input as the flake" = {
    expr = mapAttrs (_: node: url nodes.${node}.original) root.inputs;
    expected = mapAttrs (_: input: input.url) flake.inputs;
  };
  "each follows of the flake is in the lock" = {
    expr = held;
    expected = declared;
  };
  "every node has a revision and a hash" = {
    expr = filter (
      name:
      let
        locked = others.${name}.locked or { };
      in
      match "[0-9a-f]{40}" (locked.rev or "") == null || match "sha256-[A-Za-z0-9+/]{43}=" (locked.narHash or "") == null
    ) (attrNames others);
    expected = [ ];
  };
  "every input of a node leads to a node" = {
    expr = dangling;
    expected = [ ];
  };
  "every node is reachable from the root" = {
    expr = attrNames (removeAttrs nodes (attrNames (reach { } lock.root)));
    expected = [ ];
  };
  "the flake has the inputs that the design names" = {
    expr = filter (name: !(flake.inputs ? ${name})) [
      "nixpkgs"
      "nix-topology"
      "nixos-facter"
      "nixos-anywhere"
      "extra-container"
      "nix-inspect"
      "disko"
    ];
    expected = [ ];
  };
}
