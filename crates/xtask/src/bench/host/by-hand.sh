#!/bin/bash
# Containers without a leaf, as somebody writes it by hand: what `cargo xtask bench --host` measures a leaf against.
#
#   by-hand.sh life MANNER NAME TOPLEVEL       one life; prints microseconds: create start stop destroy
#   by-hand.sh crowd MANNER COUNT TOPLEVEL     so many units at once; prints microseconds
#
# The manners: `systemctl` writes the files of the NixOS contract, for a unit that does what the contract's does and starts
# again after a systemd-nspawn that was killed (`contract@.service`); `nix-env` sets the profile by nix-env, as the program
# nixos-container does; `least` has the least unit that starts at all (`least@.service`); `nspawn` has no unit. None gives a
# container users of its own, a closed network, limits or credentials, as a leaf does.
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
    --notify-ready=yes --kill-signal=SIGRTMIN+3 --resolv-conf=off --timezone=off \
    --bind-ro=/nix/store --bind-ro=/usr/local/bin/leaf-init:/run/leaf/init "$@" -- "$toplevel/init"
}

# The same as the contract has it: its directories, its places of Nix, its journal.
run_by_contract() { # NAME TOPLEVEL
  local root=$roots/$1 profile=$profiles/$1 gcroot=$gcroots/$1
  mkdir -p -m 0755 "$root/etc" "$root/var/lib" "$root/nix/store" "$root/nix/var/nix" "$profile" "$gcroot"
  [ -e "$root/etc/os-release" ] || : >"$root/etc/os-release"
  [ -e "$root/etc/machine-id" ] || : >"$root/etc/machine-id"
  run "$1" "$2" --link-journal=try-guest --bind-ro=/nix/var/nix/db --bind-ro=/nix/var/nix/daemon-socket \
    --bind="$profile:/nix/var/nix/profiles" --bind="$gcroot:/nix/var/nix/gcroots" \
    --setenv=HOST_ADDRESS="$HOST_ADDRESS" --setenv=LOCAL_ADDRESS="$LOCAL_ADDRESS"
}

# What a systemd-nspawn that was killed leaves: machined's entry, a mount, the link. A start would fail at each.
free_name() { # NAME
  busctl --quiet call org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager \
    UnregisterMachine s "$1" 2>/dev/null || true
  if mountpoint -q "/run/systemd/nspawn/unix-export/$1"; then umount -l "/run/systemd/nspawn/unix-export/$1"; fi
  link_down "$1"
}

link_down() { ip link del dev "ve-$1" 2>/dev/null || true; }

link_up() {
  ip link set dev "ve-$1" up
  ip addr add "$HOST_ADDRESS" dev "ve-$1"
  ip route add "$LOCAL_ADDRESS" dev "ve-$1"
}

unit() { # MANNER NAME
  case $1 in
    least) echo "least@$2" ;;
    *) echo "contract@$2" ;;
  esac
}

start() { # MANNER NAME TOPLEVEL
  case $1 in
    nspawn)
      # What it prints comes through here; it is ready when it says so.
      mkfifo "/run/by-hand-$2"
      exec 3<>"/run/by-hand-$2"
      run "$2" "$3" --register=no --link-journal=no >&3 2>&1 3>&- &
      nspawn=$!
      while read -r line <&3 && [[ $line != *ready* ]]; do :; done
      HOST_ADDRESS=10.232.1.1 LOCAL_ADDRESS=10.232.1.2 link_up "$2"
      ;;
    nix-env)
      systemctl start "$(unit "$1" "$2")"
      [ "$(systemctl show --property=ActiveState --value "$(unit "$1" "$2")")" = active ]
      ;;
    *) systemctl start "$(unit "$1" "$2")" ;;
  esac
}

stop() { # MANNER NAME
  case $1 in
    nspawn)
      kill -TERM "$nspawn"
      wait "$nspawn" || true
      ;;
    *) systemctl stop "$(unit "$1" "$2")" ;;
  esac
}

destroy() { # NAME
  rm -rf "${roots:?}/$1" "${profiles:?}/$1" "${gcroots:?}/$1" "$conf/$1.conf" "/run/by-hand-$1"
}

case $1 in
  # What the units call.
  contract-down) free_name "$2" ;;
  contract-run) run_by_contract "$2" "$SYSTEM_PATH" ;;
  least-down) link_down "$2" ;;
  least-run) run "$2" "$SYSTEM_PATH" --link-journal=no ;;
  up) link_up "$2" ;;
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
    for number in $(seq "$3"); do
      create "$2" "n$number" "$4"
      units+=("$(unit "$2" "n$number")")
    done
    began=$(now)
    systemctl start "${units[@]}"
    echo $(($(now) - began))
    systemctl stop "${units[@]}"
    for number in $(seq "$3"); do destroy "n$number"; done
    ;;
  *)
    echo "see the head of $0" >&2
    exit 2
    ;;
esac
