//! The monitor: takes a sample when a source speaks, when somebody asks and once in a while, judges it, and tells.
//!
//! Owns the source and the judge. It decides nothing: what a level means is the business of who follows the readings.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::level::{Judge, Level, Thresholds};
use super::sample::{Limit, Reader, Sample};
use super::source::Source;
use crate::log::Message;
use crate::units::Bytes;

/// How often a sample is taken while memory is short, so that the end of the shortage is seen.
const SHORT: Duration = Duration::from_secs(1);
/// How often otherwise: what is left may go without any pressure to hear of.
const ENOUGH: Duration = Duration::from_secs(10);
/// What a limit of the configuration is called where other limits name their file.
const CONFIGURED: &str = "memory.memory_limit";

/// Measures memory, with a limit of this daemon's own beside those of the kernel. Clones measure together.
#[derive(Clone, Debug)]
pub struct Gauge(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reader: Mutex<Reader>,
    limit: Mutex<Option<Bytes>>,
    asked: Notify,
}

impl Gauge {
    /// A gauge of the files below `root`, which is `/` but in tests, and a limit on this process.
    pub fn new(root: &Path, limit: Option<Bytes>) -> Self {
        Self(Arc::new(Inner {
            reader: Mutex::new(Reader::new(root)),
            limit: Mutex::new(limit),
            asked: Notify::new(),
        }))
    }

    /// What is so now; the configured limit is one of the limits. Blocks as [`Reader::sample`] does.
    pub fn sample(&self) -> Sample {
        let mut reader = self.0.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sample = reader.sample();
        drop(reader);
        if let Some(bytes) = self.limit() {
            let unreclaimable = sample.process;
            sample.limits.push(Limit { bytes, unreclaimable, file: PathBuf::from(CONFIGURED) });
        }
        sample
    }

    /// The limit on this process beside those of the kernel.
    pub fn limit(&self) -> Option<Bytes> {
        *self.0.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes [`Self::limit`], and has the monitor look at once.
    pub fn set_limit(&self, limit: Option<Bytes>) {
        *self.0.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
        self.look();
    }

    /// Has the monitor take a sample now.
    pub fn look(&self) {
        self.0.asked.notify_one();
    }
}

/// What was measured and judged last.
#[derive(Clone, Debug)]
pub struct Reading {
    /// When it was begun: what was done after that is not in it.
    pub at: Instant,
    /// What was measured.
    pub sample: Sample,
    /// The level, which falls slowly.
    pub level: Level,
    /// What this sample alone is pressing for.
    pub pressing: Level,
    /// What last was a reason for the level.
    pub cause: Option<String>,
    /// Where pressure is heard.
    pub source: String,
}

impl Default for Reading {
    /// Before the first sample.
    fn default() -> Self {
        Self {
            at: Instant::now(),
            sample: Sample::default(),
            level: Level::Normal,
            pressing: Level::Normal,
            cause: None,
            source: "nothing yet".to_owned(),
        }
    }
}

/// Tells `readings` until `cancel`.
pub async fn monitor(
    gauge: Gauge,
    mut source: Source,
    mut thresholds: watch::Receiver<Thresholds>,
    readings: watch::Sender<Reading>,
    cancel: CancellationToken,
) {
    let mut judge = Judge::new();
    loop {
        let at = Instant::now();
        let measuring = gauge.clone();
        // Reading may wait while the kernel reclaims.
        match tokio::task::spawn_blocking(move || measuring.sample()).await {
            Ok(sample) => {
                let limits = *thresholds.borrow_and_update();
                let level = judge.judge(&sample, &limits, Instant::now());
                readings.send_replace(Reading {
                    at,
                    sample,
                    level,
                    pressing: judge.pressing(),
                    cause: judge.cause().map(ToString::to_string),
                    source: source.to_string(),
                });
            }
            Err(error) => {
                tracing::error!(
                    name: Message::InternalFault.name(),
                    %error,
                    "memory was not measured"
                )
            }
        }
        let wait = if readings.borrow().level > Level::Normal { SHORT } else { ENOUGH };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = source.next() => {}
            () = gauge.0.asked.notified() => {}
            Ok(()) = thresholds.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::memory::source::Environment;
    use crate::units::Percent;

    #[tokio::test]
    async fn a_limit_that_is_lowered_while_it_runs_is_heard_at_once() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let status = "RssAnon:\t  102400 kB\nRssShmem:\t0 kB\nRssFile:\t0 kB\nVmSwap:\t0 kB\n";
        fs::write(root.path().join("proc/self/status"), status).unwrap();
        let gauge = Gauge::new(root.path(), None);
        let source = Source::open(root.path(), Environment::default());
        let percent = |text: &str| text.parse::<Percent>().unwrap();
        let (_thresholds, following) = watch::channel(Thresholds {
            moderate: percent("75%"),
            high: percent("85%"),
            critical: percent("95%"),
            min_free: Bytes(0),
            quiet: Duration::from_secs(10),
        });
        let (told, mut readings) = watch::channel(Reading::default());
        let cancel = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(monitor(gauge.clone(), source, following, told, cancel.clone()));
        readings.changed().await.unwrap();
        assert_eq!(readings.borrow_and_update().level, Level::Normal);

        gauge.set_limit(Some(Bytes::mib(110)));
        let reading = readings.wait_for(|reading| reading.level > Level::Normal).await.unwrap();
        assert_eq!(reading.pressing, Level::High);
        let cause = reading.cause.clone().unwrap();
        assert!(cause.contains("100.0 MiB of the 110.0 MiB of memory.memory_limit"), "{cause}");
        drop(reading);
        cancel.cancel();
        tasks.join_next().await.unwrap().unwrap();
    }
}
