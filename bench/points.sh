# A section of scripts/bench: what the snapshots of a fully mapped image hold, and what differs between two of them.
# qemu-img can't tell; beside it stands the time that it takes to map the image.
# shellcheck shell=bash disable=SC2154

section_points() {
  local number place round host=$folder/host bytes
  local image=$host/var/lib/libvirt/images/disk.qcow2
  bytes=$(numfmt --from=iec "$size")
  by_us() { "$build/varve" -q -c "dir:$host" "$@"; }
  mkdir -p "$host/var/lib/libvirt/images"
  qemu-img create -q -f qcow2 -o preallocation=metadata "$image" "$size"
  by_us vm create vm --disk /var/lib/libvirt/images/disk.qcow2,format=qcow2
  for ((number = 1; number <= 100; ++number)); do
    # A day's work: sixteen places, spread over the disk.
    local writes=()
    for ((place = 0; place < 16; ++place)); do
      writes+=(-c "write -q $((bytes * place / 16 + number * 1048576)) 64k")
    done
    qemu-io -f qcow2 "${writes[@]}" "$image"
    by_us snapshot create vm "day-$number"
  done
  for ((round = 1; round <= rounds; ++round)); do
    measure varve-space "$build/varve" -c "dir:$host" snapshot space vm
    measure varve-diff "$build/varve" -c "dir:$host" snapshot diff vm day-49 day-50
    measure varve-diff-far "$build/varve" -c "dir:$host" snapshot diff vm day-1
    measure qemu-img-map qemu-img map -f qcow2 "$image"
  done

  echo "| an image of $size, fully mapped, with 100 snapshots | wall | CPU | memory |"
  echo "|---|---:|---:|---:|"
  points_row "snapshot space" varve-space
  points_row "snapshot diff of two neighbours" varve-diff
  points_row "snapshot diff of the first one and now" varve-diff-far
  points_row "qemu-img map, for comparison" qemu-img-map
  rm -rf "$host"
}

points_row() {  # TITLE NAME
  awk -v title="$1" -v w="$(median "$2" 1)" -v c="$(median "$2" 2)" -v m="$(median "$2" 3)" 'BEGIN {
    printf "| %s | %.3f s | %.3f s | %.0f MiB |\n", title, w, c, m / 1024 }'
}
