# shellcheck shell=bash disable=SC2034
# The words that checks are written in. Sourced by guest.sh; no check of its own.

payload=/mnt
state=/var/lib/appliance
logs=$state/log
results=/dev/ttyS1
socket=/run/caxton/caxton.sock
catalog=/usr/lib/systemd/catalog/caxton.catalog
store=/var/lib/caxton
drop=$store/packages
group=/sys/fs/cgroup/caxton.slice/caxton.service
# What has not happened after so many seconds does not happen. Far above what anything takes, even emulated on a machine
# that has other things to do: it is waited for only when a check fails.
patience=180
# Where a check puts its configuration. It sorts after what an operator may have.
override=/etc/caxton/conf.d/90-check.yaml
drop_in=/run/systemd/system/caxton.service.d
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

# fail REASON: ends the check.
fail() {
    echo "$*" | tee "$state/reason" >&2
    exit 1
}

# skip REASON: ends the check, which could not look.
skip() {
    echo "$*" | tee "$state/reason" >&2
    exit 77
}

# note TEXT: a figure for whoever reads the results.
note() {
    echo "$*" | tee -a "$state/notes"
}

# blame PLACE COMMAND: the reason when a command fails that nobody asks about. The first counts: the end of a subshell
# is one more.
blame() {
    [ -e "$state/reason" ] || echo "$1: $2" >"$state/reason"
}

# equal WHAT EXPECTED FOUND
equal() {
    [ "$2" = "$3" ] || fail "$1: expected \"$2\", found \"$3\""
}

# refused COMMAND...: the command has to fail.
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

# ask METHOD PATH [BODY]: the body of the answer.
ask() {
    curl --silent --show-error --max-time 120 --unix-socket "$socket" --request "$1" "http://caxton$2" \
        ${3:+--header content-type:application/json --data "$3"}
}

# code METHOD PATH [BODY]: the status code of the answer, whose body goes to the log.
code() {
    curl --silent --show-error --max-time 120 --unix-socket "$socket" --request "$1" "http://caxton$2" \
        ${3:+--header content-type:application/json --data "$3"} --output /dev/fd/2 --write-out '%{http_code}'
}

# embedding MODEL: the status code of a request to it.
embedding() {
    code POST /v1/embeddings "{\"model\": \"$1\", \"input\": \"The pump runs hot.\"}"
}

answers() {
    [ "$(embedding "$1")" = 200 ]
}

# unknown MODEL: it is not installed.
unknown() {
    [ "$(embedding "$1")" = 404 ]
}

# until_answers MODEL
until_answers() {
    until_true "an answer of $1" answers "$1"
}

as_member() {
    runuser -u member -- "$@"
}

as_outsider() {
    runuser -u outsider -- "$@"
}

# clients ARGUMENT...: clients.py, as a member. What it said last is the reason when it fails.
clients() {
    local code=0
    as_member python3 "$payload/clients.py" "$@" >"$state/clients" 2>&1 || code=$?
    cat "$state/clients"
    [ $code = 0 ] || fail "$(tail -n 1 "$state/clients")"
}

# property NAME [UNIT]: what systemd knows of the unit.
property() {
    systemctl show --value --property="$1" "${2:-caxton.service}"
}

is_active() {
    systemctl --quiet is-active caxton.service
}

# has_other_pid PID: the service runs in another process than that.
has_other_pid() {
    is_active && [ "$(property MainPID)" != "$1" ]
}

# now: the time, for `journal`. Not a cursor: journalctl of 252 leaves out the first record that matches after one.
now() {
    date +%s.%6N
}

# journal TIME ARGUMENT...: the journal of the service since then.
journal() {
    local since=$1
    shift
    journalctl --quiet --no-pager --unit=caxton.service --since="@$since" "$@"
}

# id_of KIND: the MESSAGE_ID of a kind of event; the catalog has its name above it.
id_of() {
    local id
    id=$(sed -n "/^# $1\$/{n; s/^-- \([0-9a-f]\{32\}\)\$/\1/p}" "$catalog")
    [ -n "$id" ] || fail "the catalog has no $1"
    echo "$id"
}

# records TIME KIND: what the journal has of such events since then, one JSON object a line.
records() {
    local id
    id=$(id_of "$2")
    journal "$1" --output=json "MESSAGE_ID=$id"
}

# happened TIME KIND [TEXT]: such an event is in the journal, and has TEXT in one of its fields.
happened() {
    records "$1" "$2" | grep -qF "${3:-}"
}

# until_event TIME KIND [TEXT]
until_event() {
    until_true "the event $2 in the journal" happened "$@"
}

# drop_package NAME: a package as an operator copies it.
drop_package() {
    cp "$payload/models/$1.model.tar.zst" "$drop/"
}

# configure: standard input is the configuration of the check, put in place as a whole.
configure() {
    cat >"$override.new"
    mv "$override.new" "$override"
}

# unit_drop_in: standard input goes over the unit, which is started anew, until the check ends.
unit_drop_in() {
    mkdir -p "$drop_in"
    cat >"$drop_in/check.conf"
    systemctl daemon-reload
    systemctl restart caxton
}

# clear_away: what a check has put into the configuration or over the unit, however it ended.
clear_away() {
    rm -f "$override" "$override.new"
    if [ -e "$drop_in/check.conf" ]; then
        rm "$drop_in/check.conf"
        systemctl daemon-reload
        systemctl restart caxton
    fi
    # Not while it is removed.
    if [ -x /usr/bin/caxtond ] && ! is_active; then
        systemctl reset-failed
        systemctl start caxton.socket caxton.service
    fi
}

# counter FILE KEY: a number of a flat keyed file of the service's control group.
counter() {
    awk -v key="$2" '$1 == key { print $2 }' "$group/$1"
}

mebibytes() {
    echo "$(($1 >> 20)) MiB"
}
