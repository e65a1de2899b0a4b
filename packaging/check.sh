#!/usr/bin/env bash
# Checks the files of packaging/build.sh in target/packages against the statements of packaging/README.md. Prints one line
# for each check and stops at the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/environment.sh

# Limits in bytes, with bundled-mini: the documented 32 MB, and the size of the same files under zstd for Fedora.
largest_deb=32000000
largest_rpm=33000000

check() {
    local name=$1
    shift
    "$@" || fail "$subject: not so: $name"
    printf 'ok: %s: %s\n' "$subject" "$name"
}
# absent PATTERN FILE...: succeeds if no line matches.
absent() {
    ! grep -nE -- "$@" >&2
}
# only PATTERN FILE: succeeds if every line matches.
only() {
    ! grep -nvE -- "$@" >&2
}

hardened() {
    local headers dynamic
    headers=$(readelf --wide --file-header --program-headers "$1")
    dynamic=$(readelf --wide --dynamic "$1")
    check 'position-independent' grep -Eq 'Type: +DYN' <<<"$headers"
    check 'has an interpreter' grep -q ' INTERP ' <<<"$headers"
    check 'relocations become read-only' grep -q ' GNU_RELRO ' <<<"$headers"
    check 'stack is not executable' grep -Eq ' GNU_STACK .* RW ' <<<"$headers"
    check 'all is bound at start' grep -Eq 'BIND_NOW|Flags:.*NOW' <<<"$dynamic"
    check 'no text relocations, no search path' absent 'TEXTREL|RPATH|RUNPATH' <<<"$dynamic"
}
# Checks that the package requires the newest version of the C library that a symbol of a program requires.
library_floor() {
    local promised newest
    promised=$(sed -n 's/.*libc6 (>= \([0-9.]*\)).*/\1/p' "$1")
    shift
    newest=$(readelf --wide --version-info "$@" | grep -oE 'GLIBC_[0-9.]+' | sed 's/GLIBC_//' | sort -uV | tail -n 1)
    [ "$promised" = "$newest" ] || fail "libc6 (>= $promised) is promised, GLIBC_$newest is needed"
}
# Checks that a file contains no path of the machine that built it.
pathless() {
    local path
    for path in "$checkout" "$cargo_home" "$target"; do
        ! grep -aqF -- "$path" "$1" || fail "$1 has the path $path in it"
    done
}
program() {
    local file=$1 symbols=$2 id
    hardened "$file"
    check 'no path of the building machine' pathless "$file"
    check 'names its package' grep -q '"name":"caxton","version":"'"$version" <(readelf --wide --notes "$file")
    check 'lists its crates' grep -q '\.dep-v0' <(readelf --wide --section-headers "$file")
    check 'stripped' absent '\.(symtab|debug_(info|line))' <(readelf --wide --section-headers "$file")
    id=$(readelf --notes "$file" | sed -n 's/^ *Build ID: //p')
    check 'debug symbols are found by the build-id' test -s "$symbols/usr/lib/debug/.build-id/${id:0:2}/${id:2}.debug"
}

installed_paths=(
    usr/bin/caxton usr/bin/caxtond
    usr/lib/systemd/system/caxton.{service,socket,slice} usr/lib/systemd/system-preset/90-caxton.preset
    usr/lib/sysusers.d/caxton.conf usr/lib/tmpfiles.d/caxton.conf usr/lib/systemd/catalog/caxton.catalog
    etc/caxton/caxton.yaml
    usr/share/caxton/models/bundled-mini-1.0.0.model.tar.zst{,.sha256}
    usr/share/man/man1/caxton.1.gz usr/share/man/man8/caxtond.8.gz usr/share/man/man5/caxton{.yaml,-package}.5.gz
    usr/share/bash-completion/completions/caxton usr/share/fish/vendor_completions.d/caxton.fish
    usr/share/doc/caxton/{README.md,SECURITY.md,THIRD-PARTY.gz} usr/share/doc/caxton/examples/caxton.rules.yaml
    usr/share/doc/caxton/docs/{api,configuration,memory,models,operations,security}.md
)
contents() {
    local root=$1 path
    for path in "${installed_paths[@]}"; do
        [ -s "$root/$path" ] || fail "/$path is missing or empty"
    done
    (cd "$root/usr/share/caxton/models" && sha256sum --quiet --check ./*.sha256)
}
# Checks scriptlets: sysusers.d creates the accounts, the helpers of the init system start services, and no scriptlet uses
# a network.
scriptlets() {
    check 'scriptlets make no accounts' absent '\b(adduser|useradd|addgroup|groupadd)\b' "$@"
    check 'scriptlets call systemctl for daemon-reload alone' reload_alone "$@"
    check 'scriptlets ask no network' absent '\b(curl|wget|apt|apt-get|dnf|nc)\b|https?:' "$@"
}
reload_alone() {
    # The only other line is the message with the command for the administrator.
    ! grep -h systemctl "$@" | grep -Ev ' daemon-reload( |$)|then: systemctl restart caxton' >&2
}

debian() {
    local arch=$1 root=$work/deb symbols=$work/dbgsym
    local file=$packages/caxton_$version-${revision}_$arch.deb
    subject=$(basename "$file")
    rm -rf "$root" "$symbols"
    dpkg-deb --raw-extract "$file" "$root"
    dpkg-deb --extract "$packages/caxton-dbgsym_$version-${revision}_$arch.deb" "$symbols"
    check "at most $largest_deb bytes" test "$(stat -c %s "$file")" -le "$largest_deb"
    check 'has what it is to have' contents "$root"
    check 'zsh finds its completions' test -s "$root/usr/share/zsh/vendor-completions/_caxton"
    check 'all belongs to root' only '^[^ ]+ root/root ' <(dpkg-deb --contents "$file")
    check 'nothing is setuid, setgid or writable by others' test -z "$(find "$root" ! -type l -perm /6022)"
    check 'the one conffile is caxton.yaml' diff "$root/DEBIAN/conffiles" - <<</etc/caxton/caxton.yaml
    check 'md5sums hold' md5sums_hold "$root"
    check 'the C library asked for is the one needed' library_floor "$root/DEBIAN/control" "$root/usr/bin/caxton" "$root/usr/bin/caxtond"
    scriptlets "$root"/DEBIAN/{postinst,prerm,postrm}
    check 'the configuration is checked before the restart' checked_first "$root/DEBIAN/postinst"
    programs "$file" "$root" "$symbols"
    subject=$(basename "$file")
    check 'lintian finds nothing' lintian --info --display-info --pedantic --fail-on error,warning,info,pedantic "$file"
}
md5sums_hold() {
    (cd "$1" && md5sum --quiet --check DEBIAN/md5sums && [ "$(wc -l <DEBIAN/md5sums)" -eq "$(find usr -type f | wc -l)" ])
}
checked_first() {
    local checked restarted
    checked=$(grep -n 'problems=.*caxton check 2>&1' "$1" | cut -d : -f 1)
    restarted=$(grep -nE 'deb-systemd-invoke restart|mark-restart-system-units' "$1" | cut -d : -f 1)
    [ "$checked" -lt "$restarted" ]
}
programs() {
    local name
    for name in caxton caxtond; do
        subject="$(basename "$1") $name"
        program "$2/usr/bin/$name" "$3"
    done
}

rpm_package() {
    local machine=${machine_of[$1]} root=$work/rpm symbols=$work/debuginfo
    local file=$packages/caxton-$version-$revision.$machine.rpm
    subject=$(basename "$file")
    unpack_rpm "$file" "$root"
    unpack_rpm "$packages/caxton-debuginfo-$version-$revision.$machine.rpm" "$symbols"
    check 'digests hold' rpmkeys --checksig --nosignature "$file"
    check "at most $largest_rpm bytes" test "$(stat -c %s "$file")" -le "$largest_rpm"
    check 'has what it is to have' contents "$root"
    check 'zsh finds its completions' test -s "$root/usr/share/zsh/site-functions/_caxton"
    check 'all belongs to root' only '^root root$' <(query "$file" '[%{FILEUSERNAME} %{FILEGROUPNAME}\n]')
    check 'nothing is setuid, setgid or writable by others' test -z "$(find "$root" ! -type l -perm /6022)"
    check 'an edited caxton.yaml stays' grep -qx '/etc/caxton/caxton.yaml cn' <(query "$file" '[%{FILENAMES} %{FILEFLAGS:fflags}\n]')
    check 'has a changelog' test -n "$(query "$file" '[%{CHANGELOGTEXT}]')"
    check 'names no building machine' test "$(query "$file" '%{BUILDHOST}')" = reproducible
    query "$file" '%{POSTIN}\n%{PREUN}\n%{POSTUN}\n' >"$work/scriptlets"
    scriptlets "$work/scriptlets"
    check 'the configuration is checked before the restart' checked_first "$work/scriptlets"
    programs "$file" "$root" "$symbols"
    subject=$(basename "$file")
    check 'rpmlint finds nothing' rpm_lint "$file"
}
query() {
    rpm --query --package --nosignature --queryformat "$2" "$1"
}
unpack_rpm() {
    rm -rf "$2"
    install -d "$2"
    rpm2cpio "$1" | (cd "$2" && cpio --quiet --extract --make-directories --preserve-modification-time)
}
rpm_lint() {
    local found
    found=$(rpmlint --strict --config packaging/rpm/rpmlint.toml "$1" 2>&1) || { printf '%s\n' "$found" >&2; return 1; }
}

# Checks the packages of packaging/model.sh with a model of random weights, because this repository has no optional model,
# and those in target/packages, if there are any. Uses the program of the package for this machine.
model_packages() {
    local models=$work/models file=$work/models/multilingual-1.0.0.model.tar.zst output deb
    install -d "$models"
    dpkg-deb --fsys-tarfile "$packages/caxton_$version-${revision}_amd64.deb" |
        tar --extract --directory "$models" --strip-components 3 ./usr/bin/caxton
    "$models/caxton" model pack --source tests/golden/tiny-xlm-roberta --model-id multilingual \
        --model-version 1.0.0 --license Apache-2.0 --precision int8 --output "$file" >/dev/null
    (cd "$models" && sha256sum "$(basename "$file")" >"$file.sha256")
    for output in first second; do
        packaging/model.sh multilingual "$file" packaging/debian/copyright "$models/$output" >/dev/null
    done
    subject='packages of a model'
    check 'two builds give the same bytes' diff --recursive "$models/first" "$models/second"
    for deb in "$models"/first/*.deb "$packages"/caxton-model-*.deb; do
        [ ! -e "$deb" ] || model_package "$deb"
    done
    subject='packages of a model'
    sed -i 's/^./x/' "$file.sha256"
    check 'a wrong digest is refused' refused packaging/model.sh multilingual "$file" packaging/debian/copyright "$models/third"
}
refused() {
    ! "$@" >/dev/null 2>&1
}
model_package() {
    local deb=$1 rpm root=$work/model-deb other=$work/model-rpm model
    subject=$(basename "$deb" _all.deb)
    rpm=$(dirname "$deb")/${subject/_/-}.noarch.rpm
    subject=$(basename "$deb")
    rm -rf "$root"
    dpkg-deb --raw-extract "$deb" "$root"
    unpack_rpm "$rpm" "$other"
    model=$(echo "$root"/usr/share/caxton/models/*.model.tar.zst)
    check 'its digest holds' model_digest_holds "$model"
    check 'the model passes its self-test' "$work/models/caxton" model verify "$model"
    check 'needs this version of Caxton' grep -qx "Depends: caxton (>= $version)" "$root/DEBIAN/control"
    check 'has no scriptlets' diff <(ls "$root/DEBIAN") - <<<$'control\nmd5sums'
    check 'all belongs to root' only '^[^ ]+ root/root ' <(dpkg-deb --contents "$deb")
    check 'md5sums hold' md5sums_hold "$root"
    check 'lintian finds nothing' lintian --info --display-info --pedantic --fail-on error,warning,info,pedantic "$deb"
    subject=$(basename "$rpm")
    check 'has the same files' diff --recursive "$root/usr/share/caxton" "$other/usr/share/caxton"
    check 'has the licence' test -s "$(echo "$other"/usr/share/licenses/caxton-model-*/copyright)"
    check 'needs this version of Caxton' grep -qx "caxton >= $version" <(rpm --query --package --requires "$rpm")
    check 'has no scriptlets' test -z "$(rpm --query --package --scripts "$rpm")"
    check 'names no building machine' test "$(query "$rpm" '%{BUILDHOST}')" = reproducible
    check 'rpmlint finds nothing' rpm_lint "$rpm"
}
model_digest_holds() {
    (cd "$(dirname "$1")" && sha256sum --quiet --check "$(basename "$1").sha256")
}

bill_of_materials() {
    subject=caxton_$version-${revision}_$1.cdx.json
    check 'is CycloneDX, with more than a hundred crates' \
        grep -qx true <(jq '.bomFormat == "CycloneDX" and (.components | length > 100)' "$packages/$subject")
    check 'no path of the building machine' pathless "$packages/$subject"
}
digests_hold() {
    (cd "$packages" && sha256sum --quiet --check SHA256SUMS)
}

debian_tools lintian rpmlint rpm cpio binutils jq
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
subject=SHA256SUMS
check 'digests hold' digests_hold
check 'everything has a digest' test "$(wc -l <"$packages/SHA256SUMS")" -eq "$(find "$packages" -type f ! -name SHA256SUMS | wc -l)"
for arch in amd64 arm64; do
    if [ -e "$packages/caxton_$version-${revision}_$arch.deb" ]; then
        bill_of_materials "$arch"
        debian "$arch"
        rpm_package "$arch"
    fi
done
# The program of the other architecture does not run here.
if [ -e "$packages/caxton_$version-${revision}_amd64.deb" ]; then
    model_packages
fi
