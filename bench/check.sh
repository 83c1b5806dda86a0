# A section of scripts/bench: check of fully mapped images.
# shellcheck shell=bash disable=SC2154

check_pair() {  # NAME
  pair "$1" nothing check "$folder/work.qcow2"
  cmp <(qemu-img check "$folder/work.qcow2") <("$build/varve" image check "$folder/work.qcow2")
}

section_check() {
  local i small
  qemu-img create -q -f qcow2 -o preallocation=metadata "$folder/work.qcow2" "$size"
  check_pair check
  for ((i = 1; i <= 20; ++i)); do "$build/varve" image snapshot -c "point-$i" "$folder/work.qcow2"; done
  check_pair check20
  rm -f "$folder/work.qcow2"
  small=$(($(numfmt --from=iec "$size") / 16))
  qemu-img create -q -f qcow2 -o cluster_size=4k,preallocation=metadata "$folder/work.qcow2" "$small"
  check_pair check4k
  rm -f "$folder/work.qcow2"

  table_head "check, $size virtual, fully mapped"
  table_row "as it is" check
  table_row "with 20 snapshots" check20
  table_row "clusters of 4 KiB, size / 16" check4k
}
