# shellcheck shell=bash disable=SC2154
# Checks the drop directory with a good package, a corrupt one and an incomplete one.

# quarantined NAME: succeeds if the package is in the quarantine with its reason.
quarantined() {
    [ -s "$drop/quarantine/$1.model.tar.zst.reason" ] && [ -e "$drop/quarantine/$1.model.tar.zst" ]
}

check a_package_is_served_when_it_is_dropped 300
a_package_is_served_when_it_is_dropped() {
    unknown small || fail 'it is there already'
    local since
    since=$(now)
    drop_package small
    until_answers small
    until_event "$since" package-accepted small
}

check the_kernel_checks_the_files_of_models 60
the_kernel_checks_the_files_of_models() {
    caxton status --json | jq -e '.store.file_system == "ext4" and .store.verity' ||
        fail "$(caxton status)"
    find /var/lib -path '*/models/small@*/record.json' -exec grep -l '"verity"' {} + ||
        fail 'no digest of the kernel is recorded'
}

check a_corrupt_package_is_put_into_quarantine 300
a_corrupt_package_is_put_into_quarantine() {
    local copy=$state/corrupt.model.tar.zst half
    cp "$payload/models/small.model.tar.zst" "$copy"
    half=$(($(stat --format=%s "$copy") / 2))
    printf '\0\1\2\3' | dd of="$copy" bs=1 seek="$half" conv=notrunc status=none
    local since
    since=$(now)
    mv "$copy" "$drop/"
    until_true 'corrupt in quarantine' quarantined corrupt
    cat "$drop/quarantine/corrupt.model.tar.zst.reason"
    until_event "$since" package-refused corrupt.model.tar.zst
    equal 'its priority' 3 "$(records "$since" package-refused | jq -r .PRIORITY)"
    answers small || fail 'the good one has gone'
}

check half_a_package_is_waited_for 300
half_a_package_is_waited_for() {
    local from=$payload/models/other.model.tar.zst to=$drop/other.model.tar.zst half since
    half=$(($(stat --format=%s "$from") / 2))
    since=$(now)
    head --bytes="$half" "$from" >"$to"
    until_event "$since" package-incomplete other.model.tar.zst
    unknown other || fail 'half of it is served'
    if quarantined other; then fail 'it was put into quarantine at once'; fi
    tail --bytes=+"$((half + 1))" "$from" >>"$to"
    until_answers other
}

check a_model_leaves_with_its_package 300
a_model_leaves_with_its_package() {
    rm "$drop/other.model.tar.zst"
    until_true 'other to leave' unknown other
}

check a_member_cannot_write_to_the_drop_directory 300
a_member_cannot_write_to_the_drop_directory() {
    refused as_member touch "$drop/of-a-member"
    refused as_member touch "$store/of-a-member"
}
