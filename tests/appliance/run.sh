#!/usr/bin/env bash
# Tests the packages of target/packages on a whole machine: systemd, control groups, dpkg and rpm in a virtual machine.
# Usage: tests/appliance/run.sh [CHECK...]   all checks, or the named ones and those that they require
# Prints one line for each check. Exits with 1 if a check failed or none ran. See tests/appliance/README.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
work=$target/appliance
# packaging/build.sh always writes to this directory, also when CARGO_TARGET_DIR is set.
packages=${APPLIANCE_PACKAGES:-$root/target/packages}
# Seconds of the check under a memory limit, kills and resets during an installation, and seconds for the whole test.
pressure_seconds=${APPLIANCE_PRESSURE_SECONDS:-60}
kills=${APPLIANCE_KILLS:-17}
resets=${APPLIANCE_RESETS:-3}
longest=${APPLIANCE_SECONDS:-2400}
# yes: the checks that take a minute or more run too.
slow_too=${APPLIANCE_SLOW:-yes}

fail() {
    echo "tests/appliance/run.sh: $*" >&2
    exit 1
}

# only_file PATTERN: prints the only file that matches; fails unless there is exactly one.
only_file() {
    local found
    mapfile -t found < <(compgen -G "$1" || true)
    [ ${#found[@]} = 1 ] || fail "${#found[@]} files match $1; packaging/build.sh makes it"
    echo "${found[0]}"
}

# Builds a later version of the package, which differs only in its number and its configuration.
make_newer() {
    local deb=$1 output=$2 tree=$work/newer version
    rm -rf "$tree"
    dpkg-deb --raw-extract "$deb" "$tree"
    version=$(sed -n 's/^Version: //p' "$tree/DEBIAN/control")
    sed -i "s/^Version: .*/Version: $version+newer/" "$tree/DEBIAN/control"
    echo '# of the newer version' >>"$tree/etc/caxton/caxton.yaml"
    (cd "$tree" && find . -type f -not -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z |
        xargs -0 md5sum >DEBIAN/md5sums)
    dpkg-deb --root-owner-group -Zzstd -z1 --build "$tree" "$output/caxton_${version}+newer_amd64.deb" >/dev/null
    rm -rf "$tree"
}

# Builds, with the caxton of the package, the models that checks copy to the drop directory.
make_models() {
    local caxton=$1 output=$2 weights=${CAXTON_MODELS:-} name
    weights=${weights:+$weights/all-MiniLM-L6-v2}
    [ -n "$weights" ] || weights=$("$root/bundled-models/fetch")
    pack() { "$caxton" model pack --source "$1" --model-id "$2" "${@:3}" --output "$output/$2.model.tar.zst" >/dev/null; }
    pack "$root/tests/golden/tiny-bert-mean" small
    pack "$root/tests/golden/tiny-bert-cls" other
    pack "$weights" medium --original all-MiniLM-L6-v2 --precision int8
    for name in large-a large-b large-c large-d; do
        pack "$weights" "$name" --original all-MiniLM-L6-v2 --precision f32
    done
}

# Builds, with the caxton of the package, the package of an optional model.
make_optional_package() {
    local caxton=$1 output=$2 model=$work/optional/multilingual-1.0.0.model.tar.zst
    rm -rf "$work/optional"
    mkdir "$work/optional"
    "$caxton" model pack --source "$root/tests/golden/tiny-xlm-roberta" --model-id multilingual --model-version 1.0.0 \
        --license Apache-2.0 --output "$model" >/dev/null
    (cd "$work/optional" && sha256sum "$(basename "$model")" >"$model.sha256")
    "$root/packaging/model.sh" multilingual "$model" "$root/packaging/debian/copyright" "$output" >/dev/null
    rm -r "$work/optional"
}

# Creates the second disk, with the packages, the models and the checks.
make_payload() {
    local deb=$1 rpm=$2 tree=$work/payload
    rm -rf "$tree"
    mkdir -p "$tree"/{packages,newer,models,golden}
    cp "$deb" "$rpm" "$tree/packages/"
    cp -R "$here"/{guest.sh,lib.sh,checks} "$here"/*.py "$tree/"
    cp "$root/tests/golden/texts_real.jsonl" "$root/tests/golden/all-MiniLM-L6-v2/reference.safetensors" \
        "$tree/golden/"
    make_newer "$deb" "$tree/newer"
    dpkg-deb --fsys-tarfile "$deb" | tar -C "$work" --strip-components=3 -xf - ./usr/bin/caxton
    make_models "$work/caxton" "$tree/models"
    make_optional_package "$work/caxton" "$tree/optional"
    {
        echo "pressure_seconds=$pressure_seconds kills=$kills resets=$resets slow_too=$slow_too"
        echo "deadline=$(($(date +%s) + longest))"
        printf 'only=(%s)\n' "${only[*]}"
    } >"$tree/parameters"
    rm -f "$work/payload.img"
    truncate -s 1G "$work/payload.img"
    mkfs.ext4 -q -F -O ^has_journal -E root_owner=0:0 -d "$tree" "$work/payload.img"
    rm -rf "$tree" "$work/caxton"
}

# Starts the machine and prints its results as they arrive. The machine is emulated, so that it behaves the same on hosts
# with and without virtualisation. Its processor has no AVX: QEMU emulates a fused multiplication by a function call for
# each number, which makes a model ten times slower. The kernel does not check its timer, because that check fails on a
# busy host. Flushed data must survive a reset of the machine, but not of the host, so flushes do not reach the host's disk.
boot() {
    local image=$1
    truncate -s 0 "$work/results" "$work/console.log"
    truncate -s 64M "$work/kept.img"
    # The guest ends by itself before this timeout, except when it hangs during its start.
    timeout --kill-after=10 $((longest + 120)) qemu-system-x86_64 -nodefaults -accel tcg,thread=multi -cpu Westmere -smp 2 \
        -m 2G -display none -kernel "$image/vmlinuz" -initrd "$image/initrd.img" \
        -append 'root=/dev/vda rw console=ttyS0 psi=1 panic=10 no_timer_check' \
        -drive "file=$image/disk.img,if=virtio,format=raw,snapshot=on,cache=unsafe" \
        -drive "file=$work/payload.img,if=virtio,format=raw,readonly=on" \
        -drive "file=$work/kept.img,if=virtio,format=raw,cache=unsafe" \
        -serial "file:$work/console.log" -serial "file:$work/results" &
    local machine=$!
    tail --follow --lines=+1 --pid="$machine" --sleep-interval=1 "$work/results" | sed -u '/^end$/d'
    wait "$machine" || echo "the machine ended with $?; see $work/console.log" >&2
    rm -rf "$work/log"
    mkdir -p "$work/log"
    tar -C "$work/log" -xf "$work/kept.img" || echo "the machine kept no logs; see $work/console.log" >&2
    rm -f "$work/kept.img"
}

count() {
    grep -c "^$1 " "$work/results" || true
}

main() {
    local deb rpm image
    deb=$(only_file "$packages/caxton_*_amd64.deb")
    rpm=$(only_file "$packages/caxton-[0-9]*.x86_64.rpm")
    mkdir -p "$work"
    image=$("$here/image.sh" "$work")
    echo "image: $SECONDS s"
    make_payload "$deb" "$rpm"
    echo "image and second disk: $SECONDS s"
    boot "$image"
    echo "everything: $SECONDS s; logs in $work/log, the console in $work/console.log"
    local passed failed skipped
    passed=$(count pass) failed=$(count fail) skipped=$(count skip)
    # A machine that stopped before the last check counts as a failure.
    grep -qx end "$work/results" || failed=$((failed + 1))
    echo "$passed passed, $failed failed, $skipped skipped"
    ((failed == 0 && passed > 0))
}

only=("$@")
main
