# shellcheck shell=bash disable=SC2154
# Checks upgrade, downgrade, removal, reinstallation and purge: which files and states change and which stay.

etc=/etc/caxton/caxton.yaml

# install_from DIRECTORY: installs the package in DIRECTORY like an unattended upgrade.
install_from() {
    apt-get install -y --allow-downgrades -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
        "$payload/$1"/caxton_*.deb
}

version() {
    dpkg-query --show --showformat='${Version}' caxton
}

check upgrade_keeps_configuration_and_restarts_once 540
upgrade_keeps_configuration_and_restarts_once() {
    local since pid before
    before=$(version)
    echo '# edited by the operator' >>"$etc"
    pid=$(property MainPID)
    since=$(now)
    install_from newer
    dpkg --compare-versions "$(version)" gt "$before" || fail "it is still version $(version)"
    equal 'the last line of the configuration' '# edited by the operator' "$(tail -n 1 "$etc")"
    grep -q '^# of the newer version$' "$etc.dpkg-dist" || fail 'the new configuration is not beside it'
    [ "$(property MainPID)" != "$pid" ] || fail 'the old process still runs'
    equal 'starts' 1 "$(starts "$since")"
    equal 'the answer' 200 "$(embedding bundled-mini)"
    equal 'the model that was installed' 200 "$(embedding small)"
}

check downgrade_restarts_once 540
downgrade_restarts_once() {
    local since
    since=$(now)
    install_from packages
    rm -f "$etc.dpkg-dist"
    equal 'starts' 1 "$(starts "$since")"
    equal 'the answer' 200 "$(embedding small)"
}

check upgrade_with_invalid_configuration_keeps_process 540
upgrade_with_invalid_configuration_keeps_process() {
    local pid
    configure <<<'embedding: { batch_tokens: many }'
    pid=$(property MainPID)
    install_from newer | tee "$state/said"
    equal 'the process' "$pid" "$(property MainPID)"
    grep -q '90-check.yaml' "$state/said" || fail 'apt-get does not print the problem'
    equal 'the answer' 200 "$(embedding bundled-mini)"
    rm "$override"
    systemctl restart caxton
    equal 'the answer' 200 "$(embedding bundled-mini)"
}

check removal_keeps_configuration_and_models 360
removal_keeps_configuration_and_models() {
    apt-get remove -y caxton
    [ ! -e /usr/bin/caxtond ] || fail 'the daemon is still there'
    [ ! -e "$socket" ] || fail 'the socket is still there'
    refused pgrep -x caxtond
    # Debian masks the units of a removed package, so that they cannot be started.
    equal 'LoadState' masked "$(property LoadState)"
    equal 'the last line of the configuration' '# edited by the operator' "$(tail -n 1 "$etc")"
    compgen -G "$store/models/small@*" || fail 'the models were removed'
    equal 'units that have failed' '' "$(systemctl --failed --quiet --no-legend)"
}

slow_check reinstallation_restores_service 540
reinstallation_restores_service() {
    install_from packages
    systemctl start caxton
    until_answers small
    equal 'the last line of the configuration' '# edited by the operator' "$(tail -n 1 "$etc")"
}

check purge_removes_everything 540
purge_removes_everything() {
    apt-get purge -y caxton
    equal 'files with its name' '' \
        "$(find / -xdev \( -path "$payload" -o -path "$state" \) -prune -o -name '*caxton*' -print | head -n 5)"
    equal 'units that have failed' '' "$(systemctl --failed --quiet --no-legend)"
}
