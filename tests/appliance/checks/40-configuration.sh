# shellcheck shell=bash disable=SC2154
# Checks valid and invalid changes of the configuration while the service runs, and an invalid configuration at its start.

generation() {
    ask GET /status | jq .configuration.generation
}

has_generation_above() {
    [ "$(generation)" -gt "$1" ]
}

has_problems() {
    [ "$(ask GET /status | jq '.configuration.problems | length')" -gt 0 ]
}

has_no_problems() {
    ! has_problems
}

# edited WHAT COMMAND...: runs COMMAND and waits for a new generation of the configuration.
edited() {
    local what=$1 before
    shift
    before=$(generation)
    "$@"
    until_true "the change by $what" has_generation_above "$before"
    equal 'the process' "$pid" "$(property MainPID)"
}

write_batch() {
    printf 'embedding: { batch_tokens: %s }\n' "$1" >"$override"
}

swap_link() {
    printf 'embedding: { batch_tokens: %s }\n' "$1" >"$state/linked.yaml"
    chmod 644 "$state/linked.yaml"
    cp "$state/linked.yaml" /etc/caxton/linked
    ln -sf ../linked "$override.link"
    mv -T "$override.link" "$override"
}

# make_bad: installs an invalid configuration and waits until the service reports it.
make_bad() {
    configure <<<$'embedding:\n  batch_tokens: many'
    until_true 'the problem in /status' has_problems
}

check changes_apply_with_any_editor 360
changes_apply_with_any_editor() {
    local pid since
    pid=$(property MainPID)
    since=$(now)
    edited 'a new file' write_batch 2048
    edited 'truncating and writing' write_batch 2049
    edited 'sed -i' sed -i s/2049/2050/ "$override"
    edited 'vim' vim.tiny -u NONE -es -c 's/2050/2051/' -c wq "$override"
    edited 'a link that is swapped' swap_link 2052
    edited 'removing the file' rm "$override"
    rm /etc/caxton/linked
    until_event "$since" configuration-applied
}

check invalid_change_is_rejected 300
invalid_change_is_rejected() {
    local since
    since=$(now)
    make_bad
    until_event "$since" configuration-refused
    records "$since" configuration-problem | tee "$state/said"
    grep -qE '90-check\.yaml:2:[0-9]+' "$state/said" || fail 'the journal does not name file and line'
    grep -q batch_tokens "$state/said" || fail 'the journal does not name the key'
    refused caxton check
    grep -q 'configuration' <<<"$(property StatusText)" || fail "STATUS is \"$(property StatusText)\""
    equal 'the answer' 200 "$(embedding bundled-mini)"
}

check reload_of_invalid_configuration_fails 300
reload_of_invalid_configuration_fails() {
    local pid
    make_bad
    pid=$(property MainPID)
    refused timeout 60 systemctl reload caxton
    is_active || fail 'the service is not active any more'
    equal 'the process' "$pid" "$(property MainPID)"
}

check start_uses_last_good_configuration 300
start_uses_last_good_configuration() {
    local since
    make_bad
    since=$(now)
    systemctl restart caxton || fail 'the service does not start'
    equal 'the answer' 200 "$(embedding bundled-mini)"
    has_problems || fail '/status shows no problem'
    equal 'the priority of last-good-used' 3 "$(records "$since" last-good-used | jq -r .PRIORITY)"
}

check valid_change_clears_problems 300
valid_change_clears_problems() {
    make_bad
    configure <<<'embedding: { batch_tokens: 4096 }'
    until_true 'no problem any more' has_no_problems
    timeout 60 systemctl reload caxton
}

# starts TIME: prints how often systemd began to start the unit since TIME.
starts() {
    journal "$1" --output=cat --grep='^Starting ' | wc -l
}

# no_more_starts TIME: succeeds if systemd does not start the unit for five seconds.
no_more_starts() {
    local before
    before=$(starts "$1")
    sleep 5
    [ "$(starts "$1")" = "$before" ]
}

slow_check failing_start_is_not_repeated_forever 400
failing_start_is_not_repeated_forever() {
    local since
    # There is no last good configuration, and a client waits: while it waits, the socket starts the service again.
    systemctl stop caxton.service
    configure <<<$'embedding:\n  batch_tokens: many'
    rm -f "$store"/last-good*
    since=$(now)
    as_member curl --silent --max-time 300 --unix-socket "$socket" http://caxton/livez &
    until_true 'an end of the starts' no_more_starts "$since"
    note "$(starts "$since") starts"
    (($(starts "$since") > 0)) || fail 'the service was never started'
    # When systemd stops the restarts, it closes the connection of the client.
    wait $! || echo 'the connection was closed'
}
