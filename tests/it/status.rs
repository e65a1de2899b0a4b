//! Tests of the status endpoint: models, health, and the daemon itself.

use serde_json::json;

use crate::support::{Root, TINY_DIMENSIONS};

#[test]
fn models_health_and_status_are_shown() {
    let daemon = Root::with_other().start();
    let models = daemon.get("/v1/models").json();
    assert_eq!(models["object"], "list");
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["bundled-mini", "other"]);
    let model = daemon.get("/v1/models/other").json();
    assert_eq!(model, models["data"][1]);
    assert_eq!(daemon.get("/v1/models/other@2").json(), model);
    assert_eq!(daemon.get("/v1/models/%6fther").json(), model);
    assert_eq!(model["object"], "model");
    assert_eq!(model["dimensions"], TINY_DIMENSIONS);
    assert_eq!(model["prompts"], json!(["passage", "query"]));
    assert!(model["created"].as_u64().unwrap() > 1_600_000_000);

    for path in ["/livez", "/readyz"] {
        let answer = daemon.get(path);
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"ok\n".as_slice()), "{path}");
    }

    let status = daemon.status();
    assert_eq!(status["ready"], true);
    assert_eq!(status["pid"], daemon.pid());
    assert_eq!(status["default_model"], "bundled-mini");
    assert_eq!(status["configuration"]["files"], json!([daemon.config()]));
    assert_eq!(status["configuration"]["problems"], json!([]));
    let residencies: Vec<_> =
        status["packages"].as_array().unwrap().iter().map(|p| &p["residency"]).collect();
    assert_eq!(residencies, ["resident", "absent"]);
    daemon.until("the first scan", || {
        let status = daemon.status();
        assert_eq!((&status["intake"], &status["intake_omitted"]), (&json!([]), &json!(0)));
        let directories = status["package_directories"].as_array().unwrap().clone();
        let states = Vec::from_iter(directories.iter().map(|directory| &directory["state"]));
        (states == ["present", "present"]).then_some(())
    });
    assert!(status["resident_memory_bytes"].as_u64().unwrap() > 1 << 20);
    daemon.stop();
}
