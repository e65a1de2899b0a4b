//! The candle runtime: an architecture that the fused encoder does not serve, in candle-transformers.
//!
//! f32 whatever precision is asked for: weights stored as int8, f16 or bf16 are decoded when they
//! are loaded. One text at a time, so that nothing is padded.
//!
//! Owns the tensors and the threads. What the architecture's files hold is in [`modernbert`].
//!
//! Invariant: the vector of a text depends on its ids alone, to the last bit.

mod modernbert;

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::modernbert::ModernBert;

pub(super) use self::modernbert::ModernBertConfig;
use super::limits::{Limits, finite};
use super::pool::Head;
use super::precision::{Precision, Report};
use super::{
    Embedder, EngineError, ModelSpec, Options, Output, WeightsFile, peak, threads, weights,
};

/// Name of the weights in messages.
const WEIGHTS: &str = "model.safetensors";

/// A model in memory.
pub(super) struct CandleEmbedder {
    model: ModernBert,
    config: ModernBertConfig,
    head: Head,
    threads: rayon::ThreadPool,
    /// Held by the one call that computes.
    alone: Mutex<()>,
    limits: Limits,
    dimensions: usize,
    weight_bytes: u64,
    report: Report,
}

impl CandleEmbedder {
    /// The encoder of `config` with the weights in the safetensors `file`, followed by `head`.
    ///
    /// # Errors
    /// [`EngineError::Threads`] when the threads cannot be started, [`EngineError::Mismatch`] when the
    /// weights are not those of `config`.
    pub(super) fn new(
        spec: &ModelSpec,
        config: ModernBertConfig,
        file: &dyn WeightsFile,
        head: Head,
        options: Options,
    ) -> Result<Self, EngineError> {
        let tensors = weights::read(WEIGHTS, file, modernbert::canonical, config.tensors())?;
        let mut values = HashMap::new();
        let mut weight_bytes = 0;
        for (name, tensor) in tensors {
            let decoded = tensor.values();
            tensor.forget();
            weight_bytes += size_of_val(decoded.as_slice()) as u64;
            let decoded = Tensor::from_vec(decoded, tensor.shape, &Device::Cpu).map_err(unread)?;
            // candle-transformers has the names of the model with a head for masked tokens.
            values.insert(format!("model.{name}"), decoded);
        }
        let weights = VarBuilder::from_tensors(values, DType::F32, &Device::Cpu);
        Ok(Self {
            model: ModernBert::load(weights, &config.for_candle(spec)).map_err(unread)?,
            head,
            threads: threads::start(options.threads)?,
            alone: Mutex::new(()),
            limits: Limits {
                vocabulary: config.vocab_size(),
                min: 1,
                max: spec.max_sequence_length,
            },
            dimensions: spec.dimensions,
            weight_bytes,
            report: report(spec, options.precision),
            config,
        })
    }

    /// What is wanted of `text`, on the threads that it is called in.
    fn run(&self, text: &[u32], output: Output) -> candle_core::Result<Vec<f32>> {
        let shape = (1, text.len());
        let ids = Tensor::from_slice(text, shape, &Device::Cpu)?;
        let mask = Tensor::ones(shape, DType::F32, &Device::Cpu)?;
        let states = self.model.forward(&ids, &mask)?.flatten_all()?.to_vec1()?;
        Ok(self.head.apply(&states, self.config.hidden_size(), output))
    }
}

fn unread(source: candle_core::Error) -> EngineError {
    EngineError::File { file: WEIGHTS.to_owned(), source: source.into() }
}

fn report(spec: &ModelSpec, wanted: Precision) -> Report {
    let runs = format!("{} runs in candle, in f32 alone", spec.architecture);
    let reason = match wanted {
        Precision::F32 => "asked for".to_owned(),
        Precision::Auto => runs,
        Precision::Int8 | Precision::Bf16 => format!("{wanted} was asked for, but {runs}"),
    };
    Report { precision: Precision::F32, isa: "candle", reason }
}

impl Embedder for CandleEmbedder {
    fn compute(&self, texts: &[&[u32]], output: Output) -> Result<Vec<f32>, EngineError> {
        self.limits.check(texts)?;
        // What candle takes for a pass is counted once. It keeps nothing of one that panicked.
        let _alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        // Always begun by the first thread, which the others help: an allocator keeps some of what was
        // freed for the thread that had it, and would do so for each of them.
        let vectors = self.threads.broadcast(|thread| {
            let vectors = texts.iter().map(|text| self.run(text, output));
            (thread.index() == 0).then(|| vectors.collect::<candle_core::Result<Vec<_>>>())
        });
        let vectors = vectors.into_iter().flatten().collect::<candle_core::Result<Vec<_>>>();
        let vectors = vectors.map_err(|source| EngineError::Forward(source.into()))?;
        finite(vectors.concat().concat(), self.report.precision.name())
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes + self.head.weight_bytes()
    }

    /// None: candle has decoded them.
    fn mapped_bytes(&self) -> u64 {
        0
    }

    /// Nothing: what candle takes for a pass it gives back behind it.
    fn release_scratch(&self) {}

    fn matrix_operations(&self, tokens: usize) -> u64 {
        self.config.matrix_operations(tokens)
    }

    fn matrix_peak(&self) -> io::Result<f64> {
        peak::f32(self.threads.current_num_threads())
    }

    fn report(&self) -> &Report {
        &self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Architecture;
    use crate::engine::config::tests::spec;

    #[test]
    fn it_runs_in_f32_and_says_why_where_another_precision_was_asked_for() {
        let cases = [
            (Precision::F32, "asked for"),
            (Precision::Auto, "modernbert runs in candle, in f32 alone"),
            (Precision::Int8, "int8 was asked for, but modernbert runs in candle, in f32 alone"),
            (Precision::Bf16, "bf16 was asked for, but modernbert runs in candle, in f32 alone"),
        ];
        for (wanted, reason) in cases {
            let report = report(&spec(Architecture::ModernBert), wanted);
            assert_eq!((report.precision, &report.reason[..]), (Precision::F32, reason));
        }
    }
}
