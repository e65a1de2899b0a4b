# shellcheck shell=bash disable=SC2034
# Functions that checks use. guest.sh sources this file, which declares no checks.

payload=/mnt
state=/var/lib/appliance
logs=$state/log
results=/dev/ttyS1
socket=/run/caxton/caxton.sock
catalog=/usr/lib/systemd/catalog/caxton.catalog
store=/var/lib/caxton
drop=$store/packages
group=/sys/fs/cgroup/caxton.slice/caxton.service
# Seconds after which a wait fails. The value is far above the time that any step takes, also under emulation on a busy
# host. A check waits this long only when it fails.
patience=180
# File for the configuration of a check. Its name sorts after the files of an operator.
override=/etc/caxton/conf.d/90-check.yaml
drop_in=/run/systemd/system/caxton.service.d
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

# fail REASON: ends the check.
fail() {
    echo "$*" | tee "$state/reason" >&2
    exit 1
}

# skip REASON: ends a check that cannot run.
skip() {
    echo "$*" | tee "$state/reason" >&2
    exit 77
}

# note TEXT: adds a figure to the results.
note() {
    echo "$*" | tee -a "$state/notes"
}

# blame PLACE COMMAND: records a command that failed unexpectedly as the reason. Only the first one is kept, because the
# failure of a subshell is reported a second time by its parent.
blame() {
    [ -e "$state/reason" ] || echo "$1: $2" >"$state/reason"
}

# equal WHAT EXPECTED FOUND: fails unless both values are equal.
equal() {
    [ "$2" = "$3" ] || fail "$1: expected \"$2\", found \"$3\""
}

# refused COMMAND...: fails unless COMMAND fails.
refused() {
    ! "$@" || fail "this was not refused: $*"
}

# until_true WHAT COMMAND...: waits until COMMAND succeeds.
until_true() {
    local end=$((SECONDS + patience)) what=$1
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || fail "$what: not after $patience s"
        sleep 0.2
    done
}

# ask METHOD PATH [BODY]: sends a request and prints the body of the response.
ask() {
    curl --silent --show-error --max-time 120 --unix-socket "$socket" --request "$1" "http://caxton$2" \
        ${3:+--header content-type:application/json --data "$3"}
}

# code METHOD PATH [BODY]: sends a request and prints its status code. The body of the response goes to the log.
code() {
    curl --silent --show-error --max-time 120 --unix-socket "$socket" --request "$1" "http://caxton$2" \
        ${3:+--header content-type:application/json --data "$3"} --output /dev/fd/2 --write-out '%{http_code}'
}

# embedding MODEL: prints the status code of a request to MODEL.
embedding() {
    code POST /v1/embeddings "{\"model\": \"$1\", \"input\": \"The pump runs hot.\"}"
}

answers() {
    [ "$(embedding "$1")" = 200 ]
}

# unknown MODEL: succeeds if MODEL is not installed.
unknown() {
    [ "$(embedding "$1")" = 404 ]
}

# until_answers MODEL: waits until MODEL answers a request.
until_answers() {
    until_true "an answer of $1" answers "$1"
}

as_member() {
    runuser -u member -- "$@"
}

as_outsider() {
    runuser -u outsider -- "$@"
}

# clients ARGUMENT...: runs clients.py as a member. Its last line is the reason if it fails.
clients() {
    local code=0
    as_member python3 "$payload/clients.py" "$@" >"$state/clients" 2>&1 || code=$?
    cat "$state/clients"
    [ $code = 0 ] || fail "$(tail -n 1 "$state/clients")"
}

# property NAME [UNIT]: prints a property of the unit from systemd.
property() {
    systemctl show --value --property="$1" "${2:-caxton.service}"
}

is_active() {
    systemctl --quiet is-active caxton.service
}

# has_other_pid PID: succeeds if the service runs in a process other than PID.
has_other_pid() {
    is_active && [ "$(property MainPID)" != "$1" ]
}

# now: prints the time, for `journal`. A cursor does not work: after a cursor, journalctl of 252 omits the first match.
now() {
    date +%s.%6N
}

# journal TIME ARGUMENT...: prints the journal of the service since TIME.
journal() {
    local since=$1
    shift
    journalctl --quiet --no-pager --unit=caxton.service --since="@$since" "$@"
}

# match_of KIND: prints the journalctl match for a kind of event. Fails unless the catalog has the kind.
match_of() {
    grep -qx "# $1" "$catalog" || fail "the catalog has no $1"
    echo "CAXTON_EVENT=$1"
}

# records TIME KIND: prints the journal records of this kind since TIME, one JSON object per line.
records() {
    local match
    match=$(match_of "$2")
    journal "$1" --output=json "$match"
}

# happened TIME KIND [VALUE]: succeeds if the journal has a record of this kind since TIME that contains VALUE.
happened() {
    records "$1" "$2" | grep -qF "${3:-}"
}

# until_event TIME KIND [VALUE]: waits until `happened` succeeds.
until_event() {
    until_true "the event $2 in the journal" happened "$@"
}

# drop_package NAME: copies a package to the drop directory, as an operator does.
drop_package() {
    cp "$payload/models/$1.model.tar.zst" "$drop/"
}

# configure: installs standard input as the configuration of the check, with one rename.
configure() {
    cat >"$override.new"
    mv "$override.new" "$override"
}

# unit_drop_in: overrides the unit with standard input until the check ends, and restarts the service.
unit_drop_in() {
    mkdir -p "$drop_in"
    cat >"$drop_in/check.conf"
    systemctl daemon-reload
    systemctl restart caxton
}

# clear_away: removes the configuration and the override of a check, regardless of its result.
clear_away() {
    rm -f "$override" "$override.new"
    if [ -e "$drop_in/check.conf" ]; then
        rm "$drop_in/check.conf"
        systemctl daemon-reload
        systemctl restart caxton
    fi
    # A check may have removed the package; then the service cannot start.
    if [ -x /usr/bin/caxtond ] && ! is_active; then
        systemctl reset-failed
        systemctl start caxton.socket caxton.service
    fi
}

# counter FILE KEY: prints the value of KEY in a flat keyed file of the service's control group.
counter() {
    awk -v key="$2" '$1 == key { print $2 }' "$group/$1"
}

mebibytes() {
    echo "$(($1 >> 20)) MiB"
}
