# shellcheck shell=bash disable=SC2154
# Checks the drop directory with a good package, a corrupt one and an incomplete one.

# quarantined NAME: succeeds if the package is in the quarantine with its reason.
quarantined() {
    [ -s "$drop/quarantine/$1.model.tar.zst.reason" ] && [ -e "$drop/quarantine/$1.model.tar.zst" ]
}

check dropped_package_is_served 300
dropped_package_is_served() {
    unknown small || fail 'small is installed already'
    local since
    since=$(now)
    drop_package small
    until_answers small
    until_event "$since" package-accepted small
}

check model_files_have_fs_verity 60
model_files_have_fs_verity() {
    caxton status --json | jq -e '.store.file_system == "ext4" and .store.verity' ||
        fail "$(caxton status)"
    find /var/lib -path '*/models/small@*/record.json' -exec grep -l '"verity"' {} + ||
        fail 'no record has a digest of the kernel'
}

check corrupt_package_is_quarantined 300
corrupt_package_is_quarantined() {
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
    answers small || fail 'small does not answer any more'
}

check incomplete_package_waits_for_the_rest 300
incomplete_package_waits_for_the_rest() {
    local from=$payload/models/other.model.tar.zst to=$drop/other.model.tar.zst half since
    half=$(($(stat --format=%s "$from") / 2))
    since=$(now)
    head --bytes="$half" "$from" >"$to"
    until_event "$since" package-incomplete other.model.tar.zst
    unknown other || fail 'the incomplete package is served'
    if quarantined other; then fail 'the incomplete package was quarantined at once'; fi
    tail --bytes=+"$((half + 1))" "$from" >>"$to"
    until_answers other
}

check model_is_removed_with_its_package 300
model_is_removed_with_its_package() {
    rm "$drop/other.model.tar.zst"
    until_true 'the removal of other' unknown other
}

check package_of_a_model_is_served_until_it_is_removed 420
package_of_a_model_is_served_until_it_is_removed() {
    unknown multilingual || fail 'multilingual is installed already'
    dpkg --install "$payload"/optional/caxton-model-multilingual_*_all.deb
    until_answers multilingual
    equal 'its origin' bundled "$(caxton status --json | jq -r '.packages[] | select(.id == "multilingual").origin')"
    dpkg --remove caxton-model-multilingual
    systemctl restart caxton
    until_answers bundled-mini
    until_true 'the removal of multilingual' unknown multilingual
}

check member_cannot_write_to_drop_directory 300
member_cannot_write_to_drop_directory() {
    refused as_member touch "$drop/of-a-member"
    refused as_member touch "$store/of-a-member"
}
