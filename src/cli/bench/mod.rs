//! `caxton bench`: measures the speed of a model on this machine without a daemon, or the speed of
//! the running daemon.
//!
//! This module chooses the model and the texts, and prints the report. The measurements in this
//! process are in [`measure`], and those of the daemon in [`load`].

mod load;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;

use super::compare::Agreement;
use super::compare::metrics::UnitVectors;
use super::local_model::{LocalModel, MeasuredLoad};
use super::measure::{self, MeasureLength, Throughput};
use super::output::OutputFile;
use super::owner::Owner;
use super::text_file::{read_few_texts, read_texts};
use super::{Connection, print_json, print_table, terminal};
use crate::base::exit::Exit;
use crate::base::units::Bytes;
use crate::config::Settings;
use crate::engine::{EngineError, EngineOptions, LoadedModel, Precision};
use crate::files::FileError;
use crate::models::residency::load::{embed_plain, options};
use load::DaemonLoad;

/// Name of the tensor of `--output`, as in the golden files of the tests.
const TENSOR: &str = "embedding";
/// Time for which single texts are measured, unless `--seconds` is shorter. Measuring continues
/// after it until there are enough samples.
const LATENCY_TIME: Duration = Duration::from_secs(2);

/// Model and texts of the measurement, and its options.
#[derive(Debug, Args)]
pub(super) struct Bench {
    /// Package file, or id of an installed model. An id needs a store that no daemon uses. With
    /// --daemon, a name of a model, and the default model if it is omitted.
    #[arg(long, value_name = "PACKAGE|ID", required_unless_present = "daemon")]
    model: Option<PathBuf>,
    /// Second model, which is measured in the same way. Then the vectors of both are compared. The
    /// file may have at most 5,000 texts of 64 KiB.
    #[arg(long, value_name = "PACKAGE|ID", conflicts_with_all = ["output", "rounds", "daemon"])]
    against: Option<PathBuf>,
    /// File of texts, one in each line, as it is or as a JSON string.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Measure the running daemon in place of a model in this process: several connections send
    /// requests at once, and each waits for its answer. The report has the requests per second and
    /// the latency.
    #[arg(long, conflicts_with_all = ["precision", "threads", "batch_tokens", "rounds", "output"])]
    daemon: bool,
    /// Connections to the daemon.
    #[arg(long, value_name = "N", default_value_t = 8, requires = "daemon", value_parser = RangedU64ValueParser::<usize>::new().range(1..=256))]
    connections: usize,
    /// Texts of each request to the daemon.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "daemon", value_parser = RangedU64ValueParser::<usize>::new().range(1..=2048))]
    texts_per_request: usize,
    /// Precision of the computation [default: embedding.precision of the configuration].
    #[arg(long, value_parser = precisions())]
    precision: Option<Precision>,
    /// Threads of the engine [default: embedding.threads of the configuration].
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    threads: Option<usize>,
    /// Tokens of one pass [default: embedding.batch_tokens of the configuration].
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    batch_tokens: Option<usize>,
    /// Time for rounds over all texts. The last round is finished, and there is at least one. With
    /// --daemon, the time in which requests are sent.
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
    /// Peak of the whole process: VmHWM. `None` for the second of two models, because the peak
    /// may be that of the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_bytes: Option<u64>,
    /// Memory of the weights, without the word embeddings, which are read in place.
    weight_bytes: u64,
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

/// Measurement of one model.
struct Measured {
    name: String,
    embedding_space: String,
    report: BenchReport,
    throughput: Throughput,
    dimensions: usize,
}

/// Output of `--against --json`.
#[derive(Debug, Serialize)]
struct AgainstReport<'a> {
    model: &'a BenchReport,
    against: &'a BenchReport,
    agreement: &'a Agreement,
}

impl Bench {
    /// Runs the benchmark. `started` is the time at which the program started.
    pub(super) async fn run(
        self,
        connection: &Connection,
        started: Instant,
    ) -> anyhow::Result<Exit> {
        let texts = match self.against {
            Some(_) => read_few_texts(&self.input)?,
            None => read_texts(&self.input)?,
        };
        if self.daemon {
            let load = DaemonLoad {
                model: self.model.map(|model| model.to_string_lossy().into_owned()),
                connections: self.connections,
                texts_per_request: self.texts_per_request,
                time: Duration::from_secs(self.seconds),
            };
            let report = load.run(connection, &texts).await?;
            if self.json {
                print_json(&report)?;
            } else {
                report.print()?;
            }
            return Ok(Exit::Ok);
        }
        // The parser requires a model without a daemon.
        let model = self.model.as_deref().unwrap_or(Path::new(""));
        let settings = connection.settings()?;
        self.check_output(model, &settings)?;
        let names = Vec::from_iter([Some(model), self.against.as_deref()].into_iter().flatten());
        let mut models = LocalModel::open_all(&names, &settings, false)?.into_iter();
        let first = models.next().context("the model was not opened")?;
        let measured = self.measure(&first, &settings, &texts, started)?;
        if let Some(second) = models.next() {
            let mut against = self.measure(&second, &settings, &texts, Instant::now())?;
            against.report.peak_rss_bytes = None;
            self.print_both(measured, against)?;
            return Ok(Exit::Ok);
        }
        if let Some(path) = &self.output {
            write_vectors(path, &measured.throughput, texts.len())?;
        }
        if self.json {
            print_json(&measured.report)?;
        } else {
            print_reports(&["MEASURE", "VALUE"], &[&measured.report])?;
        }
        Ok(Exit::Ok)
    }

    /// Checks that the file of `--output` can be written after the model was read.
    fn check_output(&self, model: &Path, settings: &Settings) -> anyhow::Result<()> {
        let is_id = !model.is_file() && !model.is_dir();
        if is_id && self.output.is_some() && Owner::of_store(settings)?.is_some() {
            bail!(
                "root changes to the owner of the store to read {}, and that user cannot write the \
                 file of --output; name a package file with --model, or omit --output",
                model.display()
            );
        }
        Ok(())
    }

    /// Loads and measures one model. `started` is the time from which the first vector is counted.
    fn measure(
        &self,
        local: &LocalModel,
        settings: &Settings,
        texts: &[String],
        started: Instant,
    ) -> anyhow::Result<Measured> {
        let defaults = options(settings);
        let options = EngineOptions {
            threads: self.threads.unwrap_or(defaults.threads),
            batch_tokens: self.batch_tokens.unwrap_or(defaults.batch_tokens),
            precision: self.precision.unwrap_or(defaults.precision),
        };
        let (loaded, first_vector) = local.load(options, |model| {
            embed_plain(model, &texts[0])?;
            Ok(started.elapsed())
        })?;
        let MeasuredLoad { manifest, model, time: load_time } = loaded;
        let seconds = Duration::from_secs(self.seconds);
        let length = self.rounds.map_or(MeasureLength::Time(seconds), MeasureLength::Rounds);
        let throughput = measure::throughput(&model, "", texts, options.batch_tokens, length)?;
        let single = match length {
            MeasureLength::Time(time) => {
                Some(SingleTextTimes::measure(&model, texts, time.min(LATENCY_TIME))?)
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
            peak_rss_bytes: Some(peak_rss_bytes),
            weight_bytes: model.embedder.weight_bytes(),
            precision: engine.precision.name(),
            isa: engine.isa,
            matrix_peak_fraction: peak
                .map(|peak| throughput.per_second(throughput.operations) / peak),
        };
        Ok(Measured {
            name: local.name().to_owned(),
            embedding_space: manifest.embedding_space(),
            report,
            throughput,
            dimensions: model.embedder.dimensions(),
        })
    }

    /// Prints the figures of two models, and the agreement of their vectors.
    fn print_both(&self, first: Measured, second: Measured) -> anyhow::Result<()> {
        let same_space = first.embedding_space == second.embedding_space;
        let a = UnitVectors::new(first.throughput.vectors, first.dimensions);
        let b = UnitVectors::new(second.throughput.vectors, second.dimensions);
        let agreement = Agreement::new(same_space, &a, &b);
        if self.json {
            return print_json(&AgainstReport {
                model: &first.report,
                against: &second.report,
                agreement: &agreement,
            });
        }
        let headings = ["MEASURE", &first.name, &second.name];
        print_reports(&headings, &[&first.report, &second.report])?;
        writeln!(terminal::out())?;
        agreement.print()
    }
}

impl BenchReport {
    /// Returns the name and the value of each measure; no value if it was not taken.
    fn rows(&self) -> Vec<(&'static str, Option<String>)> {
        let milliseconds = |value: f64| format!("{value:.2} ms");
        let single = self.single.as_ref();
        let share = self.matrix_peak_fraction;
        vec![
            ("texts per second", Some(format!("{:.1}", self.texts_per_second))),
            ("tokens per second", Some(format!("{:.0}", self.tokens_per_second))),
            ("one text, p50", single.map(|single| milliseconds(single.p50_ms))),
            ("one text, p95", single.map(|single| milliseconds(single.p95_ms))),
            ("one text, p99", single.map(|single| milliseconds(single.p99_ms))),
            ("load time", Some(milliseconds(self.load_ms))),
            ("start to first vector", Some(milliseconds(self.first_vector_ms))),
            ("peak memory (RSS)", self.peak_rss_bytes.map(|bytes| Bytes(bytes).to_string())),
            ("memory of the weights", Some(Bytes(self.weight_bytes).to_string())),
            ("precision", Some(self.precision.to_owned())),
            ("instruction set", Some(self.isa.to_owned())),
            ("share of processor peak", share.map(|share| format!("{:.1} %", share * 100.0))),
        ]
    }
}

/// Prints reports side by side. A measure that was taken for none of them is left out.
fn print_reports(headings: &[&str], reports: &[&BenchReport]) -> anyhow::Result<()> {
    let mut rows: Vec<(&str, Vec<Option<String>>)> = Vec::new();
    for report in reports {
        for (index, (name, value)) in report.rows().into_iter().enumerate() {
            match rows.get_mut(index) {
                Some((_, values)) => values.push(value),
                None => rows.push((name, vec![value])),
            }
        }
    }
    rows.retain(|(_, values)| values.iter().any(Option::is_some));
    let rows = rows.into_iter().map(|(name, values)| {
        let cells = values.into_iter().map(|value| value.unwrap_or_else(|| "-".to_owned()));
        Vec::from_iter(std::iter::once(name.to_owned()).chain(cells))
    });
    Ok(print_table(headings, &Vec::from_iter(rows))?)
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
