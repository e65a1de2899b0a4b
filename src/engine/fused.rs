//! Runs texts through the fused [`Encoder`] and the [`PoolingHead`] on a fixed pool of threads.
//!
//! A large call is cut into passes of whole texts; the threads take one pass after another, the
//! costliest first. A call that is too small for that is a single pass, which all threads compute
//! together. If the processors have unequal speeds, all threads compute every pass together,
//! because otherwise the last pass on a slow processor would delay the call. Concurrent calls share
//! the threads: each call is cut for its share of them, and any idle thread takes the next pass of
//! any call. A call that all threads compute together runs alone; a call that begins meanwhile
//! waits for its end.
//!
//! This module owns the threads, which are parked while idle, and one arena for each thread.
//!
//! Invariant: a call that holds an arena never waits for another thread, with the exception of the
//! one call that holds all arenas.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard, TryLockError};

use super::config::EncoderConfig;
use super::encoder::{Encoder, TextStarts, ThreadTeam};
use super::input_limits::{InputLimits, check_finite};
use super::linear::{Backend, KernelSession};
use super::peak_rate;
use super::pooling::PoolingHead;
use super::precision::{ArithmeticChoice, PrecisionReport};
use super::scratch::{PassBuffers, RowShape, SharedScratch, ThreadScratch};
use super::weights::Header;
use super::{Embedder, EngineError, EngineOptions, ModelSpec, Output, WeightsFile, threads};

/// Target size of a pass in tokens. All threads compute a call of at most this size together, and a
/// call with a text that is longer than the share of one thread. In a pass of this size, reading
/// the weights costs little relative to the products. In a larger pass, the rows would leave the
/// caches between two layers.
const PASS_TOKENS: usize = 384;

/// A loaded model.
pub(super) struct FusedEmbedder {
    encoder: Encoder,
    backend: Backend,
    report: PrecisionReport,
    config: EncoderConfig,
    head: PoolingHead,
    threads: rayon::ThreadPool,
    arenas: Vec<Mutex<Arena>>,
    /// Number of calls that are computing now.
    calls: AtomicUsize,
    /// Lock over all arenas: shared by calls whose passes take one arena each, exclusive for a call
    /// that takes all of them. It guards the memory that threads share while they compute a pass
    /// together.
    all_arenas: RwLock<SharedScratch>,
    /// Whether some threads run on slower processors than others.
    unequal: bool,
    limits: InputLimits,
    dimensions: usize,
    batch_tokens: AtomicUsize,
}

/// Scratch memory of one thread.
#[derive(Default)]
struct Arena {
    states: PassBuffers,
    scratch: ThreadScratch,
}

/// Indices of the texts that go through the encoder together.
type TextIndices = Vec<usize>;

/// Guard that counts a running call.
struct CallGuard<'a>(&'a AtomicUsize);

impl<'a> CallGuard<'a> {
    /// Counts a new call. Returns its guard and the number of running calls, this one included.
    fn begin(calls: &'a AtomicUsize) -> (Self, usize) {
        let others = calls.fetch_add(1, Ordering::Relaxed);
        (Self(calls), others + 1)
    }
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl FusedEmbedder {
    /// Builds the encoder of `config` from the weights in the safetensors `file`, which comes with
    /// its parsed header, followed by `head`.
    ///
    /// # Errors
    /// Returns [`EngineError::Threads`] if the threads cannot be started, and
    /// [`EngineError::Mismatch`] if the weights do not match `config`.
    pub(super) fn new(
        spec: &ModelSpec,
        config: EncoderConfig,
        file: (Box<dyn WeightsFile>, Header),
        head: PoolingHead,
        choice: ArithmeticChoice,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let threads = threads::start_pool(options.threads)?;
        let formats = (choice.format, choice.attention);
        let max_positions = spec.max_sequence_length;
        let encoder = threads.install(|| Encoder::read(&config, max_positions, file, formats))?;
        Ok(Self {
            encoder,
            backend: choice.backend,
            report: choice.report,
            head,
            arenas: (0..threads.current_num_threads()).map(|_| Mutex::default()).collect(),
            threads,
            calls: AtomicUsize::new(0),
            all_arenas: RwLock::default(),
            unequal: threads::has_unequal_processors(),
            limits: InputLimits {
                vocabulary: config.vocab_size,
                has_types: config.embeddings.types > 1,
                min: 1,
                max: spec.max_sequence_length,
            },
            config,
            dimensions: spec.dimensions,
            batch_tokens: AtomicUsize::new(options.batch_tokens),
        })
    }

    /// Locks the arena of `thread`. Ignores poisoning: an arena holds no state between passes, so a
    /// panic leaves nothing inconsistent in it.
    fn arena(&self, thread: usize) -> MutexGuard<'_, Arena> {
        self.arenas[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes `output` of the texts of `pass` on this thread.
    fn run(
        &self,
        texts: &[&[u32]],
        pass: &TextIndices,
        output: Output,
        arena: &mut Arena,
    ) -> Vec<f32> {
        let encoder = &self.encoder;
        let session = self.backend.session();
        let rows = TextStarts::new(pass.iter().map(|&text| texts[text].len()));
        let Arena { states, scratch } = arena;
        states.reserve(encoder.shape(), rows.rows());
        for (&text, rows) in pass.iter().zip(rows.iter()) {
            let x = &mut states.x.f32s_mut()[rows.start * encoder.row()..];
            encoder.embed(&session, scratch, texts[text], x);
        }
        states.keep_embeddings(rows.rows() * encoder.row());
        for layer in encoder.layers() {
            let PassBuffers { x, heads, attended, embeddings } = states;
            encoder.project(layer, &session, scratch, x.f32s(), &rows, heads.groups_mut());
            let heads = heads.groups();
            encoder.attend(layer, &session, scratch, heads, &rows, attended.groups_mut());
            let inputs = (attended.groups(), embeddings.f32s());
            encoder.finish(layer, &session, scratch, inputs, rows.rows(), x.f32s_mut());
        }
        encoder.complete(&session, &mut states.x.f32s_mut()[..rows.rows() * encoder.row()]);
        let lengths = pass.iter().map(|&text| texts[text].len());
        self.outputs(&session, lengths, states, scratch, output)
    }

    /// Acquires the exclusive right to all arenas. Returns `None` if other calls are computing.
    fn try_alone(&self) -> Option<RwLockWriteGuard<'_, SharedScratch>> {
        match self.all_arenas.try_write() {
            Ok(alone) => Some(alone),
            Err(TryLockError::Poisoned(alone)) => Some(alone.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Computes `output` of the texts of `pass` with all threads together. Must run on a thread of
    /// the pool.
    fn run_together(
        &self,
        texts: &[&[u32]],
        pass: &TextIndices,
        output: Output,
        shared: &mut SharedScratch,
    ) -> Vec<f32> {
        let texts: Vec<&[u32]> = pass.iter().map(|&text| texts[text]).collect();
        // Locking all arenas cannot deadlock: the exclusive lock on `all_arenas` keeps out the
        // passes of other calls, and `release_scratch` holds one arena at a time.
        let mut arenas: Vec<_> = (0..self.arenas.len()).map(|thread| self.arena(thread)).collect();
        let Some((owner, others)) = arenas.split_first_mut() else { return Vec::new() };
        let Arena { states, scratch } = &mut **owner;
        let mut scratches = vec![scratch];
        scratches.extend(others.iter_mut().map(|arena| &mut arena.scratch));
        let mut team = ThreadTeam { backend: &self.backend, scratches };
        self.encoder.run_together(&mut team, &texts, states, shared);
        let lengths = texts.iter().map(|text| text.len());
        self.outputs(&self.backend.session(), lengths, states, team.scratches[0], output)
    }

    /// Computes `output` of texts of `lengths` from their rows, which lie in `states` one text
    /// after another.
    fn outputs(
        &self,
        session: &KernelSession,
        lengths: impl Iterator<Item = usize>,
        states: &PassBuffers,
        scratch: &mut ThreadScratch,
        output: Output,
    ) -> Vec<f32> {
        let ThreadScratch { block, vectors, .. } = scratch;
        let mut rest = states.x.f32s();
        let mut outputs = Vec::new();
        for length in lengths {
            let (rows, others) = rest.split_at(length * self.encoder.row());
            rest = others;
            let tokens = self.encoder.token_vectors(session, rows, block, vectors);
            outputs.extend(self.head.apply(tokens, self.encoder.outputs(), output));
        }
        outputs
    }

    /// Returns the number of output values for a text of `length` tokens.
    fn width(&self, length: usize, output: Output) -> usize {
        match output {
            Output::Vector | Output::Unnormalized => self.dimensions,
            Output::TokenStates => length * self.encoder.outputs(),
            Output::Logits => self.head.labels(),
            Output::TokenWeights => length,
            Output::TokenVectors => length * self.head.token_vector_length(),
        }
    }

    /// Computes `output` of the texts of each of `passes`; the threads take the passes in order.
    fn run_passes(
        &self,
        texts: &[&[u32]],
        passes: &[TextIndices],
        output: Output,
    ) -> Vec<Vec<f32>> {
        let mut found = vec![Vec::new(); passes.len()];
        self.threads.in_place_scope(|scope| {
            for (pass, found) in passes.iter().zip(&mut found) {
                scope.spawn(move |_| {
                    // Only threads of the pool run this closure, so the index exists, and each
                    // thread has its own arena.
                    let mut arena = self.arena(rayon::current_thread_index().unwrap_or_default());
                    *found = self.run(texts, pass, output, &mut arena);
                });
            }
        });
        found
    }

    /// Copies the values that were `found` for each of `passes` into the order of the texts, which
    /// have `lengths`.
    fn in_order(
        &self,
        lengths: &[usize],
        passes: &[TextIndices],
        found: &[Vec<f32>],
        output: Output,
    ) -> Vec<f32> {
        let mut starts = Vec::with_capacity(lengths.len());
        let mut total = 0;
        for &length in lengths {
            starts.push(total);
            total += self.width(length, output);
        }
        let mut outputs = vec![0.0; total];
        for (pass, found) in passes.iter().zip(found) {
            let mut rest = found.as_slice();
            for &text in pass {
                let (own, others) = rest.split_at(self.width(lengths[text], output));
                outputs[starts[text]..][..own.len()].copy_from_slice(own);
                rest = others;
            }
        }
        outputs
    }
}

impl Embedder for FusedEmbedder {
    fn compute(&self, texts: &[&[u32]], output: Output) -> Result<Vec<f32>, EngineError> {
        self.head.check(output)?;
        self.limits.check(texts)?;
        let (_call, calls) = CallGuard::begin(&self.calls);
        // Round up: a pass that waits for a thread costs nothing, but a thread that waits for a
        // pass is idle.
        let threads = self.arenas.len().div_ceil(calls);
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let total: usize = lengths.iter().sum();
        let longest = lengths.iter().max().copied().unwrap_or_default();
        let together = self.unequal || total <= PASS_TOKENS || longest * threads > total;
        let budget = self.batch_tokens.load(Ordering::Relaxed);
        let (passes, found) = if threads > 1
            && together
            && let Some(mut shared) = self.try_alone()
        {
            let passes = passes(&lengths, budget, 1);
            let shared = &mut *shared;
            // Run on a thread of the pool: it stays awake while it waits for the others, so the
            // next step starts at once.
            let found = self.threads.install(|| {
                let run = |pass| self.run_together(texts, pass, output, shared);
                passes.iter().map(run).collect()
            });
            (passes, found)
        } else {
            let _in_common = self.all_arenas.read().unwrap_or_else(PoisonError::into_inner);
            let passes = passes(&lengths, budget, threads);
            let found = self.run_passes(texts, &passes, output);
            (passes, found)
        };
        let outputs = self.in_order(&lengths, &passes, &found, output);
        check_finite(outputs, self.report.precision.name())
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn weight_bytes(&self) -> u64 {
        self.encoder.bytes() + self.head.weight_bytes()
    }

    fn mapped_bytes(&self) -> u64 {
        self.encoder.words.mapped_bytes()
    }

    fn set_batch_tokens(&self, tokens: usize) {
        self.batch_tokens.store(tokens, Ordering::Relaxed);
    }

    fn release_scratch(&self) {
        (0..self.arenas.len()).for_each(|thread| *self.arena(thread) = Arena::default());
        *self.all_arenas.write().unwrap_or_else(PoisonError::into_inner) = SharedScratch::default();
    }

    fn matrix_operations(&self, tokens: usize) -> u64 {
        self.config.matrix_operations(tokens)
    }

    fn matrix_peak(&self) -> io::Result<f64> {
        peak_rate::measure(self.backend, self.encoder.format(), self.arenas.len())
    }

    fn report(&self) -> &PrecisionReport {
        &self.report
    }
}

/// Returns the number of tokens for each thread if `threads` threads share `total`, at most
/// [`PASS_TOKENS`].
fn share(total: usize, threads: usize) -> usize {
    total.div_ceil(threads.max(1)).clamp(1, PASS_TOKENS)
}

/// Returns the maximum number of tokens of one of the [`passes`], for texts of at most `longest`
/// tokens.
///
/// A pass of several texts has at most `share + s / 2` tokens, where `s` is its shortest text. `s`
/// is at most half of the pass. So the pass has at most 4/3 of the share, and `s` is at most 2/3 of
/// it.
fn longest_pass(longest: usize, budget: usize) -> usize {
    // The longest passes occur in a call whose share is one thread.
    let share = share(budget, 1);
    let several = share + (share * 2 / 3).min(longest) / 2;
    several.min(budget).max(longest)
}

/// Returns the memory that `threads` threads need in addition to the weights of the encoder of
/// `config`, in bytes, for texts of at most `longest` tokens in passes of at most `budget`.
pub(super) fn scratch_bytes(
    config: &EncoderConfig,
    choice: &ArithmeticChoice,
    longest: usize,
    budget: usize,
    threads: usize,
) -> u64 {
    let shape = RowShape::new(config, choice.format, choice.attention);
    let arena = shape.arena_bytes(longest_pass(longest, budget), longest);
    // A single thread never computes a pass together with others.
    let shared = if threads > 1 { SharedScratch::bytes_of(&shape) } else { 0 };
    threads as u64 * arena + shared
}

/// Cuts texts of `lengths` tokens into passes, the costliest first. There are enough passes for all
/// threads. A pass exceeds `budget` only if it is a single text.
fn passes(lengths: &[usize], budget: usize, threads: usize) -> Vec<TextIndices> {
    let total: usize = lengths.iter().sum();
    let share = share(total.min(budget), threads);
    // Make the passes equal in size and a multiple of `threads` in number, so that at the end no
    // thread still computes a whole pass while the others are idle.
    let rounds = total.div_ceil(share * threads).max(1);
    let share = total.div_ceil(rounds * threads);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(lengths[text]));
    let mut passes: Vec<TextIndices> = Vec::new();
    let mut tokens = 0;
    for text in order {
        // `tokens` counts the last pass together with this text.
        tokens += lengths[text];
        match passes.last_mut() {
            // Round to the nearest text: include it if at least half of it fits into the share.
            // Never exceed the budget.
            Some(pass) if tokens <= (share + lengths[text] / 2).min(budget) => pass.push(text),
            _ => {
                tokens = lengths[text];
                passes.push(vec![text]);
            }
        }
    }
    passes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::config::tests::fused;
    use crate::engine::tests::{constant_bert, opened};
    use crate::engine::{Precision, precision};

    /// Returns the memory of the residual streams of all threads.
    fn rows_bytes(model: &FusedEmbedder) -> u64 {
        (0..model.arenas.len()).map(|thread| model.arena(thread).states.x.bytes()).sum()
    }

    #[test]
    fn released_scratch_regrows_to_current_passes() {
        let (spec, files) = constant_bert(0.5);
        let config = fused(&files.config, &spec).unwrap();
        let head = PoolingHead::read(&spec, &[]).unwrap();
        let choice = precision::choose_arithmetic(Precision::F32, false);
        let options = EngineOptions { threads: 2, batch_tokens: 1000, precision: Precision::F32 };
        let file = opened(files.weights, &config);
        let model = FusedEmbedder::new(&spec, config, file, head, choice, options).unwrap();
        let text: &[u32] = &[1, 2, 3, 4, 0, 1, 2, 3, 4, 0];
        let many = model.embed(&[text; 60]).unwrap();
        let most = rows_bytes(&model);
        model.release_scratch();
        assert_eq!(rows_bytes(&model), 0);
        let few = model.embed(&[text; 2]).unwrap();
        assert_eq!(many[..few.len()], few);
        assert!((1..most / 2).contains(&rows_bytes(&model)), "{} of {most}", rows_bytes(&model));
    }

    #[test]
    fn unequal_threads_share_each_pass() {
        let (spec, files) = constant_bert(0.5);
        let config = fused(&files.config, &spec).unwrap();
        let head = PoolingHead::read(&spec, &[]).unwrap();
        let choice = precision::choose_arithmetic(Precision::F32, false);
        let options = EngineOptions { threads: 3, batch_tokens: 1000, precision: Precision::F32 };
        let file = opened(files.weights, &config);
        let mut model = FusedEmbedder::new(&spec, config, file, head, choice, options).unwrap();
        let text: &[u32] = &[1, 2, 3, 4, 0, 1, 2, 3, 4, 0];
        let texts = [text; 60];
        assert!(texts.concat().len() > PASS_TOKENS);
        model.unequal = false;
        let expected = model.embed(&texts).unwrap();
        model.release_scratch();
        model.unequal = true;
        assert_eq!(model.embed(&texts).unwrap(), expected);
        // Only the thread that owns the pass allocates rows.
        let rows = |thread: usize| model.arena(thread).states.x.bytes();
        assert!(rows(0) > 0 && rows(1) == 0 && rows(2) == 0);
    }

    #[test]
    fn batch_is_split_evenly_over_threads() {
        assert_eq!(passes(&[10; 8], 1000, 2), [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(passes(&[5, 40, 5], 1000, 2), [vec![1], vec![0, 2]]);
        assert_eq!(passes(&[], 1000, 2), Vec::<TextIndices>::new());
    }

    proptest! {
        #[test]
        fn each_text_is_in_one_bounded_pass(
            lengths in prop::collection::vec(1_usize..600, 0..80),
            budget in 1_usize..5000,
            threads in 1_usize..9,
        ) {
            let passes = passes(&lengths, budget, threads);
            let mut seen: Vec<usize> = passes.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for pass in passes {
                let tokens: usize = pass.iter().map(|&text| lengths[text]).sum();
                prop_assert!(pass.len() == 1 || tokens <= budget);
                let longest = lengths.iter().copied().max().unwrap_or(0);
                prop_assert!(tokens <= longest_pass(longest, budget));
            }
        }
    }
}
