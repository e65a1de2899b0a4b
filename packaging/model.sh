#!/usr/bin/env bash
# Builds caxton-model-NAME, the package of an optional bundled model, for Debian and for Fedora. It has no programs, so that
# it fits every architecture. The same commit gives the same bytes. Runs on a Debian machine.
#
#   packaging/model.sh NAME MODEL COPYRIGHT DIRECTORY
#
# NAME is the end of the package's name, such as multilingual. MODEL is a package of `caxton model pack`, with its digest in
# the .sha256 file of the same name. COPYRIGHT is a file in Debian's format for copyright files, with the text of the model's
# licence. The packages are created in DIRECTORY.
set -euo pipefail
cd "$(dirname "$0")/.."
. packaging/environment.sh

[ $# = 4 ] || { sed -n 's/^#   //p' "$0" >&2; exit 64; }
name=caxton-model-$1 model=$2 copyright=$3 output=$4
[[ $1 =~ ^[a-z][a-z0-9-]+$ ]] || fail "the name $1 has other characters than a-z, 0-9 and -"
[ -s "$copyright" ] || fail "$copyright is missing or empty"
debian_tools rpm jq zstd

manifest=$(tar --zstd --extract --to-stdout --file "$model" manifest.json) || fail "$model is not a package of a model"
# fact FIELD: prints a field of the manifest, and fails if the model does not state it.
fact() {
    jq --exit-status --raw-output ".$1 // empty" <<<"$manifest" || fail "$model does not state its $1"
}
id=$(fact id)
model_version=$(fact version)
license=$(fact license)
# `caxton model pack` writes this for an unknown licence.
[ "$license" != NOASSERTION ] || fail "$model does not state its license"
# The default model is part of the package caxton. Two packages cannot contain the same id.
[ "$id" != bundled-mini ] || fail "$model has the id of the default model"
[[ $model_version =~ ^[0-9][0-9A-Za-z.]*$ ]] || fail "the version $model_version does not suit dpkg and rpm: use digits and dots"
(cd "$(dirname "$model")" && sha256sum --quiet --check "$(basename "$model").sha256") ||
    fail "$model does not have the digest in $model.sha256"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
summary="Model $id for the embeddings of Caxton"

# Lays out in $1 the files that both packages contain.
lay_out() {
    install -d "$1/usr/share/caxton/models"
    install -m 644 -t "$1/usr/share/caxton/models" "$model" "$model.sha256"
}

debian_package() {
    local root=$work/deb package=$output/${name}_$model_version-${revision}_all.deb
    local doc=$root/usr/share/doc/$name
    lay_out "$root"
    install -D -m 644 "$copyright" "$doc/copyright"
    cat >"$work/changelog" <<END
$name ($model_version-$revision) unstable; urgency=medium

  * Model $id, version $model_version.

 -- $maintainer  $(date --date="@$SOURCE_DATE_EPOCH" --rfc-email)
END
    gzip -9nc "$work/changelog" >"$doc/changelog.Debian.gz"
    install -d "$root/usr/share/lintian/overrides"
    cat >"$root/usr/share/lintian/overrides/$name" <<END
# The package is not uploaded to Debian, so there is no "intent to package" bug that it could close.
$name: initial-upload-closes-no-bugs
END
    chmod 644 "$doc/changelog.Debian.gz" "$root/usr/share/lintian/overrides/$name"
    install -d "$root/DEBIAN"
    cat >"$root/DEBIAN/control" <<END
Package: $name
Version: $model_version-$revision
Architecture: all
Maintainer: $maintainer
Installed-Size: $(du -k --summarize --apparent-size "$root/usr" | cut -f 1)
Depends: caxton (>= $version)
Section: utils
Priority: optional
Description: $summary
 Caxton installs this model by itself, beside its default model, and needs no
 network for it. Requests select the model by this id.
END
    (cd "$root" && find usr -type f | sort | xargs -d '\n' md5sum >DEBIAN/md5sums)
    # The model is compressed already, so the fastest method is enough.
    dpkg-deb --root-owner-group -Zgzip -z1 --build "$root" "$package.part" >/dev/null
    mv "$package.part" "$package"
}

rpm_package() {
    local root=$work/rpm top=$work/top
    lay_out "$root"
    install -D -m 644 "$copyright" "$root/usr/share/licenses/$name/copyright"
    install -d "$top"
    {
        cat packaging/rpm/caxton-model.spec
        printf '* %s %s - %s\n' "$(date --date="@$SOURCE_DATE_EPOCH" '+%a %b %d %Y')" "$maintainer" "$model_version-$revision"
        printf -- '- Model %s, version %s\n' "$id" "$model_version"
    } >"$top/$name.spec"
    # The header of an .rpm contains the time and the host of the build: the time is that of the commit, the host a constant.
    rpmbuild -bb --quiet --target noarch --define "_topdir $top" --define "_rpmdir $top" \
        --define "model_name $name" --define "model_version $model_version" --define "model_release $revision" \
        --define "model_root $root" --define "model_license $license" \
        --define "model_summary $summary" --define "caxton_packager $maintainer" --define "caxton_version $version" \
        --define '_buildhost reproducible' --define 'use_source_date_epoch_as_buildtime 1' \
        --define 'clamp_mtime_to_source_date_epoch 1' --define '_binary_payload w0.ufdio' --define '__os_install_post %{nil}' \
        "$top/$name.spec"
    mv "$top"/noarch/*.rpm "$output"
}

install -d "$output"
debian_package
rpm_package
