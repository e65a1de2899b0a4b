//! Measures of the agreement of two models, and of the quality of one. Pure.
//!
//! Every measure uses the cosine of two vectors. Of equal similarities, the text that comes first
//! wins, so that results do not depend on the order of the computation.

use std::cmp::Ordering;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::thread;

/// Nearest neighbors that are compared, and results that count for nDCG.
pub(in crate::cli) const NEAREST: usize = 10;
/// Most pairs of texts for the rank correlation.
pub(in crate::cli) const MAX_PAIRS: usize = 200_000;
/// Seed of the sample of pairs. It is fixed, so that a repeated comparison gives the same figures.
const SEED: u64 = 0x5EED;
/// Sums that are kept apart, so that the compiler can use vector instructions.
const LANES: usize = 8;

/// Vectors of several texts, scaled to length 1.
#[derive(Clone, Debug)]
pub(in crate::cli) struct UnitVectors {
    /// `[texts, dimensions]`
    values: Vec<f32>,
    dimensions: usize,
}

impl UnitVectors {
    /// Scales `values` of shape `[texts, dimensions]`. A zero vector stays zero.
    pub(in crate::cli) fn new(mut values: Vec<f32>, dimensions: usize) -> Self {
        let dimensions = dimensions.max(1);
        for row in values.chunks_exact_mut(dimensions) {
            let length = dot(row, row).sqrt();
            if length > 0.0 {
                row.iter_mut().for_each(|value| *value /= length);
            }
        }
        Self { values, dimensions }
    }

    /// Returns the number of texts.
    pub(in crate::cli) fn len(&self) -> usize {
        self.values.len() / self.dimensions
    }

    fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dimensions..][..self.dimensions]
    }

    /// Writes the cosines of `vector` and each text into `out`.
    fn similarities(&self, vector: &[f32], out: &mut Vec<f32>) {
        out.clear();
        out.extend(self.values.chunks_exact(self.dimensions).map(|row| dot(vector, row)));
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (chunks_a, rest_a) = a.as_chunks::<LANES>();
    let (chunks_b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in chunks_a.iter().zip(chunks_b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Returns the indices of the `count` highest `similarities`, the highest first, without `except`.
fn nearest(similarities: &[f32], count: usize, except: Option<usize>) -> Vec<usize> {
    let order = |a: &usize, b: &usize| -> Ordering {
        similarities[*b].total_cmp(&similarities[*a]).then(a.cmp(b))
    };
    let others = (0..similarities.len()).filter(|index| Some(*index) != except);
    let mut indices = Vec::from_iter(others);
    if count < indices.len() {
        indices.select_nth_unstable_by(count, order);
        indices.truncate(count);
    }
    indices.sort_by(order);
    indices
}

/// Returns the mean share of the `count` nearest neighbors of a text that are the same in `a` and
/// `b`, which have the same texts. Returns `None` for fewer than two texts.
///
/// Takes time in proportion to the square of the number of texts, on all processors, and memory for
/// one row of similarities in each thread.
pub(in crate::cli) fn neighbor_overlap(
    a: &UnitVectors,
    b: &UnitVectors,
    count: usize,
) -> Option<f64> {
    let texts = a.len().min(b.len());
    let count = count.min(texts.saturating_sub(1));
    if count == 0 {
        return None;
    }
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = texts.div_ceil(threads);
    let common: usize = thread::scope(|scope| {
        let parts = (0..texts).step_by(share).map(|first| {
            let rows = first..(first + share).min(texts);
            scope.spawn(move || rows.map(|row| common_neighbors(a, b, row, count)).sum::<usize>())
        });
        // All threads are started before the first is joined.
        let parts = Vec::from_iter(parts);
        // A lost part would make the overlap too low without an error.
        parts.into_iter().map(|part| part.join().unwrap_or_else(|lost| resume_unwind(lost))).sum()
    });
    Some(common as f64 / (texts * count) as f64)
}

fn common_neighbors(a: &UnitVectors, b: &UnitVectors, row: usize, count: usize) -> usize {
    let mut similarities = Vec::new();
    a.similarities(a.row(row), &mut similarities);
    let in_a = nearest(&similarities, count, Some(row));
    b.similarities(b.row(row), &mut similarities);
    let in_b = nearest(&similarities, count, Some(row));
    in_a.iter().filter(|index| in_b.contains(index)).count()
}

/// Returns all pairs of `texts` texts, or a sample of `most` pairs if there are more.
pub(in crate::cli) fn pairs_of(texts: usize, most: usize) -> Vec<(usize, usize)> {
    let all = texts.saturating_mul(texts.saturating_sub(1)) / 2;
    if all <= most {
        return (0..texts).flat_map(|a| (a + 1..texts).map(move |b| (a, b))).collect();
    }
    let mut state = SEED;
    let mut below = |bound: usize| {
        // SplitMix64: https://doi.org/10.1145/2660193.2660195
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        // The remainder is less than the bound, which is a `usize`.
        usize::try_from(mixed % bound as u64).unwrap_or(0)
    };
    let mut sample = Vec::with_capacity(most);
    while sample.len() < most {
        let (a, b) = (below(texts), below(texts - 1));
        // The second text is one of the others.
        sample.push((a, if b < a { b } else { b + 1 }));
    }
    sample
}

/// Returns Spearman's rank correlation of the similarities of `pairs` in `a` and in `b`. Returns
/// `None` if it is not defined, because all similarities are equal or there are fewer than two.
pub(in crate::cli) fn rank_correlation(
    a: &UnitVectors,
    b: &UnitVectors,
    pairs: &[(usize, usize)],
) -> Option<f64> {
    let similarities = |vectors: &UnitVectors| -> Vec<f32> {
        pairs.iter().map(|(x, y)| dot(vectors.row(*x), vectors.row(*y))).collect()
    };
    spearman(&similarities(a), &similarities(b))
}

/// Returns Spearman's rank correlation of two lists of one length: the correlation of their ranks,
/// where equal values share the mean of their ranks.
fn spearman(x: &[f32], y: &[f32]) -> Option<f64> {
    let (x, y) = (ranks(x), ranks(y));
    // The ranks of both lists have this mean, whether values are equal or not.
    let mean = (x.len() as f64 + 1.0) / 2.0;
    let (mut covariance, mut variance_x, mut variance_y) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(&y) {
        let (x, y) = (x - mean, y - mean);
        covariance += x * y;
        variance_x += x * x;
        variance_y += y * y;
    }
    let scale = (variance_x * variance_y).sqrt();
    (scale > 0.0).then(|| covariance / scale)
}

/// Returns the rank of each value from 1.
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order = Vec::from_iter(0..values.len());
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let mean = before as f64 + (equal.len() as f64 + 1.0) / 2.0;
        equal.iter().for_each(|index| ranks[*index] = mean);
        before += equal.len();
    }
    ranks
}

/// Returns the mean nDCG of `queries` at `count` results, in the ranking of `documents` by
/// similarity. `grades` has the graded documents of each query, by index; the grade of all others
/// is 0. Queries without a relevant document are left out. Returns `None` if none remains.
///
/// The gain of a document is its grade, discounted by the logarithm of its rank: Järvelin and
/// Kekäläinen 2002, <https://doi.org/10.1145/582415.582418>.
pub(in crate::cli) fn mean_ndcg(
    queries: &UnitVectors,
    documents: &UnitVectors,
    grades: &[Vec<(usize, f64)>],
    count: usize,
) -> Option<f64> {
    let mut similarities = Vec::new();
    let (mut sum, mut judged) = (0.0, 0_usize);
    for (query, graded) in grades.iter().enumerate().take(queries.len()) {
        documents.similarities(queries.row(query), &mut similarities);
        let found = nearest(&similarities, count, None).into_iter().map(|document| {
            graded.iter().find(|(index, _)| *index == document).map_or(0.0, |(_, grade)| *grade)
        });
        let all = Vec::from_iter(graded.iter().map(|(_, grade)| *grade));
        if let Some(ndcg) = ndcg(&Vec::from_iter(found), all, count) {
            sum += ndcg;
            judged += 1;
        }
    }
    (judged > 0).then(|| sum / judged as f64)
}

/// Returns the nDCG of a ranking: `found` are the grades of its results, `all` those of all graded
/// documents. Returns `None` if no document is relevant.
fn ndcg(found: &[f64], mut all: Vec<f64>, count: usize) -> Option<f64> {
    all.sort_by(|a, b| b.total_cmp(a));
    let ideal = discounted_gain(&all, count);
    (ideal > 0.0).then(|| discounted_gain(found, count) / ideal)
}

fn discounted_gain(grades: &[f64], count: usize) -> f64 {
    let gains = grades.iter().take(count).zip(2_u32..);
    gains.map(|(grade, rank)| grade / f64::from(rank).log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns unit vectors at these angles in degrees.
    fn circle(angles: &[f32]) -> UnitVectors {
        let values = angles.iter().flat_map(|angle| {
            let (sin, cos) = angle.to_radians().sin_cos();
            [3.0 * cos, 3.0 * sin]
        });
        UnitVectors::new(values.collect(), 2)
    }

    fn assert_near(found: Option<f64>, expected: f64) {
        assert!((found.unwrap() - expected).abs() < 1e-6, "{found:?} is not {expected}");
    }

    #[test]
    fn vectors_are_scaled_and_multiplied() {
        let a = Vec::from_iter((1..=19_u8).map(f32::from));
        // 1² + 2² + … + 19² = 19 · 20 · 39 / 6
        assert_eq!(dot(&a, &a), 2470.0);
        let vectors = UnitVectors::new(vec![3.0, 4.0, 0.0, 0.0], 2);
        assert_eq!(vectors.len(), 2);
        assert_eq!([vectors.row(0), vectors.row(1)], [&[0.6, 0.8], &[0.0; 2]]);
    }

    #[test]
    fn nearest_are_sorted_and_ties_keep_order() {
        let similarities = [0.1, 0.9, 0.5, 0.9, 0.5];
        assert_eq!(nearest(&similarities, 3, None), [1, 3, 2]);
        assert_eq!(nearest(&similarities, 3, Some(1)), [3, 2, 4]);
        assert_eq!(nearest(&similarities, 9, Some(1)), [3, 2, 4, 0]);
    }

    #[test]
    fn overlap_counts_common_neighbors() {
        let a = circle(&[0.0, 10.0, 90.0, 100.0]);
        assert_eq!(neighbor_overlap(&a, &a, 1), Some(1.0));
        // Each text has another nearest text.
        assert_eq!(neighbor_overlap(&a, &circle(&[0.0, 90.0, 10.0, 100.0]), 1), Some(0.0));
        // Only the nearest text of the last one differs: 90° away instead of 100°.
        assert_eq!(neighbor_overlap(&a, &circle(&[0.0, 10.0, 200.0, 100.0]), 1), Some(0.75));
        // With three other texts, all of them are neighbors.
        assert_eq!(neighbor_overlap(&a, &circle(&[5.0, 90.0, 1.0, 2.0]), NEAREST), Some(1.0));
        assert_eq!(neighbor_overlap(&circle(&[1.0]), &circle(&[1.0]), 1), None);
    }

    #[test]
    fn spearman_matches_hand_computed_values() {
        assert_near(spearman(&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0, 30.0, 90.0]), 1.0);
        assert_near(spearman(&[1.0, 2.0, 3.0, 4.0], &[9.0, 8.0, 7.0, -6.0]), -1.0);
        // 1 - 6 · 4 / (5 · 24)
        assert_near(spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[2.0, 1.0, 4.0, 3.0, 5.0]), 0.8);
        // Ranks 1, 2.5, 2.5, 4: 4.5 / √(4.5 · 5)
        assert_near(spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]), 0.948_683_3);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[], &[]), None);
    }

    #[test]
    fn rank_correlation_compares_similarities_of_pairs() {
        let pairs = pairs_of(3, MAX_PAIRS);
        assert_eq!(pairs, [(0, 1), (0, 2), (1, 2)]);
        // Angles between the texts: 10, 90, 80 and 20, 90, 70.
        let (a, b) = (circle(&[0.0, 10.0, 90.0]), circle(&[0.0, 20.0, 90.0]));
        assert_near(rank_correlation(&a, &b, &pairs), 1.0);
        // 80, 90, 10: the ranks 3, 1, 2 become 2, 1, 3. 1 - 6 · 2 / (3 · 8)
        assert_near(rank_correlation(&a, &circle(&[0.0, 80.0, 90.0]), &pairs), 0.5);
    }

    #[test]
    fn sample_of_pairs_is_fixed_and_in_range() {
        let sample = pairs_of(MAX_PAIRS, 1000);
        assert_eq!(sample.len(), 1000);
        assert_eq!(sample, pairs_of(MAX_PAIRS, 1000));
        assert!(sample.iter().all(|(a, b)| a != b && *a < MAX_PAIRS && *b < MAX_PAIRS));
        // A sample of few texts has every pair in both orders.
        let few = std::collections::BTreeSet::from_iter(pairs_of(4, 5));
        assert!(few.len() > 1, "{few:?}");
    }

    #[test]
    fn ndcg_matches_hand_computed_values() {
        assert_eq!(ndcg(&[3.0, 1.0, 0.0], vec![1.0, 3.0], 10), Some(1.0));
        // (3 / log2 3 + 1 / log2 4) / (3 + 1 / log2 3)
        assert_near(ndcg(&[0.0, 3.0, 1.0], vec![3.0, 1.0], 10), 0.659_002);
        // 1 / log2 4
        assert_near(ndcg(&[0.0, 0.0, 1.0], vec![1.0], 10), 0.5);
        assert_eq!(ndcg(&[0.0, 0.0, 1.0], vec![1.0], 2), Some(0.0));
        assert_eq!(ndcg(&[0.0], vec![0.0], 10), None);
        assert_eq!(ndcg(&[], Vec::new(), 10), None);
    }

    #[test]
    fn ndcg_ranks_documents_by_similarity() {
        let documents = circle(&[0.0, 30.0, 60.0, 90.0]);
        let queries = circle(&[1.0, 89.0, 45.0]);
        let relevant = |document| vec![(document, 1.0)];
        // The first query finds its document first, the second one at rank 2, and the third has no
        // relevant document.
        let grades = [relevant(0), relevant(2), Vec::new()];
        // (1 + 1 / log2 3) / 2
        assert_near(mean_ndcg(&queries, &documents, &grades, NEAREST), 0.815_464_9);
        assert_eq!(mean_ndcg(&queries, &documents, &[Vec::new()], NEAREST), None);
    }
}
