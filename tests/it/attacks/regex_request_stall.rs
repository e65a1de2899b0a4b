//! Attack: a regular expression of a package is fast for the text of its self-test, but takes a
//! second for one word of a user's request.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::packages::ask;
use crate::support::tokenizers::{HANG, split_by, tokenizer_refused};
use crate::support::{BOUND, Root};

#[test]
fn backtracking_regex_cannot_stall_requests() {
    let daemon = Root::new().start();
    for (id, expression) in [("stall", HANG.to_owned()), ("nested", "(a*)*b".to_owned())] {
        let reason = tokenizer_refused(&daemon, id, |tokenizer: &mut Value| {
            tokenizer["pre_tokenizer"] = split_by(&expression);
        });
        assert!(reason.contains("is not supported"), "{reason}");
        assert_eq!(ask(&daemon, id).status, 404);
    }
    let plain = "the quick brown fox jumps over the lazy dog ".repeat(20);
    let started = Instant::now();
    for text in [&plain, &"a".repeat(880), &" ".repeat(880), &"<mask>".repeat(140)] {
        assert_eq!(daemon.embed(json!(text)).len(), 1);
        assert_eq!(daemon.get("/livez").status, 200);
    }
    // One of these texts took a minute before.
    assert!(started.elapsed() < BOUND.min(Duration::from_secs(10)));
    daemon.stop();
}
