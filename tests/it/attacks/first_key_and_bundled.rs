//! Attack: the first key disables the bundled model. An administrator who follows the manual gets a
//! daemon that never becomes ready.

use std::fs;

use serde_json::json;

use crate::support::packages::{entry, file_name, flip_a_bit_of, until_quarantined};
use crate::support::signing::Signer;
use crate::support::{Root, pack};

#[test]
fn bundled_packages_need_no_signature() {
    let root = Root::new();
    Signer::new().trust(&root, "site.pub", "");
    let daemon = root.start();
    assert_eq!(daemon.get("/readyz").status, 200);
    daemon.embed(json!("a text"));
    assert_eq!(daemon.package("bundled-mini")["signed_by"], json!(null));
    assert_eq!(daemon.status()["unsigned"], json!([]));
    // Every other package needs a signature.
    let package = pack("tiny-bert-mean", "m", "1");
    let answer = daemon.connect().request("POST", "/api/packages", &[], &package);
    assert_eq!((answer.status, &answer.error()["code"]), (400, &json!("signature_refused")));

    // An upgrade of the system brings another version.
    let root = daemon.stop();
    let newer = pack("tiny-bert-mean", "bundled-mini", "2");
    fs::write(root.bundled().join("bundled-mini-1.model.tar.zst"), newer).unwrap();
    let daemon = root.start();
    assert_eq!(daemon.package("bundled-mini")["version"], "2");

    // A damaged entry is repaired from the bundled directory.
    let root = daemon.stop();
    flip_a_bit_of(&entry(&root, "bundled-mini").join("model.safetensors"));
    let daemon = root.start();
    daemon.until("the bundled model to be right again", || {
        let answer = daemon.embeddings(&json!({ "input": "a text" }));
        (answer.status == 200).then_some(())
    });
    // A signature by an unknown key does not help a stranger's package either.
    Signer::new().drop(&daemon, "strange", &package);
    assert!(until_quarantined(&daemon, "strange").contains("not one of the configured keys"));
    assert!(!daemon.drop_directory().join(file_name("strange")).exists());
    daemon.stop();
}
