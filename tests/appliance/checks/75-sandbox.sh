# shellcheck shell=bash
# The sandbox after everything else: it is whole, and the daemon asked for nothing that it denies.

check no_system_call_was_denied_in_the_whole_run 300
no_system_call_was_denied_in_the_whole_run() {
    local parts denied
    until_answers bundled-mini
    parts=$(ask GET /status | jq -r '.sandbox | "\(.landlock.state) \(.seccomp.state)"')
    equal 'Landlock and seccomp' 'on on' "$parts"
    [ -e /proc/self/loginuid ] || skip 'this kernel keeps no audit records'
    journalctl --sync
    # A kernel writes the type by its number, journald by its name.
    denied=$(journalctl --quiet --no-pager --output=cat _TRANSPORT=kernel + _TRANSPORT=audit |
        grep -E 'type=1326|^SECCOMP' | grep -F caxtond || true)
    equal 'denied calls' '' "$denied"
}
