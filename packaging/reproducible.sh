#!/usr/bin/env bash
# Proves that target/packages is what anybody gets from this commit: builds it again from a clone that lies elsewhere, deeper,
# with another cargo home, and compares every file. Takes a whole build of the profile dist for each architecture in target/packages.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/environment.sh

[ -s "$packages/SHA256SUMS" ] || fail "$packages/SHA256SUMS is missing: run packaging/build.sh first"
[ -z "$(git status --porcelain)" ] || fail 'there are changes that no commit has: what was built from them cannot be cloned'

elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
clone=$elsewhere/some/other/place
git clone --quiet --no-hardlinks "$checkout" "$clone"
install -d "$elsewhere/cargo" "$clone/target/tools"
# Copied: compilers of C write down where a link leads to.
cp -R "$cargo_home/registry" "$elsewhere/cargo"
cp -R "$target/tools"/{bin,.crates.toml,.crates2.json} "$clone/target/tools"
for arch in amd64 arm64; do
    if [ -e "$packages/caxton_$version-${revision}_$arch.deb" ]; then
        env --unset CARGO_TARGET_DIR CARGO_HOME="$elsewhere/cargo" CARGO_NET_OFFLINE=true \
            "$clone/packaging/build.sh" --arch "$arch"
    fi
done
if ! diff "$packages/SHA256SUMS" "$clone/target/packages/SHA256SUMS"; then
    rm -rf "$packages-elsewhere"
    mv "$clone/target/packages" "$packages-elsewhere"
    fail "two builds of one commit differ in what is listed above; the other is in $packages-elsewhere"
fi
printf 'the same, byte for byte: %s files\n' "$(wc -l <"$packages/SHA256SUMS")"
