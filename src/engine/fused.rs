//! The embedder: texts over a fixed pool of threads through the [`Encoder`], then the [`Head`].
//!
//! Many texts are cut into passes of whole texts, which the threads take one after the other, the
//! costliest first. A text that would leave threads idle is split by rows instead: the threads meet
//! twice a layer. Calls at the same time share the threads: each is cut for its share of them, and none
//! waits for a thread that has the other's pass.
//!
//! Owns the threads, parked while there is nothing to do, and an arena for each.
//!
//! Invariant: whoever holds an arena waits for no thread, except the one call that holds them all.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard, TryLockError};

use super::buffer::Buffer;
use super::config::EncoderConfig;
use super::encoder::Encoder;
use super::layer::Widths;
use super::limits::{Limits, finite};
use super::linear::Machine;
use super::peak;
use super::pool::Head;
use super::precision::{Choice, Report};
use super::scratch::{RowShape, States, Work};
use super::weights::Header;
use super::{Embedder, EngineError, ModelSpec, Options, Output, WeightsFile, threads};

/// Tokens of a pass: enough that reading the weights costs little beside the products; of more, the rows leave the
/// caches between two layers.
const PASS_TOKENS: usize = 384;
/// Tokens of each thread for which it is worth to split a text.
const SPLIT_TOKENS: usize = 8;

/// A model in memory.
pub(super) struct Fused {
    encoder: Encoder,
    machine: Machine,
    report: Report,
    config: EncoderConfig,
    head: Head,
    threads: rayon::ThreadPool,
    arenas: Vec<Mutex<Arena>>,
    /// Calls that compute now.
    calls: AtomicUsize,
    /// Held in common by calls whose passes take an arena each, and alone by one that takes all.
    all_arenas: RwLock<()>,
    limits: Limits,
    dimensions: usize,
    batch_tokens: usize,
}

/// The memory of one thread.
#[derive(Default)]
struct Arena {
    states: States,
    work: Work,
}

/// Texts that go through the encoder together, by their numbers.
type Pass = Vec<usize>;

/// A call that computes, counted until it is over.
struct Call<'a>(&'a AtomicUsize);

impl<'a> Call<'a> {
    /// Counts one more; gives how many there are.
    fn begin(calls: &'a AtomicUsize) -> (Self, usize) {
        let others = calls.fetch_add(1, Ordering::Relaxed);
        (Self(calls), others + 1)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Fused {
    /// The encoder of `config` with the weights in the safetensors `file`, whose header was read, followed by `head`.
    ///
    /// # Errors
    /// [`EngineError::Threads`] when the threads cannot be started, [`EngineError::Mismatch`] when the
    /// weights are not those of `config`.
    pub(super) fn new(
        spec: &ModelSpec,
        config: EncoderConfig,
        file: (Box<dyn WeightsFile>, Header),
        head: Head,
        choice: Choice,
        options: Options,
    ) -> Result<Self, EngineError> {
        let threads = threads::start(options.threads)?;
        let formats = (choice.format, choice.attention);
        let reach = spec.max_sequence_length;
        let encoder = threads.install(|| Encoder::read(&config, reach, file, formats))?;
        Ok(Self {
            encoder,
            machine: choice.machine,
            report: choice.report,
            head,
            arenas: (0..threads.current_num_threads()).map(|_| Mutex::default()).collect(),
            threads,
            calls: AtomicUsize::new(0),
            all_arenas: RwLock::new(()),
            limits: Limits { vocabulary: config.vocab_size, min: 1, max: spec.max_sequence_length },
            config,
            dimensions: spec.dimensions,
            batch_tokens: options.batch_tokens,
        })
    }

    /// An arena holds no state between passes, so a panic leaves nothing wrong in it.
    fn arena(&self, thread: usize) -> MutexGuard<'_, Arena> {
        self.arenas[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wanted of the texts of `pass`, one behind the other.
    fn run(&self, texts: &[&[u32]], pass: &Pass, output: Output, arena: &mut Arena) -> Vec<f32> {
        let encoder = &self.encoder;
        let session = self.machine.session();
        let rows = pass.iter().map(|&text| texts[text].len()).sum();
        let Arena { states, work } = arena;
        states.reserve(encoder.shape(), rows);
        let mut first = 0;
        for &text in pass {
            encoder.embed(
                &session,
                work,
                texts[text],
                &mut states.x.f32s_mut()[first * encoder.row()..],
            );
            first += texts[text].len();
        }
        for layer in encoder.layers() {
            let heads = states.heads.groups_mut();
            encoder.project(layer, &session, work, states.x.f32s(), rows, heads);
            let mut first = 0;
            for &text in pass {
                let length = texts[text].len();
                let heads = &states.heads.groups()[first * encoder.heads_stride()..];
                let attended = first * encoder.attended_stride();
                let attended = &mut states.attended.groups_mut()[attended..];
                encoder.attend(&session, work, heads, length, (0, length), attended);
                first += length;
            }
            let attended = states.attended.groups();
            encoder.finish(layer, &session, work, attended, rows, states.x.f32s_mut());
        }
        let lengths = pass.iter().map(|&text| texts[text].len());
        self.outputs(lengths, states, &mut work.vectors, output)
    }

    /// The right to take all arenas, unless others compute.
    fn try_alone(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        match self.all_arenas.try_write() {
            Ok(alone) => Some(alone),
            Err(TryLockError::Poisoned(alone)) => Some(alone.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// What is wanted of `text`, whose rows the threads share. For one of them, which is alone with the arenas.
    fn run_split(&self, text: &[u32], output: Output) -> Vec<f32> {
        let encoder = &self.encoder;
        let mut arenas: Vec<_> = (0..self.arenas.len()).map(|thread| self.arena(thread)).collect();
        let Some((owner, others)) = arenas.split_first_mut() else { return Vec::new() };
        let Arena { states, work } = &mut **owner;
        let mut works: Vec<&mut Work> = vec![work];
        works.extend(others.iter_mut().map(|arena| &mut arena.work));
        let length = text.len();
        states.reserve(encoder.shape(), length);
        encoder.embed(&self.machine.session(), works[0], text, states.x.f32s_mut());
        let ranges = split_rows(length, works.len(), self.machine.rows_at_once());
        let (row, stride) = (encoder.row(), encoder.heads_stride());
        for layer in encoder.layers() {
            let heads = parts(&ranges, stride, states.heads.groups_mut());
            let x = states.x.f32s();
            rayon::scope(|scope| {
                for ((range, heads), work) in ranges.iter().zip(heads).zip(&mut works) {
                    scope.spawn(move |_| {
                        let session = self.machine.session();
                        let x = &x[range.start * row..];
                        encoder.project(layer, &session, work, x, range.len(), heads);
                    });
                }
            });
            let attended = parts(&ranges, encoder.attended_stride(), states.attended.groups_mut());
            let x = parts(&ranges, row, states.x.f32s_mut());
            let heads = states.heads.groups();
            rayon::scope(|scope| {
                let shares = ranges.iter().zip(attended).zip(x).zip(&mut works);
                for (((range, attended), x), work) in shares {
                    scope.spawn(move |_| {
                        let session = self.machine.session();
                        let queries = (range.start, range.len());
                        encoder.attend(&session, work, heads, length, queries, attended);
                        encoder.finish(layer, &session, work, attended, range.len(), x);
                    });
                }
            });
        }
        self.outputs([length].into_iter(), states, &mut works[0].vectors, output)
    }

    /// What is wanted of texts of `lengths` whose rows lie in `states` one behind the other.
    /// `vectors` is scratch memory.
    fn outputs(
        &self,
        lengths: impl Iterator<Item = usize>,
        states: &States,
        vectors: &mut Buffer,
        output: Output,
    ) -> Vec<f32> {
        let mut rest = states.x.f32s();
        let mut outputs = Vec::new();
        for length in lengths {
            let (rows, others) = rest.split_at(length * self.encoder.row());
            rest = others;
            let tokens = self.encoder.token_vectors(rows, vectors);
            outputs.extend(self.head.apply(tokens, self.encoder.hidden(), output));
        }
        outputs
    }

    /// How many values are wanted of a text of `length` tokens.
    fn width(&self, length: usize, output: Output) -> usize {
        match output {
            Output::Vector | Output::Unnormalized => self.dimensions,
            Output::TokenStates => length * self.encoder.hidden(),
        }
    }

    /// What is wanted of `texts`, cut for `threads` threads, which take pass after pass.
    fn run_passes(&self, texts: &[&[u32]], output: Output, threads: usize) -> Vec<f32> {
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let passes = passes(&lengths, self.batch_tokens, threads);
        let mut found = vec![Vec::new(); passes.len()];
        self.threads.in_place_scope(|scope| {
            for (pass, found) in passes.iter().zip(&mut found) {
                scope.spawn(move |_| {
                    // Only the pool's threads come here, and each has its own arena.
                    let mut arena = self.arena(rayon::current_thread_index().unwrap_or_default());
                    *found = self.run(texts, pass, output, &mut arena);
                });
            }
        });
        let mut starts = Vec::with_capacity(lengths.len());
        let mut total = 0;
        for &length in &lengths {
            starts.push(total);
            total += self.width(length, output);
        }
        let mut outputs = vec![0.0; total];
        for (pass, found) in passes.iter().zip(&found) {
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

impl Embedder for Fused {
    fn compute(&self, texts: &[&[u32]], output: Output) -> Result<Vec<f32>, EngineError> {
        self.limits.check(texts)?;
        let (_call, calls) = Call::begin(&self.calls);
        // Rounded up: passes that wait for a thread cost nothing, threads that wait for a pass do.
        let threads = self.arenas.len().div_ceil(calls);
        let outputs = match texts {
            [text]
                if threads.min(text.len() / SPLIT_TOKENS) > 1
                    && let Some(_alone) = self.try_alone() =>
            {
                // On the pool: a thread that has a part to do and waits for the others is awake when the next part comes.
                self.threads.install(|| self.run_split(text, output))
            }
            _ => {
                let _together = self.all_arenas.read().unwrap_or_else(PoisonError::into_inner);
                self.run_passes(texts, output, threads)
            }
        };
        finite(outputs, self.report.precision.name())
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

    fn release_scratch(&self) {
        (0..self.arenas.len()).for_each(|thread| *self.arena(thread) = Arena::default());
    }

    fn matrix_operations(&self, tokens: usize) -> u64 {
        self.config.matrix_operations(tokens)
    }

    fn matrix_peak(&self) -> io::Result<f64> {
        peak::measure(self.machine, self.encoder.format(), self.arenas.len())
    }

    fn report(&self) -> &Report {
        &self.report
    }
}

/// Tokens of each thread, of `total`.
fn share(total: usize, threads: usize) -> usize {
    total.div_ceil(threads.max(1)).clamp(1, PASS_TOKENS)
}

/// The most tokens of one of the [`passes`], for texts of at most `longest` tokens.
///
/// A pass of several texts is at most the share and half of its shortest text, which is at most half
/// of the pass: so no more than 4/3 of the share.
fn longest_pass(longest: usize, budget: usize) -> usize {
    // That of a call whose share of the threads is one.
    let share = share(budget, 1);
    let several = share + (share * 2 / 3).min(longest) / 2;
    several.min(budget).max(longest)
}

/// Memory that `threads` threads need beside the weights of the encoder of `config`, in bytes, for texts of
/// at most `longest` tokens in passes of at most `budget`.
pub(super) fn scratch_bytes(
    config: &EncoderConfig,
    choice: &Choice,
    longest: usize,
    budget: usize,
    threads: usize,
) -> u64 {
    let widths = Widths::new(config);
    let shape = RowShape { widths, format: choice.format, attention: choice.attention };
    threads as u64 * shape.arena_bytes(longest_pass(longest, budget), longest)
}

/// The passes for texts of `lengths` tokens, the costliest first: enough of them for all threads, none
/// above `budget` unless for one text.
fn passes(lengths: &[usize], budget: usize, threads: usize) -> Vec<Pass> {
    let total: usize = lengths.iter().sum();
    let share = share(total.min(budget), threads);
    // Alike parts, so that no thread is left with a whole one at the end.
    let rounds = total.div_ceil(share * threads).max(1);
    let share = total.div_ceil(rounds * threads);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(lengths[text]));
    let mut passes: Vec<Pass> = Vec::new();
    let mut tokens = 0;
    for text in order {
        tokens += lengths[text];
        match passes.last_mut() {
            // To the nearest text, but never above the budget.
            Some(pass) if tokens <= (share + lengths[text] / 2).min(budget) => pass.push(text),
            _ => {
                tokens = lengths[text];
                passes.push(vec![text]);
            }
        }
    }
    passes
}

/// Ranges of `length` rows for at most `threads` threads, of nearly one size, each but the last a multiple of `step`.
fn split_rows(length: usize, threads: usize, step: usize) -> Vec<Range<usize>> {
    let count = (length / SPLIT_TOKENS.max(step)).clamp(1, threads);
    let starts = (0..=count).map(|part| (length * part / count).next_multiple_of(step).min(length));
    let starts: Vec<usize> = starts.collect();
    starts.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// The rows of `ranges` in `memory`, rows `stride` apart; the last with all that pads it.
fn parts<'a, T>(
    ranges: &[Range<usize>],
    stride: usize,
    mut memory: &'a mut [T],
) -> Vec<&'a mut [T]> {
    let mut parts = Vec::with_capacity(ranges.len());
    for (index, range) in ranges.iter().enumerate() {
        let end = if index + 1 == ranges.len() { memory.len() } else { range.len() * stride };
        let (part, rest) = std::mem::take(&mut memory).split_at_mut(end);
        parts.push(part);
        memory = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::config::tests::fused;
    use crate::engine::linear::ROWS;
    use crate::engine::tests::{constant_bert, opened};
    use crate::engine::{Precision, precision};

    /// Memory of the residual streams of all threads.
    fn rows_bytes(model: &Fused) -> u64 {
        (0..model.arenas.len()).map(|thread| model.arena(thread).states.x.bytes()).sum()
    }

    #[test]
    fn released_scratch_comes_back_as_large_as_the_passes_are_then() {
        let (spec, files) = constant_bert(0.5);
        let config = fused(&files.config, &spec).unwrap();
        let head = Head::read(&spec, &[]).unwrap();
        let choice = precision::choose(Precision::F32, false);
        let options = Options { threads: 2, batch_tokens: 1000, precision: Precision::F32 };
        let file = opened(files.weights, &config);
        let model = Fused::new(&spec, config, file, head, choice, options).unwrap();
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
    fn a_batch_is_cut_into_alike_passes_for_all_threads() {
        assert_eq!(passes(&[10; 8], 1000, 2), [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(passes(&[5, 40, 5], 1000, 2), [vec![1], vec![0, 2]]);
        assert_eq!(passes(&[], 1000, 2), Vec::<Pass>::new());
    }

    proptest! {
        #[test]
        fn every_text_is_in_one_pass_and_few_pass_the_budget(
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

        #[test]
        fn rows_are_split_into_parts_of_nearly_one_size(
            length in 1_usize..600,
            threads in 1_usize..9,
            step in prop::sample::select(vec![1, 16]),
        ) {
            let ranges = split_rows(length, threads, step);
            prop_assert!((1..=threads).contains(&ranges.len()));
            prop_assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, length));
            for pair in ranges.windows(2) {
                prop_assert_eq!(pair[0].end, pair[1].start);
                prop_assert!(pair[1].start.is_multiple_of(step) && !pair[1].is_empty());
            }
            let share = length.div_ceil(ranges.len());
            prop_assert!(ranges.iter().all(|range| range.len() < share + step));
            let mut memory = vec![0; length.next_multiple_of(ROWS) * 3];
            let parts = parts(&ranges, 3, &mut memory);
            let fits = parts.iter().zip(&ranges).all(|(part, range)| part.len() >= range.len() * 3);
            prop_assert!(fits);
        }
    }
}
