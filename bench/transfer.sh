# A section of scripts/bench: a machine with ten snapshots is exported, beside `cp --sparse=always` of its files, which
# knows no checksums. Both onto the same file system. And what has changed since an earlier export, 64 MiB of one disk.
# shellcheck shell=bash disable=SC2154

section_transfer() {
  local number round host=$folder/host dirtied=3072
  local images=$host/var/lib/libvirt/images
  by_us() { "$build/varve" -q -c "dir:$host" "$@"; }
  by_us vm create vm --disk 8G --disk 8G
  qemu-io -f qcow2 -c 'write -q -P 1 0 1G' "$images/vm.qcow2" -c 'write -q -P 2 2G 512M'
  qemu-io -f qcow2 -c 'write -q -P 3 0 512M' "$images/vm-2.qcow2"
  for ((number = 1; number <= 10; ++number)); do
    by_us snapshot create vm "day-$number"
    qemu-io -f qcow2 -c "write -q -P $number ${number}00M 32M" "$images/vm.qcow2"
  done
  by_us vm export vm "$folder/kept/earlier"
  qemu-io -f qcow2 -c 'write -q -P 77 500M 64M' "$images/vm.qcow2"
  sync -f "$folder"
  for ((round = 1; round <= rounds; ++round)); do
    into_page_cache "$images"/*
    rm -rf "$folder/out"
    measure varve-export "$build/varve" -q -c "dir:$host" vm export vm "$folder/out"
    rm -rf "$folder/kept/next"
    into_page_cache "$images"/* "$folder"/kept/earlier/var/lib/libvirt/images/*
    measure varve-increment "$build/varve" -q -c "dir:$host" vm export vm "$folder/kept/next" --since day-10
    rm -rf "$folder/out"
    measure cp-and-sync sh -c "cp -r --sparse=always '$host' '$folder/out' && sync -f '$folder/out'"
    rm -rf "$folder/out"
    measure cp-alone cp -r --sparse=always "$host" "$folder/out"
  done
  echo "| a machine with 10 snapshots, $(du -sh "$images" | cut -f 1) of images | wall | CPU | memory |"
  echo "|---|---:|---:|---:|"
  points_row "varve vm export, with checksums, durable" varve-export
  points_row "varve vm export --since, of 64 MiB that changed: $(du -sh "$folder/kept/next" | cut -f 1)" varve-increment
  points_row "cp --sparse=always, and sync" cp-and-sync
  points_row "cp --sparse=always, in memory" cp-alone
  rm -rf "$host" "$folder/out" "$folder/kept"
}
