# shellcheck shell=bash disable=SC2154
# Checks the unit under systemd: its permissions, its environment and its restarts.

check the_units_are_verified 300
the_units_are_verified() {
    local said
    said=$(systemd-analyze verify --man=no caxton.service caxton.socket caxton.slice 2>&1) || fail "$said"
    # This version of systemd does not know two settings that later versions use.
    equal 'what is said of the units' '' \
        "$(grep -v "Unknown key name 'MemoryPressure[A-Za-z]*' in section 'Service', ignoring" <<<"$said" || true)"
}

check its_exposure_is_low 300
its_exposure_is_low() {
    local said
    said=$(systemd-analyze security --no-pager --threshold=5 caxton.service) || fail "$(tail -n 1 <<<"$said")"
    note "$(tail -n 1 <<<"$said")"
}

check it_runs_confined 300
it_runs_confined() {
    local pid
    pid=$(property MainPID)
    equal 'network interfaces' lo "$(awk -F: 'NR > 2 { gsub(/ /, "", $1); print $1 }' "/proc/$pid/net/dev")"
    equal 'capabilities' 0000000000000000 "$(awk '/^CapEff/ { print $2 }' "/proc/$pid/status")"
    equal 'NoNewPrivs' 1 "$(awk '/^NoNewPrivs/ { print $2 }' "/proc/$pid/status")"
    equal 'Seccomp' 2 "$(awk '/^Seccomp:/ { print $2 }' "/proc/$pid/status")"
    [ "$(awk '/^Uid/ { print $2 }' "/proc/$pid/status")" -ge 61184 ] || fail 'its user is not a dynamic one'
    equal 'the slice' caxton.slice "$(property Slice)"
}

check it_tells_how_it_is_confined 300
it_tells_how_it_is_confined() {
    local sandbox started
    started=$(now)
    systemctl restart caxton
    sandbox=$(ask GET /status | jq -c .sandbox)
    [ "$sandbox" != null ] || fail 'there is no "sandbox" in /status'
    note "sandbox $sandbox"
    until_true 'a record of it in the journal' told_of_sandbox "$started"
}
told_of_sandbox() {
    happened "$1" sandbox-entered || happened "$1" sandbox-degraded
}

check with_half_a_sandbox_it_starts_only_where_it_may 360
with_half_a_sandbox_it_starts_only_where_it_may() {
    local since
    since=$(now)
    configure <<<'require_sandbox: true'
    refused unit_drop_in <<<$'[Service]\nSystemCallFilter=~landlock_create_ruleset'
    equal 'the exit code' 78 "$(property ExecMainStatus)"
    until_event "$since" start-failed 'Landlock is off'
    since=$(now)
    configure <<<'require_sandbox: false'
    systemctl start caxton
    until_event "$since" sandbox-degraded 'Landlock is off'
    equal 'the answer' 200 "$(embedding bundled-mini)"
}

check it_tells_when_its_pages_are_not_kept 300
it_tells_when_its_pages_are_not_kept() {
    local since
    since=$(now)
    unit_drop_in <<<$'[Service]\nLimitMEMLOCK=64K'
    until_event "$since" program-not-kept LimitMEMLOCK
    equal 'the answer' 200 "$(embedding bundled-mini)"
}

check pressure_is_heard_from_the_kernel 300
pressure_is_heard_from_the_kernel() {
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

check it_comes_back_when_it_is_killed 300
it_comes_back_when_it_is_killed() {
    local pid
    pid=$(property MainPID)
    kill -KILL "$pid"
    until_true 'another process' has_other_pid "$pid"
    equal 'the answer' 200 "$(embedding bundled-mini)"
}

check the_watchdog_ends_a_frozen_daemon_and_it_comes_back 360
the_watchdog_ends_a_frozen_daemon_and_it_comes_back() {
    local pid since began
    unit_drop_in <<<$'[Service]\nWatchdogSec=8s'
    began=$SECONDS
    pid=$(property MainPID)
    since=$(now)
    kill -STOP "$pid"
    until_true 'another process' has_other_pid "$pid"
    note "$((SECONDS - began)) s to the next process, with WatchdogSec=8s and TimeoutAbort $(property TimeoutAbortUSec)"
    until_true "systemd's word of the watchdog" named_watchdog "$since"
    equal 'the answer' 200 "$(embedding bundled-mini)"
}

named_watchdog() {
    journal "$1" --output=cat | grep -qF 'Watchdog timeout'
}

slow_check the_watchdog_leaves_a_busy_daemon_alone 360
the_watchdog_leaves_a_busy_daemon_alone() {
    local pid
    unit_drop_in <<<$'[Service]\nWatchdogSec=8s'
    pid=$(property MainPID)
    clients --seconds 25 --clients 8 --model bundled-mini=0.998
    equal 'the process' "$pid" "$(property MainPID)"
}

check a_restart_loses_no_connection 360
a_restart_loses_no_connection() {
    local answered=/tmp/answered
    clients --seconds 30 --clients 4 --model bundled-mini=0.998 --fresh --ready $answered &
    local asking=$! _
    until_true 'the first answer' [ -e $answered ]
    for _ in 1 2 3; do
        systemctl restart caxton
    done
    wait "$asking"
}
