# shellcheck shell=bash disable=SC2154
# Checks memory under a real control group: evicted models are freed, models that do not fit are rejected, and the kernel
# kills no process.

large=(large-a large-b large-c large-d)

# used: prints the bytes of the service's heap and mapped files, which an unload of a model reduces.
used() {
    echo $(($(counter memory.stat anon) + $(counter memory.stat file_mapped)))
}

resident() {
    ask GET /api/memory/status |
        jq --exit-status --arg id "$1" 'any(.models[]; .id == $id and .residency == "resident")'
}

not_resident() {
    ! resident "$1"
}

available() {
    ask GET /api/packages |
        jq --exit-status --arg id "$1" 'any(.packages[]; .id == $id and .status == "available")'
}

check large_models_install_from_drop_directory 900
large_models_install_from_drop_directory() {
    local model peak
    for model in "${large[@]}"; do
        drop_package "$model"
    done
    for model in "${large[@]}"; do
        until_true "$model" available "$model"
    done
    peak=$(cat "$group/memory.peak" 2>/dev/null) || peak=0
    note "peak of the control group $(mebibytes "$peak")"
}

check unloaded_model_frees_its_memory 360
unloaded_model_frees_its_memory() {
    local before loaded after size bound
    # The first load allocates memory that stays, which must not count.
    caxton memory load large-a
    caxton memory unload large-a
    before=$(used)
    caxton memory load large-a
    loaded=$(used)
    caxton memory unload large-a
    sleep 1
    after=$(used)
    size=$((loaded - before))
    note "$(mebibytes "$before"), loaded $(mebibytes "$loaded"), unloaded $(mebibytes "$after")"
    ((size > 32 << 20)) || fail "the model took only $(mebibytes $size)"
    bound=$((size / 20 > 5 << 20 ? size / 20 : 5 << 20))
    ((after - before <= bound)) || fail "$(mebibytes $((after - before))) stayed"
}

check idle_service_is_small 300
idle_service_is_small() {
    caxton memory flush
    local resident anon
    resident=$(awk '/^VmRSS/ { print $2 * 1024 }' "/proc/$(property MainPID)/status")
    anon=$(counter memory.stat anon)
    note "without a model: resident $(mebibytes "$resident"), anon $(mebibytes "$anon")"
    ((anon < 16 << 20)) || fail "the service holds $(mebibytes "$anon") without a model"
}

check pressure_evicts_model_promptly 540
pressure_evicts_model_promptly() {
    local round times=() slowest=0 taken since
    configure <<<'memory: { pressure: { reload_cooldown: 0s, recovery_time: 1s } }'
    until_answers bundled-mini
    for round in 1 2 3 4 5; do
        until_true 'large-a in memory' caxton memory load large-a
        until_true 'the normal pressure level' is_calm
        since=$(now)
        taken=$(python3 "$payload/release_time.py" "$group" $((32 << 20)) 2>&1) || fail "round $round: $taken"
        until_true 'the eviction of large-a' not_resident large-a
        times+=("$taken")
        ((taken <= slowest)) || slowest=$taken
        until_event "$since" pressure-entered
    done
    note "from memory.high to 32 MiB less: ${times[*]} ms"
    # Above memory.high, the kernel pauses every process that allocates, each time for half a second or more.
    ((slowest < 10000)) || fail "it took $slowest ms"
}

is_calm() {
    [ "$(ask GET /api/memory/status | jq -r .level)" = normal ]
}

# kills GROUP: prints the number of processes of the control group that the kernel has killed.
kills() {
    awk '$1 == "oom_kill" || $1 == "oom_group_kill" { sum += $2 } END { print sum + 0 }' "$1/memory.events"
}

# shellcheck disable=SC2154 # The host sets the duration.
check memory_shortage_kills_no_process $((pressure_seconds + 600))
memory_shortage_kills_no_process() {
    local slice=/sys/fs/cgroup/caxton.slice pid events gap wrong=
    # The limit is set while the service is stopped: below the memory in use, it would make the kernel kill immediately.
    systemctl stop caxton.service
    # One large model fits together with the bundled one, two do not.
    configure <<<'memory: { min_free: 16MiB }'
    # The slice has room for the bystander, so that only the limit of the service is reached.
    systemctl set-property --runtime caxton.slice MemoryMax=384M MemorySwapMax=0
    systemctl set-property --runtime caxton.service MemoryMax=256M
    systemctl start caxton.service
    pid=$(property MainPID)
    events=$(kills "$slice")
    systemd-run --quiet --unit=bystander --slice=caxton.slice --property=Type=exec \
        python3 "$payload/bystander.py" 24 "$state/gap"
    # shellcheck disable=SC2046 # Each model is one argument.
    (clients --seconds "$pressure_seconds" --clients 8 --model bundled-mini=0.998 \
        $(printf -- '--model %s=0.99999 ' "${large[@]}")) || wrong=$(<"$state/reason")
    note "in $pressure_seconds s: $(paste -s -d ';' "$state/clients")"
    note "peak $(mebibytes "$(cat "$group/memory.peak" 2>/dev/null || echo 0)") of 256 MiB; $(tr '\n' ' ' <"$group/memory.events")"
    note "loads: $(ask GET /api/models/stats | jq -c '[.models[] | {(.id): .loads}] | add')"
    gap=$(<"$state/gap")
    note "longest gap of the bystander $gap ms"
    equal 'wrong answers' '' "$wrong"
    equal 'kills in the slice' "$events" "$(kills "$slice")"
    equal 'the process' "$pid" "$(property MainPID)"
    equal 'the bystander' active "$(systemctl is-active bystander.service)"
    ((gap < 5000)) || fail "the bystander stood still for $gap ms"
    systemctl stop bystander.service
}

check service_recovers_after_memory_shortage 360
service_recovers_after_memory_shortage() {
    systemctl revert caxton.service caxton.slice
    systemctl daemon-reload
    systemctl restart caxton
    # The cool-down ended with the old process.
    until_answers large-a
    local model
    for model in "${large[@]}"; do
        rm "$drop/$model.model.tar.zst"
    done
    for model in "${large[@]}"; do
        until_true "$model to leave" unknown "$model"
    done
}
