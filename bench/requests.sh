# A section of scripts/bench: requests of a guest, through `bench`: random 4 KiB and sequential 1 MiB, one and 32 at once,
# on an image that is mapped (1 GiB), new, mapped with a snapshot (copy-on-write), and new with extended L2 entries.
# shellcheck shell=bash disable=SC2154

new_image() {
  rm -f "$folder/work.qcow2"
  qemu-img create -q -f qcow2 "$folder/work.qcow2" 4G
}
new_extended_image() {
  rm -f "$folder/work.qcow2"
  qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k "$folder/work.qcow2" 4G
}
mapped_image() {
  [ -e "$folder/mapped.qcow2" ] || qemu-img convert -f raw -O qcow2 -S 0 "$folder/full.raw" "$folder/mapped.qcow2"
  into_page_cache "$folder/mapped.qcow2"
}
snapshot_image() {  # the snapshot's clusters are shared: a write copies
  rm -f "$folder/work.qcow2"
  cp --reflink=auto "$folder/mapped.qcow2" "$folder/work.qcow2"
  qemu-img snapshot -c point "$folder/work.qcow2"
  settle "$folder/work.qcow2"
  into_page_cache "$folder/work.qcow2"
}

# The step goes through all of the disk in a scattered order: it shares no factor with the number of blocks.
random_step=$((1073741824 + 4096 * 12347))

requests() {  # NAME PREPARE IMAGE COUNT_4K COUNT_1M OPTION… — both kinds, one and 32 at once
  local depth name=$1 prepare=$2 image=$3 small=$4 large=$5
  shift 5
  for depth in 1 32; do
    pair "$name-4k-$depth" "$prepare" bench "$@" -f qcow2 -c "$small" -d $depth -s 4096 -S $random_step "$image"
    pair "$name-1m-$depth" "$prepare" bench "$@" -f qcow2 -c "$large" -d $depth -s 1M "$image"
  done
}

section_requests() {
  local depth kind dirtied=1024
  head -c 1G /dev/urandom >"$folder/full.raw"
  requests read mapped_image "$folder/mapped.qcow2" 50000 4096
  requests write mapped_image "$folder/mapped.qcow2" 20000 1024 -w
  requests fresh new_image "$folder/work.qcow2" 20000 1024 -w
  requests cow snapshot_image "$folder/work.qcow2" 5000 512 -w
  requests extended new_extended_image "$folder/work.qcow2" 20000 1024 -w
  rm -f "$folder"/{full.raw,mapped.qcow2,work.qcow2}

  table_head "requests"
  for kind in read write fresh cow extended; do
    for depth in 1 32; do
      table_row "$kind, random 4 KiB, $depth at once" "$kind-4k-$depth"
      table_row "$kind, sequential 1 MiB, $depth at once" "$kind-1m-$depth"
    done
  done
}
