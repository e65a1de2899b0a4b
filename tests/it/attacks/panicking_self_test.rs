//! Attack: a post-processor contradicts itself, so that the tokenizers library panicked in the
//! self-test. The package was not refused, and its test was repeated without end.

use caxton::telemetry::log::Message;
use serde_json::{Value, json};

use crate::support::packages::{file_name, stored, until_looked, until_staging_is_empty};
use crate::support::tokenizers::tokenizer_refused;
use crate::support::{Root, is_event};

#[test]
fn contradictory_post_processor_is_rejected_and_not_retried() {
    let daemon = Root::new().start();
    let reason = tokenizer_refused(&daemon, "panic", |tokenizer: &mut Value| {
        // One token has no id.
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [], "tokens": ["[CLS]"]}},
        });
    });
    let expected = "the special token \"[CLS]\" of the post-processor has 0 ids and 1 tokens";
    assert!(reason.contains(expected), "{reason}");
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    // Later scans of the drop directory find no file to retry.
    until_looked(&daemon, "next");
    let records: Vec<_> =
        daemon.log().into_iter().filter(|line| line.contains(&file_name("panic"))).collect();
    assert!(records.len() == 1 && is_event(&records[0], Message::PackageRefused), "{records:?}");

    until_staging_is_empty(&daemon);
    let root = daemon.stop();
    assert!(!stored(&root).iter().any(|name| name.starts_with("panic@")), "{:?}", stored(&root));
    // A restart does not find one either.
    let daemon = root.start();
    until_looked(&daemon, "after");
    assert!(!daemon.log().iter().any(|line| line.contains("panic")), "{:?}", daemon.log());
    daemon.stop();
}
