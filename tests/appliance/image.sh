#!/usr/bin/env bash
# Creates the disk of the virtual machine: Debian 12 with systemd, without Caxton and without a network.
# Usage: image.sh DIRECTORY   Prints the directory below it that contains disk.img, vmlinuz and initrd.img.
# Needs root for debootstrap. An image is kept until this file changes.
set -euo pipefail

# Packages of a typical gateway, and the tools of the checks: curl, jq, python3, rpm and strace.
packages=systemd,systemd-sysv,udev,dbus,linux-image-cloud-amd64,initramfs-tools,procps,zstd
packages+=,curl,jq,python3,rpm,strace,vim-tiny,util-linux-extra

fail() {
    echo "image.sh: $*" >&2
    exit 1
}

# Writes the unit that runs the checks. It runs at every start of the machine until all checks have finished.
write_unit() {
    cat >"$1/etc/systemd/system/appliance.service" <<'UNIT'
[Unit]
Description=Checks of the appliance
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=exec
ExecStartPre=mount -o ro /dev/vdb /mnt
ExecStart=bash /mnt/guest.sh
TimeoutStartSec=infinity
StandardOutput=file:/dev/ttyS0
StandardError=file:/dev/ttyS0
OOMPolicy=continue

[Install]
WantedBy=multi-user.target
UNIT
    systemctl --quiet --root="$1" enable appliance.service
    # A getty hangs up the serial line, which would end the processes that write to it.
    systemctl --quiet --root="$1" mask serial-getty@ttyS0.service getty@tty1.service
    # These units take a second or more at every start, and Caxton does not need them.
    systemctl --quiet --root="$1" mask e2scrub_reap.service apt-daily.timer apt-daily-upgrade.timer \
        systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
        dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
        sys-kernel-config.mount sys-fs-fuse-connections.mount kmod-static-nodes.service systemd-modules-load.service \
        systemd-random-seed.service systemd-update-utmp.service systemd-pstore.service \
        modprobe@{configfs,dm_mod,drm,efi_pstore,fuse,loop}.service
}

configure() {
    local root=$1
    echo appliance >"$root/etc/hostname"
    echo '/dev/vda / ext4 errors=remount-ro 0 0' >"$root/etc/fstab"
    # The journal must survive a reset, and its rate limit must not drop records of a check.
    mkdir -p "$root/var/log/journal" "$root/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=persistent\nRateLimitBurst=0\nSyncIntervalSec=1s\n' \
        >"$root/etc/systemd/journald.conf.d/appliance.conf"
    # The image has no machine id, so that every test begins with a first boot.
    : >"$root/etc/machine-id"
    : >"$root/etc/apt/sources.list"
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/archives/*.deb
    # Without these files, the first start would repeat the work of this script.
    touch "$root/etc/.updated" "$root/var/.updated"
    write_unit "$root"
    # Under emulation, these three modules load in one second, and all modules of the kernel in ten.
    printf 'virtio_pci\nvirtio_blk\next4\n' >>"$root/etc/initramfs-tools/modules"
    echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/appliance"
    chroot "$root" update-initramfs -u >&2
}

# Creates the image. Only the result of this script goes to stdout; all other output goes to stderr.
make_image() {
    local directory=$1 root=$1/root
    [ "$(id -u)" = 0 ] || fail 'debootstrap needs root'
    rm -rf "$directory"
    mkdir -p "$directory"
    debootstrap --variant=minbase --include="$packages" bookworm "$root" >"$directory/debootstrap.log" 2>&1 ||
        fail "debootstrap failed: $(tail -n 3 "$directory/debootstrap.log")"
    configure "$root"
    cp "$root"/boot/vmlinuz-* "$directory/vmlinuz"
    cp "$root"/boot/initrd.img-* "$directory/initrd.img"
    truncate -s 6G "$directory/disk.img"
    mkfs.ext4 -q -F -O verity -d "$root" "$directory/disk.img"
    rm -rf "$root"
}

main() {
    local work=$1 image
    image=$work/image-$(sha256sum "${BASH_SOURCE[0]}" | cut -c 1-16)
    if [ ! -e "$image/complete" ]; then
        rm -rf "$work"/image-*
        make_image "$image"
        : >"$image/complete"
    fi
    echo "$image"
}

[ $# = 1 ] || fail 'usage: image.sh DIRECTORY'
main "$1"
