#!/usr/bin/env bash
# Proves that target/dist is what anybody gets from this commit: builds it again from a clone that lies elsewhere, deeper,
# with another cargo home, and compares every file. Takes a whole release build for each architecture in target/dist.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/environment.sh

[ -s "$dist/SHA256SUMS" ] || fail "$dist/SHA256SUMS is missing: run packaging/build.sh first"
[ -z "$(git status --porcelain)" ] || fail 'there are changes that no commit has: what was built from them cannot be cloned'

elsewhere=$(mktemp -d)
trap 'rm -rf "$elsewhere"' EXIT
clone=$elsewhere/some/other/place
git clone --quiet --no-hardlinks "$checkout" "$clone"
install -d "$elsewhere/cargo" "$clone/target/tools"
ln -s "$cargo_home/registry" "$elsewhere/cargo/registry"
cp -R "$target/tools"/{bin,.crates.toml,.crates2.json} "$clone/target/tools"
for arch in amd64 arm64; do
    if [ -e "$dist/caxton_$version-${revision}_$arch.deb" ]; then
        env --unset CARGO_TARGET_DIR CARGO_HOME="$elsewhere/cargo" CARGO_NET_OFFLINE=true \
            "$clone/packaging/build.sh" --arch "$arch"
    fi
done
diff "$dist/SHA256SUMS" "$clone/target/dist/SHA256SUMS" || fail 'two builds of one commit differ in what is listed above'
printf 'the same, byte for byte: %s files\n' "$(wc -l <"$dist/SHA256SUMS")"
