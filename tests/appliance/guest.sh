#!/usr/bin/env bash
# Runs the checks inside the virtual machine, one after the other, each in its own process.
# Usage: guest.sh          runs all checks that have not finished; a check that resets the machine is called again
#        guest.sh NAME     runs only the check NAME, in this process
# A result is a line on the second serial port. The output of a check is kept below /var/lib/appliance/log.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
declare -a order=()
declare -A limits=() essentials=() slow=()

# check NAME SECONDS: declares the function NAME as a check with a time limit.
check() {
    order+=("$1")
    limits[$1]=$2
}

# essential NAME SECONDS: declares a check that all others require. It always runs, and its failure ends the test.
essential() {
    check "$@"
    essentials[$1]=yes
}

# slow_check NAME SECONDS: declares a check that takes a minute or more and can be skipped when time is short.
slow_check() {
    check "$@"
    slow[$1]=yes
}

# shellcheck source=tests/appliance/lib.sh
source "$here/lib.sh"
# The host's parameters: the checks to run, the deadline of the test, and the durations and counts of checks.
only=() deadline=0 slow_too=yes
# shellcheck source=/dev/null
source "$here/parameters"
for theme in "$here"/checks/*.sh; do
    # shellcheck source=/dev/null
    source "$theme"
done

# Sends one line to the host. Long reasons are cut.
result() {
    echo "$*" | tr -s '\n' ' ' | cut --characters=1-400 | sed 's/ $//' >"$results"
}

# wanted NAME: succeeds if the host requested this check.
wanted() {
    [ ${#only[@]} = 0 ] || [ -n "${essentials[$1]:-}" ] || [[ " ${only[*]} " == *" $1 "* ]]
}

# Runs one check and reports its result.
run() {
    local name=$1 began seconds limit code=0
    # A check that reset the machine keeps the time of its first start.
    if [ ! -e "$state/began" ]; then
        date +%s >"$state/began"
        sync "$state/began"
    fi
    began=$(<"$state/began")
    limit=$((deadline - $(date +%s)))
    ((limit < limits[$name])) || limit=${limits[$name]}
    if ((limit <= 0)); then
        echo 'no time was left' >"$state/reason"
        code=1
    else
        timeout --kill-after=5 "$limit" bash "${BASH_SOURCE[0]}" "$name" >>"$logs/$name.log" 2>&1 || code=$?
    fi
    clear_away >>"$logs/$name.log" 2>&1 || echo "$name: not cleared away"
    seconds=$(($(date +%s) - began))
    case $code in
        0) result "pass $name ($seconds s)" ;;
        77) result "skip $name: $(<"$state/reason")" ;;
        124 | 137) result "fail $name: not done after $limit s" ;;
        *) result "fail $name: $(cat "$state/reason" 2>/dev/null || tail -n 1 "$logs/$name.log")" ;;
    esac
    [ ! -e "$state/notes" ] || sed "s/^/     /" "$state/notes" >"$results"
    rm -f "$state"/{reason,notes,began,round}
    echo "$name" >>"$state/done"
    sync "$state/done"
    [ $code = 0 ] || [ $code = 77 ] || [ -z "${essentials[$name]:-}" ]
}

# Copies the logs to the third disk for the host, so that failures can be examined.
keep() {
    journalctl --no-pager --output=short-precise >"$logs/journal.txt"
    journalctl --no-pager --catalog --boot --unit=caxton.service >"$logs/journal-caxton.txt"
    tar -C "$logs" -cf /dev/vdc .
}

all() {
    local name
    stty -F "$results" raw
    mkdir -p "$logs"
    touch "$state/done"
    for name in "${order[@]}"; do
        if ! wanted "$name" || grep -qx "$name" "$state/done"; then
            continue
        fi
        if [ "$slow_too" = no ] && [ -n "${slow[$name]:-}" ]; then
            echo "$name" >>"$state/done"
            result "skip $name: APPLIANCE_SLOW=no"
        elif ! run "$name"; then
            break
        fi
    done
    keep
    result end
}

if [ $# = 0 ]; then
    all
else
    trap 'blame "${BASH_SOURCE[0]##*/}:$LINENO" "$BASH_COMMAND"' ERR
    set -E
    "$1"
fi
