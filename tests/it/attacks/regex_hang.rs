//! Attack: a regular expression of a package takes hours for the text of its own self-test.

use serde_json::{Value, json};

use crate::support::Root;
use crate::support::packages::until_looked;
use crate::support::tokenizers::{HANG, split_by, tokenizer_refused};

#[test]
fn unsupported_regex_is_named_in_rejection() {
    let daemon = Root::new().start();
    let reason = tokenizer_refused(&daemon, "hang", |tokenizer: &mut Value| {
        tokenizer["pre_tokenizer"] = split_by(&HANG.repeat(60));
    });
    let expected = "the pre-tokenizer Split with the regular expression \"(?:(([a-z ]|[a-z ]){18})";
    assert!(reason.contains(expected), "{reason}");
    assert!(reason.len() < 1000, "{reason}");
    // The next package is installed.
    until_looked(&daemon, "next");
    let root = daemon.stop();
    let daemon = root.start();
    assert_eq!(daemon.embed(json!("a text")).len(), 1);
    daemon.stop();
}
