#!/usr/bin/env bash
# Runs the checks inside of the virtual machine, one after the other, each in a process of its own.
# Usage: guest.sh          all that have not run yet: a check may reset the machine, and is then called again
#        guest.sh NAME     the check NAME alone, in this process
# A result is a line on the second serial line; what a check says is kept below /var/lib/appliance/log.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
declare -a order=()
declare -A limits=() essentials=() slow=()

# check NAME SECONDS: the function NAME is a check, and ends within SECONDS.
check() {
    order+=("$1")
    limits[$1]=$2
}

# A check without which no other can run: always among those that run, and the end of them when it fails.
essential() {
    check "$@"
    essentials[$1]=yes
}

# A check that takes a minute or more and can be left out when time is short.
slow_check() {
    check "$@"
    slow[$1]=yes
}

# shellcheck source=tests/appliance/words.sh
source "$here/words.sh"
# What the host decided: which checks, when all has to end, and how long and how often.
only=() deadline=0 slow_too=yes
# shellcheck source=/dev/null
source "$here/parameters"
for theme in "$here"/checks/*.sh; do
    # shellcheck source=/dev/null
    source "$theme"
done

# A line for the host, however long a reason is.
result() {
    echo "$*" | tr -s '\n' ' ' | cut --characters=1-400 | sed 's/ $//' >"$results"
}

# Whether the host asked for this one.
wanted() {
    [ ${#only[@]} = 0 ] || [ -n "${essentials[$1]:-}" ] || [[ " ${only[*]} " == *" $1 "* ]]
}

# Runs one check, and tells how it went.
run() {
    local name=$1 began seconds limit code=0
    # A check that was interrupted by its own reset began before that.
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

# Everything that helps to understand a failure, for the host.
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
