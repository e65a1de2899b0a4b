//! Models that are loaded before anybody asks for them.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::errors::chain;
use crate::log::Message;
use crate::models::Handle;

/// How long the first connection and READY=1 wait for the bundled default model to be unpacked and tested when the store
/// has no default model.
const FIRST_TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits until the default model `is_there`, which it is at once when the store has it; for at most
/// [`FIRST_TEST_TIMEOUT`], and not when the daemon is `stopping`.
///
/// A client that came before the first start waits in the queue of the socket meanwhile: it would be told that there is no
/// model.
pub(super) async fn default_is_there(is_there: CancellationToken, stopping: CancellationToken) {
    tokio::select! {
        () = is_there.cancelled() => {}
        () = stopping.cancelled() => {}
        // The intake goes on: the model is loaded when its self-test has passed.
        () = tokio::time::sleep(FIRST_TEST_TIMEOUT) => {}
    }
}

/// Loads the default model when `there` has ended.
pub(super) async fn load_default(handle: Handle, there: impl Future<Output = ()>) {
    there.await;
    let name = handle.default_model();
    load_ahead(handle, name).await;
}

/// Loads a model before anybody asks. What goes wrong is logged here; a request will see it again.
pub(super) async fn load_ahead(handle: Handle, name: String) {
    if let Err(error) = handle.lease(Some(&name)).await {
        tracing::error!(
            name: Message::ModelFailed.name(),
            model = name, error = chain(&error),
            "cannot be loaded ahead"
        );
    }
}
