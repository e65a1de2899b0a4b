# shellcheck shell=bash disable=SC2154
# Checks the .rpm in a second root: an overlay of this machine's root, with its changes in memory.

root=/run/second-root

rpm_in() {
    rpm --root "$root" "$@"
}

check rpm_installs_in_another_root 540
rpm_installs_in_another_root() {
    modprobe overlay || grep -qw overlay /proc/filesystems || skip 'this kernel has no overlay file system'
    mkdir -p "$root" /run/second-changes
    mount -t tmpfs -o size=1G tmpfs /run/second-changes
    mkdir /run/second-changes/upper /run/second-changes/work
    mount -t overlay -o lowerdir=/,upperdir=/run/second-changes/upper,workdir=/run/second-changes/work overlay "$root"
    rpm_in --initdb
    # The dependencies are installed, but dpkg manages them, and rpm does not know them.
    rpm_in --install --nodeps "$payload"/packages/caxton-*.rpm 2>&1 | tee "$state/said"
    equal 'errors of rpm' '' "$(grep -iE 'fail|error|warning: %' "$state/said" || true)"
    equal 'output of rpm --verify' '' "$(rpm_in --verify --nodeps caxton)"
    local file
    for file in /usr/bin/caxton /usr/bin/caxtond /usr/lib/systemd/system/caxton.{service,socket,slice} \
        /usr/lib/sysusers.d/caxton.conf /usr/lib/tmpfiles.d/caxton.conf /usr/lib/systemd/catalog/caxton.catalog \
        /etc/caxton/caxton.yaml /usr/share/caxton/models/bundled-mini-1.0.0.model.tar.zst; do
        [ -s "$root$file" ] || fail "there is no $file"
        equal "the owner of $file" 'root root' "$(stat --format='%U %G' "$root$file")"
    done
    equal 'configuration that updates keep' /etc/caxton/caxton.yaml "$(rpm_in --query --configfiles caxton)"
    equal 'its flags' 17 "$(rpm_in --query --queryformat='[%{FILENAMES} %{FILEFLAGS}\n]' caxton |
        awk '$1 == "/etc/caxton/caxton.yaml" { print $2 }')"
    chroot "$root" caxton --version
}

check rpm_keeps_edited_configuration 360
rpm_keeps_edited_configuration() {
    mountpoint -q "$root" || skip 'there is no second root'
    echo '# edited by the operator' >>"$root/etc/caxton/caxton.yaml"
    rpm_in --upgrade --force --nodeps "$payload"/packages/caxton-*.rpm
    equal 'the last line' '# edited by the operator' "$(tail -n 1 "$root/etc/caxton/caxton.yaml")"
    rpm_in --erase --nodeps caxton 2>&1 | tee "$state/said"
    equal 'errors of rpm' '' "$(grep -iE 'fail|error|warning: %' "$state/said" || true)"
    [ ! -e "$root/usr/bin/caxtond" ] || fail 'the daemon is still there'
    [ -e "$root/etc/caxton/caxton.yaml.rpmsave" ] || fail 'the edited configuration was not kept'
}
