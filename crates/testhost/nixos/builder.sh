# The builder of every derivation here: what nixpkgs' stdenv gives to the build commands of NixOS modules, and no more.
# The tools are the build machine's own (sandbox-paths); results refer to Debian's tree in the store alone.
set -eu -o pipefail
shopt -s nullglob
export PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/homeless TMPDIR=${NIX_BUILD_TOP:-/tmp} CC="gcc -static"
for input in ${nativeBuildInputs:-} ${buildInputs:-}; do
  PATH=$input/bin:$PATH
done

# The text on stdin with nixpkgs' options of `substitute` applied.
substituteStream() {
  local text name
  text=$(cat; echo .)
  text=${text%.}
  while [ $# -gt 0 ]; do
    case $1 in
      --replace | --replace-fail | --replace-warn | --replace-quiet)
        text=${text//"$2"/"$3"}
        shift 3
        ;;
      --subst-var)
        name=$2
        text=${text//"@$name@"/"${!name}"}
        shift 2
        ;;
      --subst-var-by)
        text=${text//"@$2@"/"$3"}
        shift 3
        ;;
      *)
        echo "substitute: unknown option $1" >&2
        return 1
        ;;
    esac
  done
  printf %s "$text"
}

# FROM TO OPTION…; a file that is there keeps its mode.
substitute() {
  local from=$1 to=$2
  shift 2
  substituteStream "$@" <"$from" >"$to.new"
  if [ -e "$to" ]; then chmod --reference="$to" "$to.new"; fi
  mv -f "$to.new" "$to"
}

substituteInPlace() {
  local files=() file
  while [ $# -gt 0 ] && [ "${1:0:2}" != -- ]; do
    files+=("$1")
    shift
  done
  for file in "${files[@]}"; do
    substitute "$file" "$file" "$@"
  done
}

# FROM TO: every @name@ whose name is a variable of the derivation.
substituteAllTo() {
  local name options=()
  for name in $(grep -oE '@[a-zA-Z_][a-zA-Z0-9_]*@' "$1" | tr -d @ | sort -u); do
    if [ -n "${!name+x}" ]; then options+=(--subst-var "$name"); fi
  done
  substitute "$1" "$2" "${options[@]}"
}

runHook() { :; }

# PROGRAM [--set NAME VALUE | --prefix NAME SEPARATOR VALUE]…: puts a script in front of it.
wrapProgram() {
  local program=$1 real
  shift
  real=$(dirname "$program")/.$(basename "$program")-wrapped
  mv "$program" "$real"
  {
    echo "#!$shellForWrappers"
    while [ $# -gt 0 ]; do
      case $1 in
        --set)
          printf 'export %s=%q\n' "$2" "$3"
          shift 3
          ;;
        --prefix)
          printf 'export %s=%q${%s:+%s$%s}\n' "$2" "$4" "$2" "$3" "$2"
          shift 4
          ;;
        *)
          echo "wrapProgram: unknown option $1" >&2
          return 1
          ;;
      esac
    done
    printf 'exec -a "$0" %q "$@"\n' "$real"
  } >"$program"
  chmod +x "$program"
}

cd "$TMPDIR"
if [ -n "${buildCommandPath:-}" ]; then
  . "$buildCommandPath"
elif [ -n "${buildCommand:-}" ]; then
  eval "$buildCommand"
else
  eval "${buildPhase:-}"
  eval "$installPhase"
fi
if [ ! -e "$out" ]; then
  echo "nothing was made in $out" >&2
  exit 1
fi
