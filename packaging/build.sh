#!/usr/bin/env bash
# Builds the published files in target/packages: packages for Debian and for Fedora, their debug symbols, the bill of
# materials, the packages of optional models, and SHA256SUMS. Both packages of an architecture come from one build. The
# same commit gives the same bytes in every location of the checkout; packaging/reproducible.sh checks it. Runs on an
# x86-64 Debian machine with cargo.
#
#   packaging/build.sh [--arch amd64|arm64|all] [--programs]
#
# Without --arch, it builds amd64, and also arm64 if the cross compilers are installed. --programs stops after compilation.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/environment.sh

usage() {
    sed -n 's/^#   //p' "$0" >&2
    exit 64
}

# in_place ARGUMENT...: runs this script with these arguments in a mount namespace in which checkout, cargo home and target
# directory have the same paths on every machine. No compiler option removes every path from the output: the names of
# cargo's files and of rustc's symbols depend on the flags, on the paths of the tools and on the output of build scripts.
in_place() {
    local mounts user=() status=0
    [ "$(id -u)" = 0 ] || user=(--map-root-user)
    unshare --mount "${user[@]}" true ||
        fail 'no mount namespace: allow one here (in a container, CAP_SYS_ADMIN), or the packages would depend on paths'
    mkdir -p "$target"
    mounts=$(mktemp -d)
    # shellcheck disable=SC2016  # the inner shell expands the variables
    unshare --mount "${user[@]}" bash -euc '
        mounts=$1 place=$2
        mount -t tmpfs -o mode=755 caxton "$mounts"
        mkdir "$mounts"/{caxton,cargo,target}
        mount --bind "$3" "$mounts/caxton"
        mount --bind "$4" "$mounts/cargo"
        mount --bind "$5" "$mounts/target"
        mount --rbind "$mounts" "$place"
        shift 5
        export CARGO_HOME=$place/cargo CARGO_TARGET_DIR=$place/target
        exec "$place/caxton/packaging/build.sh" "$@"
    ' - "$mounts" "$place" "$checkout" "$cargo_home" "$target" "$@" || status=$?
    rmdir "$mounts"
    return "$status"
}

# Compiles the programs of one architecture. The output is the same on every machine: `in_place` fixes the paths, and all
# timestamps are those of the commit.
compile() {
    local arch=$1 triple=${triple_of[$1]} rust_flags
    # By default, rustc sets PIE, RELRO, BIND_NOW and a non-executable stack; packaging/check.sh checks these.
    rust_flags=(
        # The names of functions include their parameters, by which tests/kernels/cycles.py distinguishes kernels.
        -C symbol-mangling-version=v0
        -C 'link-arg=-Wl,--build-id=sha1'
        # Names the package in a core dump: https://uapi-group.org/specifications/specs/package_metadata_for_executable_files/
        -C 'link-arg=-Xlinker' -C "link-arg=--package-metadata=$(note "$arch")"
    )
    local -x CARGO_ENCODED_RUSTFLAGS
    CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && printf '%s' "${rust_flags[*]}")
    local -x "CFLAGS_${triple//-/_}=-fstack-protector-strong -D_FORTIFY_SOURCE=2"
    if [ "$arch" = arm64 ]; then
        # Debian's compiler is used because Debian has its standard library for both architectures.
        local -x RUSTC=/usr/bin/rustc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
        local -x CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    fi
    # cargo auditable adds the list of crates to the programs for vulnerability scanners.
    cargo auditable build --locked --profile dist --bins --target "$triple"
}
note() {
    printf '{"type":"caxton","name":"caxton","version":"%s","architecture":"%s"}' "$version" "${machine_of[$1]}"
}

# Lays out in $1 the files that all packages contain. This function is the only list of the installed files.
lay_out() {
    local root=$1 arch=$2 share=$1/usr/share doc=$1/usr/share/doc/caxton
    rm -rf "$root"
    put 755 "$root/usr/bin" "$stage/$arch/caxtond" "$stage/$arch/caxton"
    put 644 "$root/usr/lib/systemd/system" packaging/systemd/caxton.{service,socket,slice}
    put 644 "$root/usr/lib/systemd/system-preset" packaging/preset/90-caxton.preset
    put 644 "$root/usr/lib/sysusers.d" packaging/sysusers.d/caxton.conf
    put 644 "$root/usr/lib/tmpfiles.d" packaging/tmpfiles.d/caxton.conf
    put 644 "$root/usr/lib/systemd/catalog" packaging/journal/caxton.catalog
    put 644 "$root/etc/caxton" etc/caxton/caxton.yaml
    put 644 "$share/caxton/models" bundled-models/bundled-mini-*.model.tar.zst{,.sha256}
    put 644 "$share/man/man1" packaging/man/*.1
    put 644 "$share/man/man5" packaging/man/*.5
    put 644 "$share/man/man8" packaging/man/*.8
    gzip -9n "$share"/man/man?/*
    install -D -m 644 packaging/completions/caxton.bash "$share/bash-completion/completions/caxton"
    put 644 "$share/fish/vendor_completions.d" packaging/completions/caxton.fish
    put 644 "$doc" README.md SECURITY.md "$stage/THIRD-PARTY"
    put 644 "$doc/docs" docs/*.md
    put 644 "$doc/examples" packaging/prometheus/caxton.rules.yaml packaging/systemd/examples/*
    gzip -9n "$doc/THIRD-PARTY"
}
put() {
    local mode=$1 directory=$2
    shift 2
    install -d "$directory"
    install -m "$mode" -t "$directory" "$@"
}

# Splits off the debug symbols: the programs go to `$stage/$arch`, the symbols for debuggers to `$stage/$arch/debug`.
split() {
    local arch=$1 prefix=${tools_of[$1]} program built id file
    rm -rf "${stage:?}/$arch"
    install -d "$stage/$arch"
    for program in caxtond caxton; do
        built=$target/${triple_of[$arch]}/dist/$program
        id=$(build_id "$built")
        file=$stage/$arch/debug/usr/lib/debug/.build-id/${id:0:2}/${id:2}.debug
        install -d "$(dirname "$file")"
        "${prefix}objcopy" --only-keep-debug --compress-debug-sections=zlib "$built" "$file"
        chmod 644 "$file"
        "${prefix}objcopy" --strip-unneeded --remove-section=.comment --add-gnu-debuglink="$file" "$built" "$stage/$arch/$program"
    done
}
build_id() {
    local id
    id=$(readelf --notes "$1" | sed -n 's/^ *Build ID: //p')
    [ -n "$id" ] || fail "$1 has no build-id"
    printf '%s\n' "$id"
}

debian_package() {
    local arch=$1 package=$packages/caxton_$version-${revision}_$1.deb root=$stage/root unpacked=$stage/deb
    lay_out "$root" "$arch"
    put 644 "$root/usr/share/zsh/vendor-completions" packaging/completions/_caxton
    install -D -m 644 packaging/debian/lintian-overrides "$root/usr/share/lintian/overrides/caxton"
    gzip -9nc CHANGELOG.md >"$root/usr/share/doc/caxton/changelog.gz"
    packaging/changelog debian "$version-$revision" >"$stage/changelog.Debian"
    # The slice is added after cargo-deb, which would add scriptlets that start and stop it like a service.
    rm "$root/usr/lib/systemd/system/caxton.slice"
    cargo deb --locked --quiet --no-build --no-strip --no-separate-debug-symbols --target "${triple_of[$arch]}" \
        --fast --deb-revision "$revision" --output "$stage/plain.deb" >/dev/null
    rm -rf "$unpacked"
    dpkg-deb --raw-extract "$stage/plain.deb" "$unpacked"
    put 644 "$unpacked/usr/lib/systemd/system" packaging/systemd/caxton.slice
    # cargo-deb creates no md5sums, which `dpkg --verify` needs.
    (cd "$unpacked" && find usr -type f | sort | xargs -d '\n' md5sum >DEBIAN/md5sums)
    pack "$unpacked" "$package" xz
    debian_symbols "$arch"
}
debian_symbols() {
    local arch=$1 root=$stage/$1/debug package=$packages/caxton-dbgsym_$version-${revision}_$1.deb ids
    ids=$(cd "$root/usr/lib/debug/.build-id" && find . -name '*.debug' | sed 's|[./]||g; s|debug$||' | sort | paste -sd ' ')
    rm -rf "$stage/dbgsym"
    cp -r "$root" "$stage/dbgsym"
    install -d "$stage/dbgsym/DEBIAN" "$stage/dbgsym/usr/share/doc"
    ln -s caxton "$stage/dbgsym/usr/share/doc/caxton-dbgsym"
    cat >"$stage/dbgsym/DEBIAN/control" <<END
Package: caxton-dbgsym
Source: caxton
Version: $version-$revision
Auto-Built-Package: debug-symbols
Architecture: $arch
Maintainer: $maintainer
Installed-Size: $(du -k --summarize --apparent-size "$root" | cut -f 1)
Depends: caxton (= $version-$revision)
Section: debug
Priority: optional
Description: debug symbols for caxton
Build-Ids: $ids
END
    (cd "$stage/dbgsym" && find usr -type f | sort | xargs -d '\n' md5sum >DEBIAN/md5sums)
    # The sections are compressed already.
    pack "$stage/dbgsym" "$package" none
}
pack() {
    dpkg-deb --root-owner-group -Z"$3" --build "$1" "$2.part" >/dev/null
    mv "$2.part" "$2"
}

rpm_packages() {
    local arch=$1 machine=${machine_of[$1]} root=$stage/root top=$stage/rpm
    rm -rf "$top"
    lay_out "$root" "$arch"
    put 644 "$root/usr/share/zsh/site-functions" packaging/completions/_caxton
    put 644 "$root/usr/share/licenses/caxton" LICENSE
    put 644 "$root/usr/share/doc/caxton" CHANGELOG.md
    cp -r "$stage/$arch/debug/usr/lib/debug" "$root/usr/lib/debug"
    install -d "$top"
    { cat packaging/rpm/caxton.spec && packaging/changelog rpm "$version-$revision"; } >"$top/caxton.spec"
    # The header of an .rpm contains the time and the host of the build: the time is that of the commit, the host a constant.
    rpmbuild -bb --quiet --target "$machine-linux" --define "_topdir $top" --define "_rpmdir $top" \
        --define "caxton_version $version" --define "caxton_release $revision" --define "caxton_root $root" \
        --define "caxton_packager $maintainer" --define "caxton_license $(licenses)" \
        --define '_buildhost reproducible' --define 'use_source_date_epoch_as_buildtime 1' \
        --define 'clamp_mtime_to_source_date_epoch 1' --define '_binary_payload w19.zstdio' \
        --define '_build_id_links none' --define 'debug_package %{nil}' --define '__os_install_post %{nil}' \
        "$top/caxton.spec"
    mv "$top/$machine"/*.rpm "$packages"
}
# Prints the licences of all linked crates as one SPDX expression.
licenses() {
    jq --raw-output '[.licenses[].id] + ["Apache-2.0"] | unique | join(" AND ")' "$stage/third-party.json"
}
third_party() {
    cargo fetch --locked --quiet
    # cargo-about reads the texts of all crates, which takes a minute, so it runs only once: jq formats its output.
    cargo about generate --frozen --fail --config packaging/about.toml --format json \
        --output-file "$stage/third-party.json"
    jq --raw-output --from-file packaging/third-party.jq "$stage/third-party.json" >"$stage/THIRD-PARTY"
}

# Builds the package of each optional model: bundled-models/NAME.copyright belongs to NAME-VERSION.model.tar.zst.
model_packages() {
    local copyright name
    for copyright in bundled-models/*.copyright; do
        [ -e "$copyright" ] || continue
        name=$(basename "$copyright" .copyright)
        packaging/model.sh "$name" "bundled-models/$name"-[0-9]*.model.tar.zst "$copyright" "$packages"
    done
}

bill_of_materials() {
    local arch=$1
    cargo cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps --target "${triple_of[$arch]}" \
        --override-filename caxton.cdx
    mv caxton.cdx.json "$packages/caxton_$version-${revision}_$arch.cdx.json"
}

main() {
    local wanted='' programs_only=false arch arguments=("$@")
    while [ $# -gt 0 ]; do
        case $1 in
            --arch) wanted=${2:?--arch amd64, arm64 or all}; shift ;;
            --programs) programs_only=true ;;
            *) usage ;;
        esac
        shift
    done
    case $wanted in
        amd64 | arm64) wanted=("$wanted") ;;
        all) wanted=(amd64 arm64) ;;
        '') wanted=(amd64); cross_tools_present && wanted+=(arm64) ;;
        *) usage ;;
    esac
    tools "${wanted[@]}"
    if [ "$checkout $cargo_home $target" != "$place/caxton $place/cargo $place/target" ]; then
        in_place "${arguments[@]}"
        return
    fi
    for arch in "${wanted[@]}"; do
        compile "$arch"
    done
    if $programs_only; then
        return
    fi
    install -d "$packages" "$stage"
    third_party
    for arch in "${wanted[@]}"; do
        bill_of_materials "$arch"
        split "$arch"
        debian_package "$arch"
        rpm_packages "$arch"
    done
    model_packages
    (cd "$packages" && rm -f SHA256SUMS && sha256sum -- * >SHA256SUMS.part && mv SHA256SUMS.part SHA256SUMS)
    ls -l "$packages"
}
main "$@"
