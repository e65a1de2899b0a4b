//! Takes memory samples on a signal of the source, on request and at intervals, judges them, and
//! publishes the readings.
//!
//! The monitor owns the source and the judge. It takes no action on a level; the receivers of the
//! readings do.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::level::{LevelTracker, PressureLevel, Thresholds};
use super::sample::{GroupLimit, Sample, SampleReader};
use super::source::PressureSource;
use crate::base::units::Bytes;
use crate::telemetry::log::Message;

/// Interval of samples while memory is short, so that the end of the shortage is noticed.
const SHORTAGE_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of samples otherwise. Memory can run low without any pressure that a source would
/// report.
const NORMAL_INTERVAL: Duration = Duration::from_secs(10);
/// Name of the configured limit, used where other limits name their file.
const CONFIGURED: &str = "memory.memory_limit";

/// Sampler of memory, with an optional limit of the configuration besides those of the kernel.
/// Clones share the reader and the limit.
#[derive(Clone, Debug)]
pub struct MemorySampler(Arc<SamplerInner>);

#[derive(Debug)]
struct SamplerInner {
    reader: Mutex<SampleReader>,
    limit: Mutex<Option<Bytes>>,
    wake: Notify,
}

impl MemorySampler {
    /// Creates a sampler for the kernel files below `root` (`/`, except in tests) with a `limit` on
    /// this process.
    pub fn new(root: &Path, limit: Option<Bytes>) -> Self {
        Self(Arc::new(SamplerInner {
            reader: Mutex::new(SampleReader::new(root)),
            limit: Mutex::new(limit),
            wake: Notify::new(),
        }))
    }

    /// Takes a sample and adds the configured limit to its limits. Blocks as
    /// [`SampleReader::sample`] does.
    pub fn sample(&self) -> Sample {
        let mut reader = self.0.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sample = reader.sample();
        drop(reader);
        if let Some(bytes) = self.limit() {
            let unreclaimable = sample.process;
            sample.limits.push(GroupLimit {
                bytes,
                unreclaimable,
                file: PathBuf::from(CONFIGURED),
            });
        }
        sample
    }

    /// Returns the configured limit on this process.
    pub fn limit(&self) -> Option<Bytes> {
        *self.0.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes [`Self::limit`] and wakes the monitor.
    pub fn set_limit(&self, limit: Option<Bytes>) {
        *self.0.limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
        self.wake();
    }

    /// Wakes the monitor, which takes a sample at once.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }
}

/// The last sample and its judgement.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Instant before the measurement: the effect of later actions is not in the sample.
    pub at: Instant,
    /// The sample.
    pub sample: Sample,
    /// The level, which falls slowly.
    pub level: PressureLevel,
    /// Level that this sample alone justifies.
    pub instant_level: PressureLevel,
    /// Last cause of the level.
    pub cause: Option<String>,
    /// Name of the source of pressure signals.
    pub source: String,
}

impl Default for Reading {
    /// Returns the reading before the first sample.
    fn default() -> Self {
        Self {
            at: Instant::now(),
            sample: Sample::default(),
            level: PressureLevel::Normal,
            instant_level: PressureLevel::Normal,
            cause: None,
            source: "nothing yet".to_owned(),
        }
    }
}

/// Publishes `readings` until `cancel`.
pub async fn monitor(
    sampler: MemorySampler,
    mut source: PressureSource,
    mut thresholds: watch::Receiver<Thresholds>,
    readings: watch::Sender<Reading>,
    cancel: CancellationToken,
) {
    let mut judge = LevelTracker::new();
    loop {
        let at = Instant::now();
        let sampling = sampler.clone();
        // Reading can block while the kernel reclaims memory.
        match tokio::task::spawn_blocking(move || sampling.sample()).await {
            Ok(sample) => {
                let limits = *thresholds.borrow_and_update();
                let level = judge.update(&sample, &limits, Instant::now());
                readings.send_replace(Reading {
                    at,
                    sample,
                    level,
                    instant_level: judge.instant_level(),
                    cause: judge.cause().map(ToString::to_string),
                    source: source.to_string(),
                });
            }
            Err(error) => {
                tracing::error!(
                    name: Message::InternalFault.name(),
                    %error,
                    "cannot take a memory sample"
                )
            }
        }
        let wait = if readings.borrow().level > PressureLevel::Normal {
            SHORTAGE_INTERVAL
        } else {
            NORMAL_INTERVAL
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = source.next() => {}
            () = sampler.0.wake.notified() => {}
            Ok(()) = thresholds.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::base::units::Percent;
    use crate::memory::source::PressureEnvironment;

    #[tokio::test]
    async fn lowered_limit_takes_effect_immediately() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let status = "RssAnon:\t  102400 kB\nRssShmem:\t0 kB\nRssFile:\t0 kB\nVmSwap:\t0 kB\n";
        fs::write(root.path().join("proc/self/status"), status).unwrap();
        let sampler = MemorySampler::new(root.path(), None);
        let source = PressureSource::open(root.path(), PressureEnvironment::default());
        let percent = |text: &str| text.parse::<Percent>().unwrap();
        let (_thresholds, following) = watch::channel(Thresholds {
            moderate: percent("75%"),
            high: percent("85%"),
            critical: percent("95%"),
            min_free: Bytes(0),
            quiet: Duration::from_secs(10),
        });
        let (published, mut readings) = watch::channel(Reading::default());
        let cancel = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(monitor(sampler.clone(), source, following, published, cancel.clone()));
        readings.changed().await.unwrap();
        assert_eq!(readings.borrow_and_update().level, PressureLevel::Normal);

        sampler.set_limit(Some(Bytes::mib(110)));
        let reading =
            readings.wait_for(|reading| reading.level > PressureLevel::Normal).await.unwrap();
        assert_eq!(reading.instant_level, PressureLevel::High);
        let cause = reading.cause.clone().unwrap();
        assert!(cause.contains("100.0 MiB of the 110.0 MiB of memory.memory_limit"), "{cause}");
        drop(reading);
        cancel.cancel();
        tasks.join_next().await.unwrap().unwrap();
    }
}
