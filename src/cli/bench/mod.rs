//! `caxton bench`: measures the speed of a model on this machine, without a daemon.
//!
//! This module chooses the model and the texts, and prints the report. The measurements are in
//! [`measure`].

mod measure;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;

use super::output::OutputFile;
use super::owner::Owner;
use super::store_access::open_store;
use super::temp_store::{PackageFile, TempStore};
use super::{Connection, NotInstalled, print_json, print_table};
use crate::base::exit::Exit;
use crate::base::units::Bytes;
use crate::config::Settings;
use crate::engine::{EngineError, EngineOptions, LoadedModel, Precision};
use crate::files::FileError;
use crate::models::ingest::install::{InstallError, Installation};
use crate::models::residency::load;
use crate::package::{BoxError, EntryKey, Store};
use measure::{MeasureLength, Throughput};

/// Name of the tensor of `--output`, as in the golden files of the tests.
const TENSOR: &str = "embedding";
/// Time for which single texts are measured, unless `--seconds` is shorter. Measuring continues
/// after it until there are enough samples.
const LATENCY_TIME: Duration = Duration::from_secs(2);

/// Model and texts of the measurement, and its options.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// Package file, or id of an installed model. An id needs a store that no daemon uses.
    #[arg(long, value_name = "PACKAGE|ID")]
    model: PathBuf,
    /// File of texts, with one JSON string in each line.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Precision of the computation [default: embedding.precision of the configuration].
    #[arg(long, value_parser = precisions())]
    precision: Option<Precision>,
    /// Threads of the engine [default: embedding.threads of the configuration].
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    threads: Option<usize>,
    /// Tokens of one pass [default: embedding.batch_tokens of the configuration].
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    batch_tokens: Option<usize>,
    /// Time for rounds over all texts. The last round is finished, and there is at least one.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    seconds: u64,
    /// Number of rounds over all texts, without the other measurements, for emulators and
    /// profilers.
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    rounds: Option<u64>,
    /// Print the report in JSON.
    #[arg(long)]
    json: bool,
    /// Safetensors file for the vectors: tensor "embedding", f32, one row for each text in order.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Returns the parser of `--precision`.
fn precisions() -> impl TypedValueParser<Value = Precision> {
    let values = Precision::ALL.map(|precision| {
        PossibleValue::new(precision.name()).help(match precision {
            Precision::Auto => {
                "Fastest precision on this processor that stays close to f32: bf16, or int8 for a package of integers, or f32"
            }
            Precision::F32 => "Exact",
            Precision::Int8 => "8-bit integers for weights and activations",
            Precision::Bf16 => "bf16 on a processor with AMX or AVX-512 BF16, f32 on others",
        })
    });
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Precision>())
}

/// Reason why the texts cannot be embedded.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    /// A line is not a JSON string.
    #[error(
        "line {line} of {} is not a JSON string; write one JSON string on each line",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// Error of the JSON parser.
        source: BoxError,
    },
    /// The file holds no text.
    #[error("{} contains no texts; write one JSON string on each line", .0.display())]
    Empty(PathBuf),
}

/// Output of `--json`.
#[derive(Debug, Serialize)]
struct BenchReport {
    texts_per_second: f64,
    tokens_per_second: f64,
    /// Times of single texts; not measured with `--rounds`.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    single: Option<SingleTextTimes>,
    /// Time to read the model's files from the store, check their digests, and load the model.
    load_ms: f64,
    /// Time from the first instruction of `main` to the vector of the first text. The kernel
    /// reports the start of a process in hundredths of a second, which is too coarse.
    first_vector_ms: f64,
    /// Peak of the whole process: VmHWM.
    peak_rss_bytes: u64,
    precision: &'static str,
    isa: &'static str,
    /// Rate of the operations in matrix products, divided by the rate that the processors reach
    /// with the best instruction and all operands in registers. Not measured with `--rounds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    matrix_peak_fraction: Option<f64>,
}

/// Times of one text alone.
#[derive(Debug, Serialize)]
struct SingleTextTimes {
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

impl SingleTextTimes {
    fn measure(
        model: &LoadedModel,
        texts: &[String],
        at_least: Duration,
    ) -> Result<Self, EngineError> {
        let latencies = measure::latencies(model, texts, at_least)?;
        let percentile = |percent| milliseconds(measure::percentile(&latencies, percent));
        Ok(Self { p50_ms: percentile(50), p95_ms: percentile(95), p99_ms: percentile(99) })
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Bench {
    /// Runs the benchmark. `started` is the time at which the program started.
    pub(super) fn run(self, connection: &Connection, started: Instant) -> anyhow::Result<Exit> {
        let texts = read_texts(&self.input)?;
        let settings = connection.settings()?;
        let defaults = load::options(&settings);
        let options = EngineOptions {
            threads: self.threads.unwrap_or(defaults.threads),
            batch_tokens: self.batch_tokens.unwrap_or(defaults.batch_tokens),
            precision: self.precision.unwrap_or(defaults.precision),
        };
        let (model, load_time, first_vector) = self.load(&settings, options, &texts[0], started)?;
        let seconds = Duration::from_secs(self.seconds);
        let length = self.rounds.map_or(MeasureLength::Time(seconds), MeasureLength::Rounds);
        let throughput = measure::throughput(&model, &texts, options.batch_tokens, length)?;
        let single = match length {
            MeasureLength::Time(time) => {
                Some(SingleTextTimes::measure(&model, &texts, time.min(LATENCY_TIME))?)
            }
            MeasureLength::Rounds(_) => None,
        };
        // Read the peak before the vectors are copied into a file, so that the copy does not count.
        let peak_rss_bytes = peak_rss()?;
        let peak = match length {
            MeasureLength::Time(_) => {
                Some(model.embedder.matrix_peak().context("cannot measure the processors' peak")?)
            }
            MeasureLength::Rounds(_) => None,
        };
        let engine = model.embedder.report();
        let report = BenchReport {
            texts_per_second: throughput.per_second(throughput.texts),
            tokens_per_second: throughput.per_second(throughput.tokens),
            single,
            load_ms: milliseconds(load_time),
            first_vector_ms: milliseconds(first_vector),
            peak_rss_bytes,
            precision: engine.precision.name(),
            isa: engine.isa,
            matrix_peak_fraction: peak
                .map(|peak| throughput.per_second(throughput.operations) / peak),
        };
        if let Some(path) = &self.output {
            write_vectors(path, &throughput, texts.len())?;
        }
        if self.json {
            print_json(&report)?
        } else {
            report.print()?
        }
        Ok(Exit::Ok)
    }

    /// Loads the model. Returns it, the time of the load, and the time from `started` to the vector
    /// of `text`.
    fn load(
        &self,
        settings: &Settings,
        options: EngineOptions,
        text: &str,
        started: Instant,
    ) -> anyhow::Result<(LoadedModel, Duration, Duration)> {
        // These two keep the store alive while it is read.
        let scratch;
        let installed;
        let (store, key): (&Store, EntryKey) = if self.model.is_dir() {
            bail!(
                "{} is a directory; make a package of it with `caxton model pack --source`",
                self.model.display()
            );
        } else if self.model.is_file() {
            scratch = TempStore::create(settings)?;
            let Installation { entry, .. } = scratch.verify(PackageFile::open(&self.model)?)?;
            (&scratch.store, entry.key)
        } else {
            let id = self.model.to_string_lossy();
            if self.output.is_some() && Owner::of_store(settings)?.is_some() {
                bail!(
                    "root changes to the owner of the store to read {id}, and that user cannot write the file of \
                     --output; name a package file with --model, or omit --output"
                );
            }
            (installed, _) = open_store(settings)
                .with_context(|| format!("{id} is not a file, and the store cannot be used"))?;
            let entries = installed.entries();
            let entry = entries.resolve(&id).ok_or_else(|| NotInstalled(id.to_string()))?;
            (&installed, entry.key.clone())
        };
        let begun = Instant::now();
        let read = |options| load::load_from::<InstallError>(store, &key, options);
        let (manifest, model) = read(options)
            .or_else(|error| read(error.retry_options(&key, options).ok_or(error)?))?;
        let load_time = begun.elapsed();
        load::embed_plain(&model, text)?;
        let first_vector = started.elapsed();
        load::self_test(&manifest, &model).map_err(InstallError::from)?;
        Ok((model, load_time, first_vector))
    }
}

impl BenchReport {
    fn print(&self) -> io::Result<()> {
        let milliseconds = |value: f64| format!("{value:.2} ms");
        let mut rows = vec![
            ("texts per second", format!("{:.1}", self.texts_per_second)),
            ("tokens per second", format!("{:.0}", self.tokens_per_second)),
        ];
        if let Some(single) = &self.single {
            rows.extend([
                ("one text, p50", milliseconds(single.p50_ms)),
                ("one text, p95", milliseconds(single.p95_ms)),
                ("one text, p99", milliseconds(single.p99_ms)),
            ]);
        }
        rows.extend([
            ("load time", milliseconds(self.load_ms)),
            ("start to first vector", milliseconds(self.first_vector_ms)),
            ("peak memory (RSS)", Bytes(self.peak_rss_bytes).to_string()),
            ("precision", self.precision.to_owned()),
            ("instruction set", self.isa.to_owned()),
        ]);
        if let Some(fraction) = self.matrix_peak_fraction {
            rows.push(("share of processor peak", format!("{:.1} %", fraction * 100.0)));
        }
        let rows =
            Vec::from_iter(rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]));
        print_table(&["MEASURE", "VALUE"], &rows)
    }
}

/// Reads the texts of `path` in order; there is at least one.
fn read_texts(path: &Path) -> anyhow::Result<Vec<String>> {
    // Not only regular files are accepted, so that the texts may come from a pipe.
    let file = File::open(path).map_err(FileError::new("open", path))?;
    let mut texts = Vec::new();
    for (line, text) in (1..).zip(BufReader::new(file).split(b'\n')) {
        let text = text.map_err(FileError::new("read", path))?;
        let text: Result<String, _> = serde_json::from_slice(&text);
        texts.push(text.map_err(|source| InputError::Line {
            path: path.to_owned(),
            line,
            source: source.into(),
        })?);
    }
    if texts.is_empty() {
        return Err(InputError::Empty(path.to_owned()).into());
    }
    Ok(texts)
}

fn write_vectors(path: &Path, throughput: &Throughput, texts: usize) -> anyhow::Result<()> {
    let vectors = &throughput.vectors;
    let bytes = Vec::from_iter(vectors.iter().flat_map(|value| value.to_le_bytes()));
    let tensor = TensorView::new(Dtype::F32, vec![texts, vectors.len() / texts], &bytes)?;
    let file = safetensors::serialize([(TENSOR, tensor)], None)?;
    let mut output = OutputFile::create(path)?;
    output.temporary.write_all(&file).map_err(FileError::new("write", path))?;
    output.persist()
}

/// Returns the peak memory of this process, from the kernel:
/// <https://www.kernel.org/doc/html/v6.12/filesystems/proc.html>.
fn peak_rss() -> anyhow::Result<u64> {
    const STATUS: &str = "/proc/self/status";
    let status = std::fs::read_to_string(STATUS).map_err(FileError::new("read", STATUS))?;
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kibibytes: u64 = kibibytes.with_context(|| format!("{STATUS} has no VmHWM"))?;
    Ok(kibibytes * 1024)
}
