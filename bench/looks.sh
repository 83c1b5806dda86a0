# A section of scripts/bench: commands that only look: compare, map, measure.
# shellcheck shell=bash disable=SC2154

with_page_cache() {
  into_page_cache "$data".*
}

section_looks() {
  make_data
  cp "$data.base" "$data.copy"
  qemu-img create -q -f qcow2 -b "$data.base" -F qcow2 "$data.same"
  pair compare with_page_cache compare -f qcow2 -F qcow2 "$data.base" "$data.copy"
  pair compare-raw with_page_cache compare -f raw -F qcow2 "$data.raw" "$data.base"
  pair compare-shared with_page_cache compare -f qcow2 -F qcow2 "$data.same" "$data.base"
  rm -f "$data.copy" "$data.same"
  qemu-img create -q -f qcow2 -o preallocation=metadata "$folder/mapped.qcow2" "$size"
  pair map nothing map -f qcow2 "$folder/mapped.qcow2"
  pair map-json nothing map -f qcow2 --output=json "$folder/mapped.qcow2"
  pair measure nothing measure -f qcow2 -O qcow2 "$folder/mapped.qcow2"
  pair measure-raw with_page_cache measure -f raw -O qcow2 "$data.raw"
  rm -f "$folder/mapped.qcow2"

  table_head "looks"
  table_row "compare, two copies of 2 GiB of data" compare
  table_row "compare, raw and qcow2" compare-raw
  table_row "compare, shared tables" compare-shared
  table_row "map, $size mapped" map
  table_row "map --output=json, $size mapped" map-json
  table_row "measure, $size mapped" measure
  table_row "measure, raw of 4 GiB" measure-raw
}
