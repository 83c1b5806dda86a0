# A section of scripts/bench: snapshots of a domain of a libvirtd, by virsh and by varve, on the same libvirtd, which
# runs in namespaces of its own on a tree of its own.
# shellcheck shell=bash disable=SC2154

libvirtd_script='
set -e
root=$1 scratch=$2
mount --make-rprivate /
mkdir -p "$root/etc/libvirt" "$root/var/lib/libvirt/images" "$scratch/run" "$scratch/cache" "$scratch/log/qemu" "$scratch/dev"
if [ -e /dev/kvm ]; then
  mount -t tmpfs -o mode=755 tmpfs "$scratch/dev"
  if mknod -m 666 "$scratch/dev/kvm" c 10 232; then mount --bind "$scratch/dev/kvm" /dev/kvm; fi
fi
mount --bind "$scratch/run" /run
mount --bind "$root/etc/libvirt" /etc/libvirt
mount --bind "$root/var/lib" /var/lib
mount --bind "$scratch/cache" /var/cache/libvirt
mount --bind "$scratch/log" /var/log/libvirt
virtlogd -d </dev/null
libvirtd -d </dev/null
until virsh -c qemu:///system version >/dev/null 2>&1 </dev/null; do sleep 0.1; done
echo up
exec 3<&0
(read -r line <&3 || true) &
wait $!
'

there() { nsenter --mount --target "$libvirtd_pid" "$@"; }
by_virsh() { there virsh -q -c qemu:///system "$@"; }
by_varve() { there "$build/varve" -q -c qemu:///system "$@"; }

start_libvirtd() {
  mkfifo "$folder/end" "$folder/up"
  unshare --mount --pid --fork --kill-child --mount-proc sh -c "$libvirtd_script" libvirtd "$folder/host" "$folder/scratch" \
    <"$folder/end" >"$folder/up" 2>"$folder/libvirtd.log" &
  libvirtd_pid=$!
  exec 9>"$folder/end"
  read -r _ <"$folder/up"
}

stop_libvirtd() {
  exec 9>&-
  wait "$libvirtd_pid" || true
}

# A domain with three disks of 100 GiB, fully mapped; and one with a small disk.
make_domains() {
  local number images=$folder/host/var/lib/libvirt/images
  mkdir -p "$images"
  for number in 1 2 3; do
    qemu-img create -q -f qcow2 -o preallocation=metadata "$images/big-$number.qcow2" 100G
  done
  by_varve vm create big --type qemu --disk /var/lib/libvirt/images/big-1.qcow2,format=qcow2 \
    --disk /var/lib/libvirt/images/big-2.qcow2,format=qcow2 --disk /var/lib/libvirt/images/big-3.qcow2,format=qcow2
  by_varve vm create many --type qemu --disk 1G
}

beside() {  # NAME VIRSH-COMMAND -- VARVE-COMMAND
  local name=$1 virsh=() varve=()
  shift
  while [ "$1" != -- ]; do
    virsh+=("$1")
    shift
  done
  shift
  varve=("$@")
  settle "$folder"/host/var/lib/libvirt/images/*
  if [ "$who" = varve ]; then
    measure "varve-$name" nsenter --mount --target "$libvirtd_pid" "$build/varve" -q -c qemu:///system "${varve[@]}"
  else
    measure "virsh-$name" nsenter --mount --target "$libvirtd_pid" virsh -q -c qemu:///system "${virsh[@]}"
  fi
}

libvirt_row() {  # TITLE NAME
  awk -v title="$1" -v q="$(median "virsh-$2" 1)" -v v="$(median "varve-$2" 1)" 'BEGIN {
    printf "| %s | %.3f s | %.3f s | %.1f× |\n", title, q, v, q / v }'
}

section_libvirt() {
  local round who number
  start_libvirtd
  make_domains
  for ((round = 1; round <= rounds; ++round)); do
    for who in $([ $((round % 2)) = 1 ] && echo virsh varve || echo varve virsh); do
      beside create snapshot-create-as big point -- snapshot create big point
      beside revert snapshot-revert big point -- snapshot revert big point --no-safety
      beside delete snapshot-delete big point -- snapshot delete big point
    done
    # What of virsh's time is qemu-img's, which libvirtd runs for every disk.
    measure qemu-img-create sh -c "for image in $folder/host/var/lib/libvirt/images/big-*; do
      qemu-img snapshot -c point \$image; done"
    measure qemu-img-revert sh -c "for image in $folder/host/var/lib/libvirt/images/big-*; do
      qemu-img snapshot -a point \$image; done"
    measure qemu-img-delete sh -c "for image in $folder/host/var/lib/libvirt/images/big-*; do
      qemu-img snapshot -d point \$image; done"
    # What of varve's time is the connection, reading documents, and opening images.
    by_varve snapshot create big point
    measure varve-plan nsenter --mount --target "$libvirtd_pid" "$build/varve" -q -c qemu:///system --dry-run snapshot delete \
      big point
    by_varve snapshot delete big point
  done
  for number in 1 2 3; do qemu-img check -q "$folder/host/var/lib/libvirt/images/big-$number.qcow2"; done
  for ((number = 1; number <= 1000; ++number)); do by_varve snapshot create many "hourly-$number"; done
  for ((round = 1; round <= rounds; ++round)); do
    for who in $([ $((round % 2)) = 1 ] && echo virsh varve || echo varve virsh); do
      beside list snapshot-list many -- snapshot list many
      beside tree snapshot-list many --tree -- snapshot list many --tree
      beside show snapshot-info many hourly-500 -- snapshot show many hourly-500
      beside xml snapshot-dumpxml many hourly-500 -- snapshot show many hourly-500 --xml
    done
  done
  stop_libvirtd

  echo "A domain with three disks of 100 GiB, fully mapped, shut off:"
  echo
  echo "| | virsh | varve | faster by | qemu-img alone |"
  echo "|---|---:|---:|---:|---:|"
  for name in create revert delete; do
    echo "$(libvirt_row "$name" "$name") $(awk -v q="$(median "qemu-img-$name" 1)" 'BEGIN { printf "%.3f s |", q }')"
  done
  awk -v v="$(median varve-plan 1)" 'BEGIN { printf "\nOf varve'"'"'s time, %.3f s are the plan: what --dry-run takes.\n", v }'
  echo
  echo "A domain with 1,000 snapshots:"
  echo
  echo "| | virsh | varve | faster by |"
  echo "|---|---:|---:|---:|"
  libvirt_row list list
  libvirt_row "list --tree" tree
  libvirt_row show show
  libvirt_row "show --xml" xml
}
