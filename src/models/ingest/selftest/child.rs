//! Runs as the child process of a self-test: confines itself, tests one entry, and writes the
//! answer.
//!
//! The process has one thread until it is confined.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use super::{ARGUMENT, ChildTask, TestOutcome, confine};
use crate::base::errors::chain;
use crate::engine::{EngineError, EngineOptions};
use crate::models::ingest::install::InstallError;
use crate::models::residency::load::{self, LoadError};
use crate::package::{EntryKey, Store, StoreError};

/// Path of the store's directory, which is open as standard input.
const STORE: &str = "/proc/self/fd/0";

/// Runs the self-test and returns the exit code, if the program was started for a self-test.
/// Returns `None` otherwise.
///
/// Must be called first in `main`, before a second thread exists.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let answer = match prepare(arguments) {
        Ok((key, options)) => match Store::open_single(Path::new(STORE), &key) {
            Ok(store) => test(&store, &key, options),
            Err(reason) => TestOutcome::Corrupt(reason),
        },
        Err(reason) => TestOutcome::NotTested(reason),
    };
    let written = serde_json::to_vec(&answer).map_err(io::Error::from).and_then(|mut line| {
        line.push(b'\n');
        let mut out = io::stdout().lock();
        out.write_all(&line)?;
        out.flush()
    });
    Some(if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Parses the task and drops all rights that the test does not need.
fn prepare(
    mut arguments: impl Iterator<Item = OsString>,
) -> Result<(EntryKey, EngineOptions), String> {
    let task = arguments.next().unwrap_or_default();
    let task: ChildTask =
        serde_json::from_slice(task.as_encoded_bytes()).map_err(|error| chain(&error))?;
    let key: EntryKey = task.key.parse().map_err(|error| chain(&error))?;
    let precision = task.precision.parse().map_err(|error| chain(&error))?;
    confine::confine(&task, &Store::directory_of(Path::new(STORE), &key))?;
    let options =
        EngineOptions { threads: task.threads, batch_tokens: task.batch_tokens, precision };
    Ok((key, options))
}

/// Loads the model and compares its vector with the one of the manifest.
pub(super) fn test(store: &Store, key: &EntryKey, options: EngineOptions) -> TestOutcome {
    let tested = panic::catch_unwind(AssertUnwindSafe(|| {
        let began = Instant::now();
        let (manifest, model) = load::load_from::<InstallError>(store, key, options)?;
        let load = began.elapsed();
        let cosine = load::self_test(&manifest, &model)?;
        Ok::<_, InstallError>(TestOutcome::Passed {
            cosine,
            precision: model.embedder.report().precision.name().to_owned(),
            load_us: u64::try_from(load.as_micros()).unwrap_or(u64::MAX),
            weight_bytes: model.embedder.weight_bytes(),
        })
    }));
    match tested {
        Err(_panic) => TestOutcome::Panicked,
        Ok(Ok(passed)) => passed,
        Ok(Err(InstallError::Load(LoadError::SelfTest { cosine, precision }))) => {
            // JSON cannot represent NaN or infinity.
            let cosine = if cosine.is_finite() { cosine } else { 0.0 };
            TestOutcome::WrongVector { cosine, precision: precision.name().to_owned() }
        }
        Ok(Err(InstallError::Load(error @ LoadError::Engine(EngineError::Threads { .. })))) => {
            TestOutcome::NotTested(chain(&error))
        }
        Ok(Err(InstallError::Load(error))) => TestOutcome::Refused(chain(&error)),
        Ok(Err(InstallError::Store(StoreError::Corrupt { reason, .. }))) => {
            TestOutcome::Corrupt(reason)
        }
        Ok(Err(error)) => TestOutcome::NotTested(chain(&error)),
    }
}
