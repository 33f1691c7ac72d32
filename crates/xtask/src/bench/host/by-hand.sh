#!/bin/bash
# Containers without a leaf, as somebody writes it by hand: what `cargo xtask bench --host` measures a leaf against.
#
#   by-hand.sh life systemctl|nspawn|nix-env NAME TOPLEVEL   one life; prints microseconds: create start stop destroy
#   by-hand.sh crowd COUNT TOPLEVEL                          so many units at once; prints microseconds
#
# `systemctl` writes the files of the NixOS contract, `nix-env` sets the profile as nixos-container does, and `nspawn` has
# no unit at all. None gives a container users of its own, a closed network, limits or credentials, as a leaf does.
set -euo pipefail

roots=/var/lib/nixos-containers
conf=/etc/nixos-containers
profiles=/nix/var/nix/profiles/per-container
gcroots=/nix/var/nix/gcroots/per-container

now() { echo "${EPOCHREALTIME/[.,]/}"; }

create() { # MANNER NAME TOPLEVEL
  mkdir -p "$roots/$2"/{etc,var/lib,usr,run/leaf,nix/store} "$profiles/$2" "$gcroots/$2" "$conf"
  : >"$roots/$2/etc/os-release"
  : >"$roots/$2/etc/machine-id"
  case $1 in
    nix-env) nix-env --profile "$profiles/$2/system" --set "$3" ;;
    *) ln -sfn "$3" "$profiles/$2/system" ;;
  esac
  ln -sfn "$profiles/$2/system" "$gcroots/$2/system"
  printf 'SYSTEM_PATH=%s\nHOST_ADDRESS=10.232.%d.1\nLOCAL_ADDRESS=10.232.%d.2\n' "$3" "${number:-1}" "${number:-1}" \
    >"$conf/$2.conf"
}

# The container's processes, in the place of this one.
run() { # NAME TOPLEVEL MORE...
  local name=$1 toplevel=$2
  shift 2
  exec systemd-nspawn --quiet --keep-unit --machine="$name" --directory="$roots/$name" --private-network --network-veth \
    --notify-ready=yes --kill-signal=SIGRTMIN+3 --link-journal=no --resolv-conf=off --timezone=off \
    --bind-ro=/nix/store --bind-ro=/usr/local/bin/leaf-init:/run/leaf/init "$@" -- "$toplevel/init"
}

link_down() { ip link del dev "ve-$1" 2>/dev/null || true; }

link_up() {
  ip link set dev "ve-$1" up
  ip addr add "$HOST_ADDRESS" dev "ve-$1"
  ip route add "$LOCAL_ADDRESS" dev "ve-$1"
}

start() { # MANNER NAME TOPLEVEL
  case $1 in
    nspawn)
      # What it prints comes through here; it is ready when it says so.
      mkfifo "/run/by-hand-$2"
      exec 3<>"/run/by-hand-$2"
      run "$2" "$3" --register=no >&3 2>&1 3>&- &
      nspawn=$!
      while read -r line <&3 && [[ $line != *ready* ]]; do :; done
      HOST_ADDRESS=10.232.1.1 LOCAL_ADDRESS=10.232.1.2 link_up "$2"
      ;;
    nix-env)
      systemctl start "bare@$2"
      [ "$(systemctl show --property=ActiveState --value "bare@$2")" = active ]
      ;;
    *) systemctl start "bare@$2" ;;
  esac
}

stop() { # MANNER NAME
  case $1 in
    nspawn)
      kill -TERM "$nspawn"
      wait "$nspawn" || true
      ;;
    *) systemctl stop "bare@$2" ;;
  esac
}

destroy() { # NAME
  rm -rf "${roots:?}/$1" "${profiles:?}/$1" "${gcroots:?}/$1" "$conf/$1.conf" "/run/by-hand-$1"
}

case $1 in
  unit-run) run "$2" "$SYSTEM_PATH" ;;
  unit-down) link_down "$2" ;;
  unit-up) link_up "$2" ;;
  life)
    t=("$(now)")
    create "$2" "$3" "$4"
    t+=("$(now)")
    start "$2" "$3" "$4"
    t+=("$(now)")
    stop "$2" "$3"
    t+=("$(now)")
    destroy "$3"
    t+=("$(now)")
    for i in 1 2 3 4; do echo $((t[i] - t[i - 1])); done
    ;;
  crowd)
    units=()
    for number in $(seq "$2"); do
      create systemctl "n$number" "$3"
      units+=("bare@n$number")
    done
    began=$(now)
    systemctl start "${units[@]}"
    echo $(($(now) - began))
    systemctl stop "${units[@]}"
    for number in $(seq "$2"); do destroy "n$number"; done
    ;;
  *)
    echo "see the head of $0" >&2
    exit 2
    ;;
esac
