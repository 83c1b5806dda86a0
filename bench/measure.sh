# Functions that the sections of scripts/bench share. Set before: $build, $folder, $rounds.
# shellcheck shell=bash disable=SC2154

dirtied=256  # MiB of memory that what is measured will want, page cache included; sections say more

# measure NAME COMMAND… — one line of wall, CPU, peak memory, exit status for NAME.
measure() {
  "$build/bench/varve_measure" "$folder/$1.result" "$dirtied" "${@:2}" >/dev/null
}

# median NAME COLUMN
median() {
  sort -n -k "$2,$2" "$folder/$1.result" |
    awk -v column="$2" '{ value[NR] = $column } END {
      print NR % 2 ? value[(NR + 1) / 2] : (value[NR / 2] + value[NR / 2 + 1]) / 2 }'
}

# Hosts give back memory that was not looked at for a while, and with it the sources of a copy.
into_page_cache() {
  cat "$@" >/dev/null
}

# Files that have nothing left to write back.
settle() {
  sync "$@"
}

# pair NAME PREPARE ARGUMENT… — `qemu-img ARGUMENT…` and `varve image ARGUMENT…` in turn, $rounds times, whoever comes
# first changing; the function PREPARE runs before each. Exit codes 0 and 1 (compare) are fine.
pair() {
  local name=$1 prepare=$2 round who order
  shift 2
  rm -f "$folder/qemu-img-$name.result" "$folder/varve-$name.result"
  for ((round = 1; round <= rounds; ++round)); do
    order="qemu-img varve"
    [ $((round % 2)) = 1 ] || order="varve qemu-img"
    for who in $order; do
      "$prepare"
      if [ "$who" = varve ]; then
        measure "varve-$name" "$build/varve" image "$@" || [ $? = 1 ]
      else
        measure "qemu-img-$name" qemu-img "$@" || [ $? = 1 ]
      fi
    done
  done
}

table_head() {  # TITLE
  echo "| $1 | qemu-img wall | CPU | memory | varve wall | CPU | memory | faster by |"
  echo "|---|---:|---:|---:|---:|---:|---:|---:|"
}

table_row() {  # TITLE NAME
  awk -v title="$1" -v qw="$(median "qemu-img-$2" 1)" -v qc="$(median "qemu-img-$2" 2)" -v qm="$(median "qemu-img-$2" 3)" \
    -v vw="$(median "varve-$2" 1)" -v vc="$(median "varve-$2" 2)" -v vm="$(median "varve-$2" 3)" 'BEGIN {
      printf "| %s | %.3f s | %.3f s | %.0f MiB | %.3f s | %.3f s | %.0f MiB | %.1f× |\n",
        title, qw, qc, qm / 1024, vw, vc, vm / 1024, qw / vw }'
}

nothing() { :; }
