#!/usr/bin/env bash
# Checks that target/packages can be reproduced from this commit: builds it again from a clone in another, deeper directory,
# with another cargo home, and compares every file. It takes a whole build of the profile dist for each architecture in
# target/packages.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/environment.sh

[ -s "$packages/SHA256SUMS" ] || fail "$packages/SHA256SUMS is missing: run packaging/build.sh first"
[ -z "$(git status --porcelain)" ] || fail 'the checkout has uncommitted changes, which a clone does not have: commit them first'

elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
clone=$elsewhere/some/other/place
git clone --quiet --no-hardlinks "$checkout" "$clone"
install -d "$elsewhere/cargo" "$clone/target/tools"
# The registry is copied, not linked: C compilers record the target of a link.
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
    fail "two builds of one commit differ in the files above; the second build is in $packages-elsewhere"
fi
printf 'the same, byte for byte: %s files\n' "$(wc -l <"$packages/SHA256SUMS")"
