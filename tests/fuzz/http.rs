//! Fuzzes the bodies of requests to all routes that take JSON: each is answered, without a panic
//! and not with 500.
//!
//! The first byte chooses the route, the rest is the body. The complete router runs, with the tiny
//! model in memory and without a socket.
#![no_main]

use std::future::poll_fn;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Instant, SystemTime};

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use axum::{Extension, Router};
use caxton::api::{self, App, ConnectionId, PeerCredentials, Streams, Tenants};
use caxton::config::Settings;
use caxton::engine::{EngineOptions, Precision};
use caxton::telemetry::events::Events;
use caxton::memory::monitor::{MemorySampler, Reading};
use caxton::telemetry::metrics::Metrics;
use caxton::models::ingest::install::{Installer, InstallRules};
use caxton::models::ingest::selftest::SelfTester;
use caxton::models::usage::Usage;
use caxton::models::{ManagerHandle, ManagerParts};
use caxton::package::{UnpackLimits, Origin, PackRequest, Store, pack};
use caxton::service::{Budget, EmbeddingService, Permits};
use caxton::base::units::Bytes;
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// Fuzzed routes. Each has seeds in `corpus/http`, whose first byte is `A` for the first route, and
/// so on.
const ROUTES: [&str; 17] = [
    "/v1/embeddings",
    "/v1/rank",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/embed",
    "/embed_all",
    "/embed_sparse",
    "/predict",
    "/similarity",
    "/rerank",
    "/tokenize",
    "/decode",
    "/v1/rerank",
    "/v2/embed",
    "/api/pull",
    "/api/generate",
];
const MODEL: &str = "tiny";

struct Appliance {
    runtime: Runtime,
    router: Router,
    _store: TempDir,
}

static APPLIANCE: LazyLock<Appliance> = LazyLock::new(|| {
    let appliance = Appliance::new();
    let (status, answer) = appliance.ask(ROUTES[0], br#"{"input": "a text"}"#);
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer));
    appliance
});

impl Appliance {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::volatile(place.path()).unwrap());
        install(&store);
        let mut settings = Settings::default();
        settings.memory.embedding_model = MODEL.to_owned();
        let options = EngineOptions { threads: 1, batch_tokens: 64, precision: Precision::F32 };
        let rules = watch::channel(InstallRules::from(&settings)).1;
        let initial_settings = Arc::new(settings);
        let settings = watch::channel(Arc::clone(&initial_settings)).1;
        let readings = watch::channel(Reading::default()).1;
        let (metrics, events) = (Metrics::new(api::ROUTES), Events::new(SystemTime::now()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let entered = runtime.enter();
        let parts = ManagerParts {
            store,
            options,
            settings: settings.clone(),
            sampler: MemorySampler::new(Path::new("/"), None),
            readings: readings.clone(),
            usage: Arc::new(Usage::open(&place.path().join("usage.json"))),
            metrics: metrics.clone(),
            events: events.clone(),
        };
        let stop = CancellationToken::new();
        let (handle, manager) = ManagerHandle::new(parts, stop.clone());
        runtime.spawn(manager);
        let app = App::from(api::AppParts {
            installer: Installer::new(handle.clone(), rules, options, SelfTester::without_stop()),
            service: EmbeddingService::new(handle.clone(), Permits::new(1), metrics.clone()),
            handle,
            tenants: Arc::new(Tenants::new(settings.clone())),
            budget: Budget::new(readings, settings.clone()),
            settings,
            initial_settings,
            configuration: watch::channel(api::wire::Configuration::default()).1,
            intake: watch::channel(Arc::default()).1,
            sandbox: api::wire::sandbox::Sandbox::default(),
            started: Instant::now(),
            threads: options.threads,
            metrics,
            events,
            streams: Streams::default(),
            draining: stop,
        });
        let peer = PeerCredentials { uid: 1000, gid: 1000, pid: None };
        let router = api::router(app).layer(Extension(peer)).layer(Extension(ConnectionId::next()));
        drop(entered);
        Self { runtime, router, _store: place }
    }

    /// Returns the status and the body of the answer to `body`.
    fn ask(&self, route: &str, body: &[u8]) -> (StatusCode, Vec<u8>) {
        let request = Request::post(route)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_vec()))
            .unwrap();
        let mut router = self.router.clone();
        self.runtime.block_on(async {
            poll_fn(|context| Service::<Request<Body>>::poll_ready(&mut router, context))
                .await
                .unwrap();
            let response = router.call(request).await.unwrap();
            let status = response.status();
            (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
        })
    }
}

/// Installs the tiny model as if its self-test had passed.
fn install(store: &Store) {
    let request = PackRequest {
        source: Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/tiny-bert-mean"),
        id: Some(MODEL.parse().unwrap()),
        matryoshka_dimensions: Some(vec![4, 8]),
        ..PackRequest::default()
    };
    let mut package = Vec::new();
    // Use any vector, because no engine runs here to compute that of the self-test.
    pack(&request, &|_, _| Ok(vec![0.125; 64]), &|_, _| {}, &mut package).unwrap();
    let staged = store.stage(package.as_slice(), &UnpackLimits::for_size(Bytes::mib(64))).unwrap();
    let quota = InstallRules::from(&Settings::default()).quota;
    let installed = store.install(staged, Origin::Installed, quota, |_| true).unwrap();
    store.activate(&installed.entry.key, quota, |_| true).unwrap();
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, body)) = bytes.split_first() else { return };
    let route = ROUTES[usize::from(first.wrapping_sub(b'A')) % ROUTES.len()];
    let (status, answer) = APPLIANCE.ask(route, body);
    let told = String::from_utf8_lossy(&answer);
    let is_expected = !status.is_server_error() || status == StatusCode::SERVICE_UNAVAILABLE;
    assert!(is_expected, "{route}: {status} {told}");
    if !status.is_success() {
        assert!(serde_json::from_slice::<serde_json::Value>(&answer).is_ok(), "{route}: {told}");
        assert!(answer.len() < 4096, "{route}: {} bytes", answer.len());
    }
});
