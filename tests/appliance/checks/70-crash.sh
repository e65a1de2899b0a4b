# shellcheck shell=bash disable=SC2154
# Checks power failures and kills of the daemon during an installation: the store contains the whole package or none of it.

# have_small: makes sure that the model `small` is installed. It must survive all failures.
have_small() {
    [ -e "$drop/small.model.tar.zst" ] || drop_package small
    until_answers small
}

# remove_medium: removes the package of `medium` from the drop directory, and thus the model.
remove_medium() {
    rm "$drop/medium.model.tar.zst"
    until_true 'medium to leave' unknown medium
}

# measure_installation: measures an installation in milliseconds, from the copy to the first response.
measure_installation() {
    local began=${EPOCHREALTIME/./}
    drop_package medium
    until_answers medium
    echo $(((${EPOCHREALTIME/./} - began) / 1000))
    remove_medium
}

# random_moment MILLISECONDS: waits for a random part of this time.
random_moment() {
    local ms=$((RANDOM * $1 / 32768))
    sleep "$((ms / 1000)).$(printf '%03d' $((ms % 1000)))"
}

# Checks the store: staging is empty, no entry is damaged, and the earlier models answer.
is_sound() {
    local match
    match=$(match_of store-entry-damaged)
    equal 'files in staging' '' "$(ls "$store/staging")"
    equal 'damaged entries of the store' '' \
        "$(journalctl --quiet --no-pager --boot --unit=caxton.service "$match")"
    equal 'bundled-mini' 200 "$(embedding bundled-mini)"
    equal 'small' 200 "$(embedding small)"
}

# shellcheck disable=SC2154 # The host sets the number.
check kill_during_installation_keeps_store_sound $((kills * 60 + 300))
kill_during_installation_keeps_store_sound() {
    local round pid takes unfinished=0 whole=0
    unit_drop_in <<<$'[Service]\nRestartSec=100ms'
    have_small
    takes=$(measure_installation)
    for ((round = 1; round <= kills; round++)); do
        pid=$(property MainPID)
        drop_package medium
        random_moment "$takes"
        kill -KILL "$pid"
        if compgen -G "$store/models/medium@*" >/dev/null; then
            whole=$((whole + 1))
        elif [ -n "$(ls "$store/staging")" ]; then
            unfinished=$((unfinished + 1))
        fi
        until_true 'another process' has_other_pid "$pid"
        until_answers medium
        is_sound
        remove_medium
    done
    note "$kills kills: $unfinished while it was unpacked, $whole when it was in the store; one takes $takes ms"
}

# shellcheck disable=SC2154 # The host sets the number.
check reset_during_installation_keeps_store_sound $((resets * 300 + 300))
reset_during_installation_keeps_store_sound() {
    local round=0 takes
    if [ -e "$state/round" ]; then
        read -r round takes <"$state/round"
        until_true 'the service after a reset' is_active
        # A power failure may lose a recently copied file; then the operator copies it again.
        cmp "$payload/models/medium.model.tar.zst" "$drop/medium.model.tar.zst" || drop_package medium
        until_answers medium
        is_sound
        remove_medium
    else
        have_small
        takes=$(measure_installation)
    fi
    if ((round == resets)); then
        note "$resets resets"
        return
    fi
    echo "$((round + 1)) $takes" >"$state/round"
    sync "$state/round"
    drop_package medium
    random_moment "$takes"
    echo "reset $((round + 1))"
    echo b >/proc/sysrq-trigger
    # The machine resets before this sleep ends.
    sleep 60
    fail 'the machine was not reset'
}
