# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this file use these variables
# Settings of the build: versions, tools and directories. The scripts of this directory source it at the top of the checkout.

checkout=$PWD
cargo_home=${CARGO_HOME:-$HOME/.cargo}
target=${CARGO_TARGET_DIR:-$checkout/target}
# Cargo.toml contains these paths, so they do not depend on CARGO_TARGET_DIR.
stage=$checkout/target/package
packages=$checkout/target/packages
# Directory in which packaging/build.sh compiles, and in which debuggers search for the sources.
place=/usr/src

version=$(sed -n '0,/^version = /s/^version = "\(.*\)"$/\1/p' Cargo.toml)
revision=1
maintainer='Caxton maintainers <maintainers@caxton.example>'

declare -A triple_of=([amd64]=x86_64-unknown-linux-gnu [arm64]=aarch64-unknown-linux-gnu)
declare -A machine_of=([amd64]=x86_64 [arm64]=aarch64)
declare -A tools_of=([amd64]='' [arm64]=aarch64-linux-gnu-)

# The packages were checked with these versions; other versions may produce different bytes.
declare -A cargo_tools=([cargo-auditable]=0.7.7 [cargo-deb]=3.8.0 [cargo-cyclonedx]=0.5.9 [cargo-about]=0.9.3)

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C.UTF-8 CARGO_TERM_COLOR=never
export CARGO_TARGET_DIR=$target
export PATH=$target/tools/bin:$PATH
umask 022

fail() {
    printf '%s: %s\n' "$0" "$1" >&2
    exit 1
}

# Installs the Debian packages `$@` that are missing.
debian_tools() {
    local missing=() package
    for package in "$@"; do
        dpkg-query --show --showformat='${db:Status-Abbrev}\n' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
    fi
}
cross_tools_present() {
    [ -x /usr/bin/rustc ] && [ -d "/usr/lib/rustlib/${triple_of[arm64]}/lib" ] && command -v aarch64-linux-gnu-gcc >/dev/null
}
cross_tools() {
    if ! cross_tools_present; then
        dpkg --add-architecture arm64
        debian_tools rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu binutils-aarch64-linux-gnu libc6-dev-arm64-cross
    fi
}
# Installs a cargo tool. The tools run for seconds, so a short build matters more than their speed.
cargo_install() {
    local tool=$1 wanted=$2 features=()
    # Not every tool prints its version, so the version comes from cargo's own record.
    if ! grep -qs "^\"$tool $wanted " "$target/tools/.crates.toml"; then
        [ "$tool" != cargo-about ] || features=(--features cli)
        CARGO_TARGET_DIR=$target/tools/build CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
            CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=false \
            cargo install --locked --quiet --root "$target/tools" --version "$wanted" "$tool" "${features[@]}"
    fi
}
# Installs the tools for a build for the architectures `$@`.
tools() {
    local tool
    debian_tools rpm jq binutils gcc python3
    [[ " $* " != *' arm64 '* ]] || cross_tools
    for tool in "${!cargo_tools[@]}"; do
        cargo_install "$tool" "${cargo_tools[$tool]}"
    done
}
