//! Runs ModernBERT, which the fused encoder does not support, in candle-transformers.
//!
//! The computation is always in f32, whatever precision is requested: weights stored as int8, f16
//! or bf16 are decoded during loading. Texts run one at a time, so texts are never padded.
//!
//! This module owns the tensors and the threads. [`modernbert`] describes the files of the
//! architecture.
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
use super::input_limits::{InputLimits, check_finite};
use super::pooling::PoolingHead;
use super::precision::{Precision, PrecisionReport};
use super::{
    Embedder, EngineError, EngineOptions, ModelSpec, Output, WeightsFile, peak_rate, threads,
    weights,
};

/// Name of the weights file in messages.
const WEIGHTS: &str = "model.safetensors";

/// A loaded model.
pub(super) struct CandleEmbedder {
    model: ModernBert,
    config: ModernBertConfig,
    head: PoolingHead,
    threads: rayon::ThreadPool,
    /// Lock that limits the model to one computing call.
    alone: Mutex<()>,
    limits: InputLimits,
    dimensions: usize,
    weight_bytes: u64,
    report: PrecisionReport,
}

impl CandleEmbedder {
    /// Builds the encoder of `config` from the weights in the safetensors `file`, followed by
    /// `head`.
    ///
    /// # Errors
    /// Returns [`EngineError::Threads`] if the threads cannot be started, and
    /// [`EngineError::Mismatch`] if the weights do not match `config`.
    pub(super) fn new(
        spec: &ModelSpec,
        config: ModernBertConfig,
        file: &dyn WeightsFile,
        head: PoolingHead,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let tensors = weights::read(WEIGHTS, file, modernbert::canonical, config.tensors())?;
        let mut values = HashMap::new();
        let mut weight_bytes = 0;
        for (name, tensor) in tensors {
            let decoded = tensor.values();
            tensor.forget();
            weight_bytes += size_of_val(decoded.as_slice()) as u64;
            let decoded =
                Tensor::from_vec(decoded, tensor.shape, &Device::Cpu).map_err(read_error)?;
            // candle-transformers uses the tensor names of the masked language model, which have
            // this prefix.
            values.insert(format!("model.{name}"), decoded);
        }
        let weights = VarBuilder::from_tensors(values, DType::F32, &Device::Cpu);
        Ok(Self {
            model: ModernBert::load(weights, &config.for_candle(spec)).map_err(read_error)?,
            head,
            threads: threads::start_pool(options.threads)?,
            alone: Mutex::new(()),
            limits: InputLimits {
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

    /// Computes `output` of `text` on the current thread pool.
    fn run(&self, text: &[u32], output: Output) -> candle_core::Result<Vec<f32>> {
        let shape = (1, text.len());
        let ids = Tensor::from_slice(text, shape, &Device::Cpu)?;
        let mask = Tensor::ones(shape, DType::F32, &Device::Cpu)?;
        let states = self.model.forward(&ids, &mask)?.flatten_all()?.to_vec1()?;
        Ok(self.head.apply(&states, self.config.hidden_size(), output))
    }
}

fn read_error(source: candle_core::Error) -> EngineError {
    EngineError::File { file: WEIGHTS.to_owned(), source: source.into() }
}

fn report(spec: &ModelSpec, wanted: Precision) -> PrecisionReport {
    let runs = format!("{} runs in candle, which computes only in f32", spec.architecture);
    let reason = match wanted {
        Precision::F32 => "requested".to_owned(),
        Precision::Auto => runs,
        Precision::Int8 | Precision::Bf16 => format!("{wanted} was requested, but {runs}"),
    };
    PrecisionReport { precision: Precision::F32, isa: "candle", reason }
}

impl Embedder for CandleEmbedder {
    fn compute(&self, texts: &[&[u32]], output: Output) -> Result<Vec<f32>, EngineError> {
        self.limits.check(texts)?;
        // Only one call may compute, because the footprint counts the memory of one candle pass.
        // Poisoning is harmless: candle keeps no state of a pass that panicked.
        let _alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
        // Always start on the first thread, and let the others help. An allocator caches freed
        // memory for the thread that allocated it, so starting on every thread would keep such
        // memory for each of them.
        let vectors = self.threads.broadcast(|thread| {
            let vectors = texts.iter().map(|text| self.run(text, output));
            (thread.index() == 0).then(|| vectors.collect::<candle_core::Result<Vec<_>>>())
        });
        let vectors = vectors.into_iter().flatten().collect::<candle_core::Result<Vec<_>>>();
        let vectors = vectors.map_err(|source| EngineError::Forward(source.into()))?;
        check_finite(vectors.concat().concat(), self.report.precision.name())
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes + self.head.weight_bytes()
    }

    /// Returns 0, because candle holds decoded copies of the weights.
    fn mapped_bytes(&self) -> u64 {
        0
    }

    /// Does nothing: candle frees the memory of a pass at its end.
    fn release_scratch(&self) {}

    fn matrix_operations(&self, tokens: usize) -> u64 {
        self.config.matrix_operations(tokens)
    }

    fn matrix_peak(&self) -> io::Result<f64> {
        peak_rate::f32(self.threads.current_num_threads())
    }

    fn report(&self) -> &PrecisionReport {
        &self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Architecture;
    use crate::engine::config::tests::spec;

    #[test]
    fn candle_runs_in_f32_and_reports_reason() {
        let runs = "modernbert runs in candle, which computes only in f32";
        let cases = [
            (Precision::F32, "requested".to_owned()),
            (Precision::Auto, runs.to_owned()),
            (Precision::Int8, format!("int8 was requested, but {runs}")),
            (Precision::Bf16, format!("bf16 was requested, but {runs}")),
        ];
        for (wanted, reason) in cases {
            let report = report(&spec(Architecture::ModernBert), wanted);
            assert_eq!((report.precision, report.reason), (Precision::F32, reason));
        }
    }
}
