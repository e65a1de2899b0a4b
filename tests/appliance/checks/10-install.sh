# shellcheck shell=bash disable=SC2154
# Checks the steps from a bare machine to the first vector: one command for each step, and no edited file.

essential package_installs_without_network 720
package_installs_without_network() {
    cd "$payload/packages" || fail "there is no second disk"
    apt-get install -y ./caxton_*.deb
    equal 'output of dpkg --verify' '' "$(dpkg --verify caxton)"
    getent group caxton || fail 'there is no group caxton'
    useradd --groups caxton member
    useradd outsider
    equal 'caxton.service' enabled "$(systemctl is-enabled caxton.service)"
    equal 'caxton.socket' enabled "$(systemctl is-enabled caxton.socket)"
}

essential service_starts_with_one_command 360
service_starts_with_one_command() {
    systemctl start caxton
    is_active || fail 'the service is not active'
    equal 'restarts' 0 "$(property NRestarts)"
    local start ready
    start=$(property ExecMainStartTimestampMonotonic)
    ready=$(property ActiveEnterTimestampMonotonic)
    note "start to READY $(((ready - start) / 1000)) ms, emulated"
    equal 'the socket' 'caxton 660' "$(stat --format='%G %a' "$socket")"
}

check member_embeds_with_one_command 300
member_embeds_with_one_command() {
    as_member caxton embed 'The pump runs hot.' >"$state/vector"
    equal 'lines and dimensions' '1 384' "$(wc --lines --words <"$state/vector" | tr -s ' ' | sed 's/^ //')"
}

check vectors_match_sentence_transformers 360
vectors_match_sentence_transformers() {
    clients --seconds 5 --clients 2 --model bundled-mini=0.998
}

check outsider_cannot_open_socket 300
outsider_cannot_open_socket() {
    local open='import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])'
    as_member python3 -c "$open" "$socket"
    if as_outsider python3 -c "$open" "$socket" 2>"$state/refusal"; then
        fail 'an outsider opened the socket'
    fi
    grep -q '^PermissionError: \[Errno 13\]' "$state/refusal" || fail "not EACCES: $(<"$state/refusal")"
}

check member_is_not_an_administrator 300
member_is_not_an_administrator() {
    local flush=(curl --silent --output /dev/fd/2 --write-out '%{http_code}' --unix-socket "$socket" --request POST
        http://caxton/api/memory/flush)
    equal 'a member' 403 "$(as_member "${flush[@]}")"
    equal 'root' 200 "$("${flush[@]}")"
    until_answers bundled-mini
}

check manual_is_installed 300
manual_is_installed() {
    local page
    for page in man1/caxton.1 man8/caxtond.8 man5/caxton.yaml.5 man5/caxton-package.5; do
        zcat "/usr/share/man/$page.gz" | grep -q '^\.TH' || fail "$page is not a manual page"
    done
    local completions=(bash-completion/completions/caxton zsh/vendor-completions/_caxton
        fish/vendor_completions.d/caxton.fish)
    local file
    for file in "${completions[@]}"; do
        [ -s "/usr/share/$file" ] || fail "there is no /usr/share/$file"
    done
}

check doctor_finds_no_problem 300
doctor_finds_no_problem() {
    caxton doctor --help >/dev/null 2>&1 || fail 'there is no caxton doctor'
    caxton doctor || fail "as root: $(caxton doctor | tail -n 1)"
    as_member caxton doctor || fail "as a member: $(as_member caxton doctor | tail -n 1)"
}
