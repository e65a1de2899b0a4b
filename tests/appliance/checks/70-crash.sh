# shellcheck shell=bash disable=SC2154
# The power fails, or the daemon is killed, while a package is being installed: the store has it whole or not at all.

# have_small: a model that has to be there, whatever happens to the other.
have_small() {
    [ -e "$drop/small.model.tar.zst" ] || drop_package small
    until_answers small
}

# remove_medium: its package leaves the drop directory, and it the store.
remove_medium() {
    rm "$drop/medium.model.tar.zst"
    until_true 'medium to leave' unknown medium
}

# measure_installation: how many milliseconds one takes here, from the copy to the first answer.
measure_installation() {
    local began=${EPOCHREALTIME/./}
    drop_package medium
    until_answers medium
    echo $(((${EPOCHREALTIME/./} - began) / 1000))
    remove_medium
}

# random_moment MILLISECONDS: waits for a part of them.
random_moment() {
    local ms=$((RANDOM * $1 / 32768))
    sleep "$((ms / 1000)).$(printf '%03d' $((ms % 1000)))"
}

# The store is sound: nothing unfinished, nothing damaged, and the models that were there answer.
is_sound() {
    equal 'what is left in staging' '' "$(ls "$store/staging")"
    equal 'entries of the store that are damaged' '' \
        "$(journalctl --quiet --no-pager --boot --unit=caxton.service "MESSAGE_ID=$(id_of store-entry-damaged)")"
    equal 'bundled-mini' 200 "$(embedding bundled-mini)"
    equal 'small' 200 "$(embedding small)"
}

# shellcheck disable=SC2154 # The host decides how often.
check a_kill_amid_an_installation_leaves_it_whole_or_undone $((kills * 60 + 300))
a_kill_amid_an_installation_leaves_it_whole_or_undone() {
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

# shellcheck disable=SC2154 # The host decides how often.
check a_reset_amid_an_installation_leaves_it_whole_or_undone $((resets * 300 + 300))
a_reset_amid_an_installation_leaves_it_whole_or_undone() {
    local round=0 takes
    if [ -e "$state/round" ]; then
        read -r round takes <"$state/round"
        until_true 'the service after a reset' is_active
        # What an operator copied before the power failed may be lost; then he copies it again.
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
    # The machine is gone before this ends.
    sleep 60
    fail 'the machine was not reset'
}
