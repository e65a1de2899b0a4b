//! Preloads models before they are requested.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::base::errors::chain;
use crate::config::Settings;
use crate::models::ManagerHandle;
use crate::telemetry::log::Message;

/// Longest delay of the first connection and of READY=1 while the bundled default model is unpacked
/// and tested. It applies only if the store has no default model.
const FIRST_TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits until the default model `is_there`, until [`FIRST_TEST_TIMEOUT`] has passed, or until the
/// daemon is `stopping`. Returns at once if the store has the model.
///
/// Meanwhile, clients wait in the queue of the socket. Otherwise a client that connects before the
/// first start has finished would get an error because the model is missing.
pub(super) async fn wait_for_default(is_there: CancellationToken, stopping: CancellationToken) {
    tokio::select! {
        () = is_there.cancelled() => {}
        () = stopping.cancelled() => {}
        // The ingester continues: the model is loaded when its self-test has passed.
        () = tokio::time::sleep(FIRST_TEST_TIMEOUT) => {}
    }
}

/// Loads the default model when the future `there` is ready.
pub(super) async fn load_default(handle: ManagerHandle, there: impl Future<Output = ()>) {
    there.await;
    let name = handle.default_model();
    preload(handle, name).await;
}

/// Returns the names of the models that `settings` preload.
pub(super) fn names(settings: &Settings) -> BTreeSet<String> {
    let models = settings.models.iter().filter(|(_, model)| model.preload);
    let listed = settings.memory.preload_models.iter();
    listed.chain(models.map(|(name, _)| name)).cloned().collect()
}

/// Loads a model before it is requested. Errors are logged here. A later request tries again and
/// gets the error.
pub(super) async fn preload(handle: ManagerHandle, name: String) {
    if let Err(error) = handle.lease(Some(&name)).await {
        tracing::error!(
            name: Message::ModelFailed.name(),
            model = name, error = chain(&error),
            "cannot preload the model"
        );
    }
}
