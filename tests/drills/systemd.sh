#!/usr/bin/env bash
# The units under a real systemd: a small virtual machine of its own installs them as the documents
# say, and guest.py in it tries what they promise: limits by cgroup, restarts, kills, a reboot.
#
#   tests/drills/systemd.sh target/debug/gennaker target/debug/deps/it-… [release of Debian]
#
# The trials' binary is that of `cargo test --test it --no-run`. Needs root, and fetches the machine's
# packages with apt-get's sources, once for each release. Ends with 77 and says why where it cannot be run.
set -euo pipefail
exec </dev/null
not_run() { echo "not run: $1"; exit 77; }
gennaker=$(realpath "$1") it=$(realpath "$2") release=${3:-trixie}
here=$(dirname "$(realpath "$0")")
cache=$(dirname "$here")/../target/drills/$release
memory=1024 deadline_s=${GENNAKER_DRILL_SECONDS:-2400}

[ "$(uname -sm)" = 'Linux x86_64' ] || not_run 'it is written for Linux on x86_64'
[ "$(id -u)" = 0 ] || not_run 'making a machine needs root'
if ! { command -v qemu-system-x86_64 && command -v mmdebstrap && command -v mke2fs; } >/dev/null; then
    command -v apt-get >/dev/null || not_run 'qemu-system-x86_64, mmdebstrap or mke2fs is missing'
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends qemu-system-x86 mmdebstrap e2fsprogs; } >/dev/null \
        || not_run 'qemu-system-x86 and mmdebstrap cannot be installed'
fi

# The machine: Debian with systemd and Python, and one task that is on the second disk.
mkdir -p "$cache"
cache=$(realpath "$cache")
if [ ! -e "$cache/base.img" ]; then
    root=$(mktemp -d "$cache/root.XXXXXX")
    mmdebstrap --quiet --variant=minbase \
        --include=systemd,systemd-sysv,udev,dbus,libpam-systemd,linux-image-cloud-amd64,initramfs-tools,python3,procps \
        "$release" "$root" || { rm -rf "$root"; not_run "Debian $release cannot be fetched"; }
    cat >"$root/etc/systemd/system/drill.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
ExecStartPre=mount --mkdir -o ro /dev/vdb /drill
ExecStart=python3 -u /drill/guest.py
StandardOutput=journal+console
StandardError=journal+console
UNIT
    mkdir -p "$root/etc/systemd/system/default.target.wants"
    ln -s ../drill.service "$root/etc/systemd/system/default.target.wants/drill.service"
    echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
    : >"$root/etc/machine-id"
    cp "$root"/boot/vmlinuz-* "$cache/vmlinuz"
    cp "$root"/boot/initrd.img-* "$cache/initrd"
    truncate -s 3G "$cache/base.img.new"
    mke2fs -q -t ext4 -d "$root" "$cache/base.img.new"
    rm -rf "$root"
    mv "$cache/base.img.new" "$cache/base.img"
fi

work=$(mktemp -d "$cache/run.XXXXXX")
machine=''
trap '[ -z "$machine" ] || kill "$machine" 2>/dev/null || true; rm -rf "$work"' EXIT
cp --sparse=always "$cache/base.img" "$work/disk.img"
mkdir "$work/drill"
cp "$here/guest.py" "$work/drill/"
cp "$gennaker" "$work/drill/gennaker"
cp "$it" "$work/drill/it"
strip "$work/drill/gennaker" "$work/drill/it" 2>/dev/null || true
echo "$gennaker" >"$work/drill/path"
truncate -s 1G "$work/drill.img"
mke2fs -q -t ext4 -d "$work/drill" "$work/drill.img"

# Starts the machine; its console becomes a file.
boot() {
    : >"$work/console"
    qemu-system-x86_64 -nodefaults -no-user-config -display none -smp 2 -m "$memory" "$@" \
        -kernel "$cache/vmlinuz" -initrd "$cache/initrd" -append 'root=/dev/vda rw console=ttyS0 panic=-1' \
        -drive "if=virtio,format=raw,file=$work/disk.img" -drive "if=virtio,format=raw,readonly=on,file=$work/drill.img" \
        -device virtio-rng-pci -serial "file:$work/console" >"$work/qemu" 2>&1 &
    machine=$!
}
# Hardware that is there need not work: a machine that has not come to its first program by then does not.
boots() {
    for _ in $(seq "$1"); do
        ! grep -q 'Run /init' "$work/console" || return 0
        ! grep -q 'KVM internal error' "$work/qemu" && kill -0 "$machine" 2>/dev/null || return 1
        sleep 1
    done
    return 1
}
how=hardware
boot -accel kvm -cpu host
if ! boots 30; then
    kill "$machine" 2>/dev/null || true
    wait "$machine" || true
    how='software, which is slow'
    boot -accel tcg,thread=multi,tb-size=256 -cpu max
    boots 300 || not_run "no machine starts here, neither with KVM nor without: $(tail -n 3 "$work/qemu" "$work/console")"
fi
echo "Debian $release in a machine of $how"

shown=0
while :; do
    lines=$(wc -l <"$work/console")
    [ "$lines" -le "$shown" ] || { sed -n "$((shown + 1)),${lines}p" "$work/console" | tr -d '\r' | grep -a 'drill: ' || true; }
    shown=$lines
    kill -0 "$machine" 2>/dev/null || break
    [ "$SECONDS" -lt "$deadline_s" ] || { echo "error: not done within $deadline_s s" >&2; break; }
    sleep 1
done
grep -qa 'drill: all passed' "$work/console" && exit 0
grep -a 'python3\[' "$work/console" | tail -n 150 >&2 || true
echo 'error: the drill failed' >&2
exit 1
