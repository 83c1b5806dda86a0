# A section of scripts/bench: snapshots of a fully mapped image, beside a bare pass over the same metadata.
# shellcheck shell=bash disable=SC2154

# Every measured command starts from a file that has nothing left to write back.
fresh_copy() {
  rm -f "$folder/work.qcow2"
  cp --reflink=auto "$folder/base.qcow2" "$folder/work.qcow2"
  settle "$folder/work.qcow2"
}

snapshot_round() {  # NAME COMMAND… — create, list, revert, delete, on a fresh copy
  local name=$1
  shift
  fresh_copy
  measure "$name-create" "$@" -c point "$folder/work.qcow2"
  measure "$name-list" "$@" -l "$folder/work.qcow2"
  measure "$name-revert" "$@" -a point "$folder/work.qcow2"
  measure "$name-delete" "$@" -d point "$folder/work.qcow2"
}

check_clean() {  # what a round left behind
  qemu-img check "$folder/work.qcow2" >"$folder/check" 2>&1 || {
    cat "$folder/check" >&2
    echo "scripts/bench: qemu-img check finds fault with what $1 left behind" >&2
    exit 1
  }
}

row_with_bare() {  # TITLE OPERATION
  echo "$(table_row "$1" "$2")$(awk -v bare="$(median bare 1)" -v v="$(median "varve-$2" 1)" \
    'BEGIN { printf " %.2f× |", v / bare }')"
}

section_snapshots() {
  local round
  qemu-img create -q -f qcow2 -o preallocation=metadata "$folder/base.qcow2" "$size"
  for ((round = 1; round <= rounds; ++round)); do
    snapshot_round qemu-img qemu-img snapshot
    snapshot_round varve "$build/varve" image snapshot
    [ "$round" -gt 1 ] || check_clean varve
    fresh_copy
    measure bare "$build/bench/varve_bare_pass" "$folder/work.qcow2"
  done
  local metadata
  metadata=$(du -k "$folder/base.qcow2" | awk '{ printf "%.0f", $1 / 1024 }')
  rm -f "$folder/base.qcow2" "$folder/work.qcow2"

  "$build/bench/varve_many_snapshots" "$folder/work.qcow2" 10000
  pair list10k nothing snapshot -l "$folder/work.qcow2"
  cmp <(qemu-img snapshot -l "$folder/work.qcow2") <("$build/varve" image snapshot -l "$folder/work.qcow2")
  rm -f "$folder/work.qcow2"

  echo "$size virtual, fully mapped, $metadata MiB of metadata"
  echo
  table_head snapshot | sed -e '1s/$/ against the bare pass |/' -e '2s/$/---:|/'
  row_with_bare create create
  row_with_bare revert revert
  row_with_bare delete delete
  echo "$(table_row list list) – |"
  awk -v w="$(median bare 1)" -v c="$(median bare 2)" -v m="$(median bare 3)" 'BEGIN {
    printf "| bare pass | – | – | – | %.3f s | %.3f s | %.0f MiB | – | 1.00× |\n", w, c, m / 1024 }'
  echo "$(table_row "list 10,000" list10k) – |"
}
