# shellcheck shell=bash
# Checks the sandbox after all other checks: it is complete, and the daemon made no system call that it denies.

check no_system_call_was_denied 300
no_system_call_was_denied() {
    local parts denied
    until_answers bundled-mini
    parts=$(ask GET /status | jq -r '.sandbox | "\(.landlock.state) \(.seccomp.state)"')
    equal 'Landlock and seccomp' 'on on' "$parts"
    [ -e /proc/self/loginuid ] || skip 'this kernel keeps no audit records'
    journalctl --sync
    # The kernel prints the type as a number, journald as a name.
    denied=$(journalctl --quiet --no-pager --output=cat _TRANSPORT=kernel + _TRANSPORT=audit |
        grep -E 'type=1326|^SECCOMP' | grep -F caxtond || true)
    equal 'denied calls' '' "$denied"
}
