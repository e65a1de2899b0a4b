# shellcheck shell=bash disable=SC2154
# Checks the unit under systemd: its permissions, its environment and its restarts.

check systemd_accepts_units 300
systemd_accepts_units() {
    local said
    said=$(systemd-analyze verify --man=no caxton.service caxton.socket caxton.slice 2>&1) || fail "$said"
    # This version of systemd does not know two settings that later versions use.
    equal 'output of systemd-analyze verify' '' \
        "$(grep -v "Unknown key name 'MemoryPressure[A-Za-z]*' in section 'Service', ignoring" <<<"$said" || true)"
}

check service_exposure_is_low 300
service_exposure_is_low() {
    local said
    said=$(systemd-analyze security --no-pager --threshold=5 caxton.service) || fail "$(tail -n 1 <<<"$said")"
    note "$(tail -n 1 <<<"$said")"
}

check service_runs_confined 300
service_runs_confined() {
    local pid
    pid=$(property MainPID)
    equal 'network interfaces' lo "$(awk -F: 'NR > 2 { gsub(/ /, "", $1); print $1 }' "/proc/$pid/net/dev")"
    equal 'capabilities' 0000000000000000 "$(awk '/^CapEff/ { print $2 }' "/proc/$pid/status")"
    equal 'NoNewPrivs' 1 "$(awk '/^NoNewPrivs/ { print $2 }' "/proc/$pid/status")"
    equal 'Seccomp' 2 "$(awk '/^Seccomp:/ { print $2 }' "/proc/$pid/status")"
    [ "$(awk '/^Uid/ { print $2 }' "/proc/$pid/status")" -ge 61184 ] || fail 'the user is not dynamic'
    equal 'the slice' caxton.slice "$(property Slice)"
}

check sandbox_state_is_reported 300
sandbox_state_is_reported() {
    local sandbox started
    started=$(now)
    systemctl restart caxton
    sandbox=$(ask GET /status | jq -c .sandbox)
    [ "$sandbox" != null ] || fail 'there is no "sandbox" in /status'
    note "sandbox $sandbox"
    until_true 'a record of the sandbox in the journal' is_sandbox_logged "$started"
}
is_sandbox_logged() {
    happened "$1" sandbox-entered || happened "$1" sandbox-degraded
}

check incomplete_sandbox_can_prevent_start 360
incomplete_sandbox_can_prevent_start() {
    local since
    since=$(now)
    configure <<<'require_sandbox: true'
    refused unit_drop_in <<<$'[Service]\nSystemCallFilter=~landlock_create_ruleset'
    equal 'the exit code' 78 "$(property ExecMainStatus)"
    until_event "$since" start-failed Landlock
    since=$(now)
    configure <<<'require_sandbox: false'
    systemctl start caxton
    until_event "$since" sandbox-degraded Landlock
    equal 'the answer' 200 "$(embedding bundled-mini)"
}

check unlocked_program_pages_are_logged 300
unlocked_program_pages_are_logged() {
    local since
    since=$(now)
    unit_drop_in <<<$'[Service]\nLimitMEMLOCK=64K'
    until_event "$since" program-not-kept LimitMEMLOCK
    equal 'the answer' 200 "$(embedding bundled-mini)"
}

check memory_pressure_comes_from_kernel 300
memory_pressure_comes_from_kernel() {
    local source
    source=$(ask GET /api/memory/status | jq -r .source)
    note "source \"$source\"; STATUS \"$(property StatusText)\""
    case $source in
        *memory.events* | *memory.pressure* | */proc/pressure/memory*) ;;
        *) fail "the source is \"$source\"" ;;
    esac
    grep -qF "$source" <<<"$(property StatusText)" || fail 'STATUS does not name the source'
    note "with bundled-mini: anon $(mebibytes "$(counter memory.stat anon)")," \
        "file $(mebibytes "$(counter memory.stat file)")"
}

check killed_service_restarts 300
killed_service_restarts() {
    local pid
    pid=$(property MainPID)
    kill -KILL "$pid"
    until_true 'another process' has_other_pid "$pid"
    equal 'the answer' 200 "$(embedding bundled-mini)"
}

check watchdog_restarts_frozen_daemon 360
watchdog_restarts_frozen_daemon() {
    local pid since began
    unit_drop_in <<<$'[Service]\nWatchdogSec=8s'
    began=$SECONDS
    pid=$(property MainPID)
    since=$(now)
    kill -STOP "$pid"
    until_true 'another process' has_other_pid "$pid"
    note "$((SECONDS - began)) s to the next process, with WatchdogSec=8s and TimeoutAbort $(property TimeoutAbortUSec)"
    until_true "systemd's record of the watchdog timeout" is_timeout_logged "$since"
    equal 'the answer' 200 "$(embedding bundled-mini)"
}

# is_timeout_logged TIME: succeeds if systemd has logged a watchdog timeout since TIME.
is_timeout_logged() {
    journal "$1" --output=cat | grep -qF 'Watchdog timeout'
}

slow_check watchdog_spares_busy_daemon 360
watchdog_spares_busy_daemon() {
    local pid
    unit_drop_in <<<$'[Service]\nWatchdogSec=8s'
    pid=$(property MainPID)
    clients --seconds 25 --clients 8 --model bundled-mini=0.998
    equal 'the process' "$pid" "$(property MainPID)"
}

check restart_loses_no_connection 360
restart_loses_no_connection() {
    local answered=/tmp/answered
    clients --seconds 30 --clients 4 --model bundled-mini=0.998 --fresh --ready $answered &
    local asking=$! _
    until_true 'the first answer' [ -e $answered ]
    for _ in 1 2 3; do
        systemctl restart caxton
    done
    wait "$asking"
}
