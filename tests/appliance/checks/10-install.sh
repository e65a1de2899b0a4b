# shellcheck shell=bash disable=SC2154
# Checks the way from a bare machine to the first vector: one command for each step, and no edited file.

essential the_package_is_installed_without_a_network 720
the_package_is_installed_without_a_network() {
    cd "$payload/packages" || fail "there is no second disk"
    apt-get install -y ./caxton_*.deb
    equal 'what dpkg says of the files' '' "$(dpkg --verify caxton)"
    getent group caxton || fail 'there is no group caxton'
    useradd --groups caxton member
    useradd outsider
    equal 'caxton.service' enabled "$(systemctl is-enabled caxton.service)"
    equal 'caxton.socket' enabled "$(systemctl is-enabled caxton.socket)"
}

essential one_command_starts_it 360
one_command_starts_it() {
    systemctl start caxton
    is_active || fail 'it is not active'
    equal 'restarts' 0 "$(property NRestarts)"
    local start ready
    start=$(property ExecMainStartTimestampMonotonic)
    ready=$(property ActiveEnterTimestampMonotonic)
    note "start to READY $(((ready - start) / 1000)) ms, emulated"
    equal 'the socket' 'caxton 660' "$(stat --format='%G %a' "$socket")"
}

check one_command_embeds 300
one_command_embeds() {
    as_member caxton embed 'The pump runs hot.' >"$state/vector"
    equal 'lines and dimensions' '1 384' "$(wc --lines --words <"$state/vector" | tr -s ' ' | sed 's/^ //')"
}

check the_vectors_are_those_of_sentence_transformers 360
the_vectors_are_those_of_sentence_transformers() {
    clients --seconds 5 --clients 2 --model bundled-mini=0.998
}

check an_outsider_cannot_open_the_socket 300
an_outsider_cannot_open_the_socket() {
    local open='import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])'
    as_member python3 -c "$open" "$socket"
    if as_outsider python3 -c "$open" "$socket" 2>"$state/refusal"; then
        fail 'an outsider has opened it'
    fi
    grep -q '^PermissionError: \[Errno 13\]' "$state/refusal" || fail "not EACCES: $(<"$state/refusal")"
}

check a_member_is_no_administrator 300
a_member_is_no_administrator() {
    local flush=(curl --silent --output /dev/fd/2 --write-out '%{http_code}' --unix-socket "$socket" --request POST
        http://caxton/api/memory/flush)
    equal 'a member' 403 "$(as_member "${flush[@]}")"
    equal 'root' 200 "$("${flush[@]}")"
    until_answers bundled-mini
}

check the_manual_is_there 300
the_manual_is_there() {
    local page
    for page in man1/caxton.1 man8/caxtond.8 man5/caxton.yaml.5 man5/caxton-package.5; do
        zcat "/usr/share/man/$page.gz" | grep -q '^\.TH' || fail "$page is no manual page"
    done
    local completions=(bash-completion/completions/caxton zsh/vendor-completions/_caxton
        fish/vendor_completions.d/caxton.fish)
    local file
    for file in "${completions[@]}"; do
        [ -s "/usr/share/$file" ] || fail "there is no /usr/share/$file"
    done
}

check the_doctor_finds_nothing 300
the_doctor_finds_nothing() {
    caxton doctor --help >/dev/null 2>&1 || fail 'there is no caxton doctor'
    caxton doctor || fail "as root: $(caxton doctor | tail -n 1)"
    as_member caxton doctor || fail "as a member: $(as_member caxton doctor | tail -n 1)"
}
