# A section of scripts/bench: NBD over a Unix socket, fio as the client: `qemu-nbd` and nbdkit with Varve's plugin on the
# same image, in turn. An image of 1 GiB, all of it data and in the page cache; read and written as it is, and read as
# it was at a snapshot (`qemu-nbd -l`).
# shellcheck shell=bash disable=SC2154

nbd_seconds=2  # for one figure of one round

# nbd_wait_for SOCKET
nbd_wait_for() {
  local i
  for ((i = 0; i < 500; ++i)); do
    nbdinfo --size "nbd+unix:///?socket=$1" >/dev/null 2>&1 && return
    sleep 0.02
  done
  echo "bench/nbd.sh: nothing listens on $1" >&2
  return 1
}

# nbd_serve WHO POINT — starts it in the background; $nbd_pid and $nbd_socket say where.
nbd_serve() {
  nbd_socket=$folder/nbd-$1.socket
  rm -f "$nbd_socket"
  case $1:$2 in
    qemu-nbd:now) qemu-nbd -t -f qcow2 -k "$nbd_socket" "$folder/nbd.qcow2" & ;;
    qemu-nbd:snapshot) qemu-nbd -t -r -f qcow2 -l point -k "$nbd_socket" "$folder/nbd.qcow2" & ;;
    varve:now) nbdkit -f -t "$nbd_threads" -U "$nbd_socket" "$build/nbdkit-varve-plugin.so" "$folder/nbd.qcow2" & ;;
    varve:snapshot)
      nbdkit -f -r -t "$nbd_threads" -U "$nbd_socket" "$build/nbdkit-varve-plugin.so" "$folder/nbd.qcow2" snapshot=point &
      ;;
  esac
  nbd_pid=$!
  nbd_wait_for "$nbd_socket"
}

# nbd_figure RW BLOCK DEPTH — requests per second. fio's first line of output is not JSON.
nbd_figure() {
  fio --name=nbd --ioengine=nbd "--uri=nbd+unix:///?socket=$nbd_socket" --rw="$1" --bs="$2" --iodepth="$3" --size=1G \
    --runtime="$nbd_seconds" --time_based --output-format=json 2>/dev/null | sed -n '/^{/,$p' |
    awk -F'[:,]' -v side="$([[ $1 == *read ]] && echo read || echo write)" '
      $1 ~ "\"" side "\"" { inside = 1 }
      inside && !found && $1 ~ /"iops"/ { print $2 + 0; found = 1 }'
}

# nbd_pair POINT RW BLOCK DEPTH
nbd_pair() {
  local round who order name=$1-$2-$3-$4
  rm -f "$folder"/{qemu-nbd,varve}-"$name".result
  for ((round = 1; round <= rounds; ++round)); do
    order="qemu-nbd varve"
    [ $((round % 2)) = 1 ] || order="varve qemu-nbd"
    for who in $order; do
      nbd_serve "$who" "$1"
      nbd_figure "$2" "$3" "$4" >>"$folder/$who-$name.result" || echo "bench/nbd.sh: fio failed" >&2
      kill "$nbd_pid"
      wait "$nbd_pid" 2>/dev/null || true
    done
  done
}

nbd_row() {  # TITLE POINT RW BLOCK DEPTH
  local name=$2-$3-$4-$5
  awk -v title="$1" -v q="$(median "qemu-nbd-$name" 1)" -v v="$(median "varve-$name" 1)" -v unit="$4" 'BEGIN {
    printf "| %s | %.0f %s | %.0f %s | %.2f× |\n", title, q, unit == "1M" ? "MiB/s" : "IOPS", v,
      unit == "1M" ? "MiB/s" : "IOPS", v / q }'
}

section_nbd() {
  local point rw block depth program
  for program in nbdkit fio qemu-nbd nbdinfo "$build/nbdkit-varve-plugin.so"; do
    command -v "$program" >/dev/null || [ -e "$program" ] || {
      echo "nbd: left out; it needs nbdkit, nbdkit-plugin-dev, libnbd-bin and fio" >&2
      return
    }
  done
  nbd_threads=6  # as `snapshot serve` has it
  head -c 1G /dev/urandom >"$folder/nbd.raw"
  qemu-img convert -f raw -O qcow2 -S 0 "$folder/nbd.raw" "$folder/nbd.qcow2"
  rm -f "$folder/nbd.raw"
  local cases=("randread 4k 16" "randread 4k 1" "read 1M 1" "read 1M 16" "randwrite 4k 16" "randwrite 4k 1" "write 1M 1" "write 1M 16")
  local kind
  into_page_cache "$folder/nbd.qcow2"
  for kind in "${cases[@]}"; do
    # shellcheck disable=SC2086
    nbd_pair now $kind
  done
  qemu-img snapshot -c point "$folder/nbd.qcow2"
  settle "$folder/nbd.qcow2"
  for kind in "${cases[@]:0:4}"; do
    # shellcheck disable=SC2086
    nbd_pair snapshot $kind
  done
  rm -f "$folder/nbd.qcow2"

  echo "| NBD | qemu-nbd | varve | faster by |"
  echo "|---|---:|---:|---:|"
  for point in now snapshot; do
    for kind in "${cases[@]}"; do
      read -r rw block depth <<<"$kind"
      [ -e "$folder/varve-$point-$rw-$block-$depth.result" ] || continue
      nbd_row "$point, $rw ${block/k/ KiB}, $depth at once" "$point" "$rw" "$block" "$depth"
    done
  done | sed 's/ 1M,/ 1 MiB,/; s/randread/random read/; s/randwrite/random write/; s/, read/, sequential read/; s/, write/, sequential write/'
}
