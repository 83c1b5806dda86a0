#!/usr/bin/env bash
# Makes a small guest out of Debian's packages: a kernel and an initramfs with busybox and QEMU's guest agent, for the
# tests that need a machine in which something runs. Installs nothing on the system. Does nothing where it is there.
#
# usage: tests/support/make_guest.sh DIRECTORY
#
# DIRECTORY/vmlinuz and DIRECTORY/initrd. What the guest does is in its /init, below. DIRECTORY/modules/VERSION has the
# kernel's modules: libguestfs's appliance, which tests look into disks with, takes both.
set -euo pipefail

directory=${1:?usage: make_guest.sh DIRECTORY}
script=$(readlink -f "$0")
PATH=$PATH:/usr/sbin:/sbin
command -v depmod >/dev/null || { echo "make_guest.sh: depmod (package kmod) is missing" >&2; exit 1; }
if [ -e "$directory/initrd" ] && [ -e "$directory/modules" ] && [ ! "$script" -nt "$directory/initrd" ]; then exit 0; fi
mkdir -p "$directory"
work=$(mktemp -d "${TMPDIR:-/tmp}/varve-guest.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # apt gets packages as a user of its own

get_packages() {
  local kernel
  kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1)
  [ -n "$kernel" ] || return 1
  echo "make_guest.sh: getting $kernel, busybox-static and qemu-guest-agent"
  (cd "$work" && apt-get -q -q -o Acquire::Retries=3 download "$kernel" busybox-static qemu-guest-agent) \
    >"$work/log" 2>&1
}
if ! get_packages; then
  # The package lists may be missing, or too old.
  as_root=(env)
  [ "$(id -u)" -eq 0 ] || as_root=(sudo env)
  "${as_root[@]}" apt-get -q -q -o DPkg::Lock::Timeout=300 update >"$work/log" 2>&1 </dev/null || true
  if ! get_packages; then
    cat "$work/log" >&2
    echo "make_guest.sh: the packages can't be had; above is what apt-get said" >&2
    exit 1
  fi
fi
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/packages"; done
packages=$work/packages

root=$work/root
mkdir -p "$root"/{bin,dev,etc,lib64,mnt,modules,proc,run,sys,tmp,var}
ln -s ../run "$root/var/run"
cp "$packages/bin/busybox" "$packages/usr/sbin/qemu-ga" "$root/bin"
ldd "$packages/usr/sbin/qemu-ga" | grep -o '/[^ ]*' | while read -r library; do
  install -D "$library" "$root$library"
done
find "$packages/lib/modules" \( -path '*/virtio/virtio*.ko' -o -name virtio_blk.ko -o -name virtio_console.ko \) \
  -exec cp {} "$root/modules" \;

cat >"$root/init" <<'INIT'
#!/bin/busybox sh
# Appends a number to /dev/vda's `log` ten times a second, syncs it, and says so on the console. Of the kernel's command
# line it understands
#   freezes=SECONDS  freezing takes so long
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
for round in 1 2 3 4; do
  for module in /modules/*.ko; do insmod "$module" 2>/dev/null; done
done
mount -t ext4 /dev/vda /mnt
for word in $(cat /proc/cmdline); do
  case $word in
    freezes=*)
      printf '#!/bin/busybox sh\n[ "$1" = thaw ] && exit\necho freezing >/dev/console\nsleep %s\n' "${word#*=}" >/etc/hook
      chmod 755 /etc/hook
      hook=-F/etc/hook ;;
  esac
done
port=$(grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name | cut -d/ -f5)
[ -z "$port" ] || qemu-ga -m virtio-serial -p "/dev/$port" $hook >/dev/null 2>&1 &
number=0
while :; do
  echo "$number" >>/mnt/log
  sync
  echo "wrote $number"
  number=$((number + 1))
  usleep 100000
done
INIT
chmod 755 "$root/init"
(cd "$root" && find . | "$root/bin/busybox" cpio -o -H newc 2>/dev/null) | gzip >"$work/initrd"
cp "$packages"/boot/vmlinuz-* "$directory/vmlinuz"
depmod -b "$packages" "$(basename "$packages"/lib/modules/*)"
rm -rf "$directory/modules" "$directory/appliance"
mv "$packages/lib/modules" "$directory/modules"
mkdir "$directory/appliance"  # what libguestfs makes out of it
mv "$work/initrd" "$directory/initrd"
