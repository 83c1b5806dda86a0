# A section of scripts/bench: convert, commit and rebase of a disk of 4 GiB of mixed data and holes.
# shellcheck shell=bash disable=SC2154

make_data() {  # $data.raw, $data.base (the same as qcow2), $data.top (an overlay of it)
  local mib
  [ ! -e "$data.raw" ] || return 0
  truncate -s 4G "$data.raw"
  for ((mib = 0; mib < 4096; mib += 64)); do  # 24 MiB random, 8 MiB text, 32 MiB hole
    head -c 24M /dev/urandom | dd of="$data.raw" bs=1M seek=$mib conv=notrunc status=none iflag=fullblock
    seq -f "line %.0f of a log that says much the same again and again" $((mib * 10000)) $((mib * 10000 + 200000)) |
      head -c 8M | dd of="$data.raw" bs=1M seek=$((mib + 24)) conv=notrunc status=none iflag=fullblock || true
  done
  qemu-img convert -f raw -O qcow2 "$data.raw" "$data.base"
  qemu-img create -q -f qcow2 -b "$data.base" -F qcow2 "$data.top"
  for ((mib = 16; mib < 4096; mib += 128)); do
    qemu-io -f qcow2 -c "write -q -P 7 ${mib}M 16M" "$data.top" >/dev/null
  done
  settle "$data.raw" "$data.base" "$data.top"
}

without_target() {
  rm -f "$folder/out"
  into_page_cache "$data".*
}

# A copy of the overlay, over a copy of its backing file.
fresh_overlay() {
  rm -f "$folder/base.qcow2" "$folder/work.qcow2"
  cp --reflink=auto "$data.base" "$folder/base.qcow2"
  cp --reflink=auto "$data.top" "$folder/work.qcow2"
  qemu-img rebase -u -f qcow2 -b "$folder/base.qcow2" -F qcow2 "$folder/work.qcow2"
  settle "$folder/base.qcow2" "$folder/work.qcow2"
}

compressed() {  # NAME ARGUMENT… — and the sizes that come out
  pair "$1" without_target "${@:2}" "$folder/out"
  qemu-img "${@:2}" "$folder/out"
  stat -c %s "$folder/out" >"$folder/$1.qemu-img-size"
  rm -f "$folder/out"
  "$build/varve" image "${@:2}" "$folder/out"
  stat -c %s "$folder/out" >"$folder/$1.varve-size"
}

without_reflink() {
  rm -f "$folder/xfs/out"
  into_page_cache "$folder/xfs/data.raw"
}

# On a file system whose files can share blocks, if one can be mounted.
reflinks() {
  truncate -s 8G "$folder/xfs.img"
  mkfs.xfs -q "$folder/xfs.img"
  mkdir "$folder/xfs"
  mount -o loop "$folder/xfs.img" "$folder/xfs" || return 0
  cp "$data.raw" "$folder/xfs/data.raw"
  settle "$folder/xfs/data.raw"
  pair reflink without_reflink convert -f raw -O raw "$folder/xfs/data.raw" "$folder/xfs/out"
  umount "$folder/xfs"
  rm "$folder/xfs.img"
}

section_copies() {
  local dirtied=12288  # a part of it: who frees memory has no say in which pages come next
  make_data
  pair raw-qcow2 without_target convert -f raw -O qcow2 "$data.raw" "$folder/out"
  pair qcow2-raw without_target convert -f qcow2 -O raw "$data.base" "$folder/out"
  pair chain-flat without_target convert -f qcow2 -O qcow2 "$data.top" "$folder/out"
  pair raw-qcow2-durable without_target convert -t writeback -f raw -O qcow2 "$data.raw" "$folder/out"
  head -c 512M "$data.raw" >"$data.part"
  compressed zlib convert -c -f raw -O qcow2 "$data.part"
  compressed zstd convert -c -f raw -O qcow2 -o compression_type=zstd "$data.part"
  tar cf "$data.text" --exclude=.git --exclude=build -C "$PWD" . && truncate -s %64K "$data.text"
  compressed zlib-text convert -c -f raw -O qcow2 "$data.text"
  rm -f "$data.text" "$data.part" "$folder/out"

  pair commit fresh_overlay commit -q -f qcow2 "$folder/work.qcow2"
  qemu-img create -q -f qcow2 -b "$folder/base.qcow2" -F qcow2 "$folder/middle.qcow2"
  pair rebase-shared fresh_overlay rebase -f qcow2 -b "$folder/middle.qcow2" -F qcow2 "$folder/work.qcow2"
  pair rebase-flat fresh_overlay rebase -f qcow2 -b "" "$folder/work.qcow2"
  cp "$data.base" "$folder/other.qcow2"
  settle "$folder/other.qcow2"
  pair rebase-copy fresh_overlay rebase -f qcow2 -b "$folder/other.qcow2" -F qcow2 "$folder/work.qcow2"
  rm -f "$folder"/{base,work,middle,other}.qcow2

  [ "$(id -u)" != 0 ] || reflinks

  table_head "copies, 4 GiB, half of it data"
  table_row "convert raw to qcow2" raw-qcow2
  table_row "convert qcow2 to raw" qcow2-raw
  table_row "convert a chain to one qcow2" chain-flat
  table_row "convert -t writeback raw to qcow2" raw-qcow2-durable
  table_row "convert -c, zlib, 512 MiB" zlib
  table_row "convert -c, zstd, 512 MiB" zstd
  table_row "convert -c, zlib, a source tree" zlib-text
  [ ! -e "$folder/varve-reflink.result" ] || table_row "convert raw to raw, XFS" reflink
  table_row "commit" commit
  table_row "rebase, shared layers" rebase-shared
  table_row "rebase to no backing file" rebase-flat
  table_row "rebase to a copy of the backing file" rebase-copy
  echo
  local type
  for type in zlib zstd zlib-text; do
    echo "$type: qemu-img $(cat "$folder/$type.qemu-img-size") bytes, varve $(cat "$folder/$type.varve-size") bytes"
  done
}
