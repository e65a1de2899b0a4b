# shellcheck shell=bash disable=SC2154
# Checks the journal: each kind of event has an id and an explanation, texts are never logged, and it blocks no request.

# ids: prints the ids of the catalog.
ids() {
    sed -n 's/^-- \([0-9a-f]\{32\}\)$/\1/p' "$catalog"
}

check events_have_ids_and_explanations 300
events_have_ids_and_explanations() {
    local id seen=0 all=0
    for id in $(ids); do
        all=$((all + 1))
        if journalctl --quiet --no-pager --lines=1 --catalog "MESSAGE_ID=$id" >"$state/explained" &&
            [ -s "$state/explained" ]; then
            seen=$((seen + 1))
            grep -q '^░░ Subject: ' "$state/explained" || fail "nothing explains $id"
        fi
    done
    note "$seen of $all kinds of events have happened up to here, each explained"
    # At least six kinds: started, ready, package accepted, package rejected, configuration applied, configuration rejected.
    ((seen >= 6)) || fail "only $seen of $all kinds of events were found"
    journalctl --quiet --no-pager --boot --unit=caxton.service --output=json | jq -r '.MESSAGE_ID // empty' |
        sort -u >"$state/used"
    journalctl --list-catalog | cut -d ' ' -f 1 | tr -d - | sort -u >"$state/known"
    equal 'ids without an explanation' '' "$(comm -23 "$state/used" "$state/known")"
}

check records_have_syslog_priorities 300
records_have_syslog_priorities() {
    local found
    found=$(journalctl --quiet --no-pager --boot --unit=caxton.service --output=json |
        jq -r 'select(._COMM == "caxtond") | .PRIORITY' | sort | uniq -c)
    note "records by priority: $(tr -s '\n ' ' ' <<<"$found")"
    grep -q ' 6$' <<<"$found" || fail 'nothing is informational'
    refused grep ' [0125]$' <<<"$found"
}

check texts_are_never_logged 300
texts_are_never_logged() {
    local secret=zanzibar-$RANDOM$RANDOM
    configure <<<'log: { level: trace }'
    code POST /v1/embeddings "{\"input\": \"$secret\"}"
    code POST /v1/embeddings "{\"input\": [\"$secret\"], \"model\": \"no-such\"}"
    code POST /v1/embeddings "{\"input\": \"$secret\", \"encoding_format\": \"$secret\"}"
    code POST /v1/rank "{\"query\": \"$secret\", \"documents\": [\"$secret\"]}"
    journalctl --sync
    journalctl --quiet --no-pager --unit=caxton.service --output=verbose --all >"$state/said"
    refused grep "$secret" "$state/said"
}

check stopped_journald_delays_no_request 300
stopped_journald_delays_no_request() {
    local journald told=$state/refusals code=0 count slowest
    journald=$(property MainPID systemd-journald.service)
    kill -STOP "$journald"
    # The requests cause more records than the journal's socket can buffer. A service that waits for it would stop answering.
    as_member timeout 120 python3 -B "$payload/refusals.py" 30 2000 >"$told" 2>&1 || code=$?
    kill -CONT "$journald"
    [ $code = 0 ] || fail "not all were answered ($code): $(tail -n 1 "$told")"
    read -r count slowest <"$told"
    note "$count requests, slowest $slowest ms"
    ((slowest < 5000)) || fail "a request took $slowest ms"
    until_answers bundled-mini
}
