//! Benchmarks the engine's kernels one by one, on one thread, at the shapes of all-MiniLM-L6-v2:
//! `cargo bench`.
//!
//! For products and attention, criterion shows multiplications and additions per second, for the
//! other kernels values per second. `caxton bench` measures the speed of a whole model.

use caxton::engine::Precision;
use caxton::engine::kernels::{self, LinearLayer};
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Int8, Precision::Bf16];
const ROWS: [usize; 3] = [16, 64, 256];
const TOKENS: [usize; 3] = [16, 128, 256];
const HIDDEN: usize = 384;
const INTERMEDIATE: usize = 1536;
/// Rows of scores in one call of softmax.
const QUERIES: usize = 32;

fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    count: usize,
    mut kernel: impl FnMut(),
) {
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function(id, |bencher| bencher.iter(&mut kernel));
}

fn products(criterion: &mut Criterion) {
    for precision in PRECISIONS {
        let mut group = criterion.benchmark_group(format!("product/{precision}"));
        for layer in LinearLayer::ALL {
            let (inputs, outputs) = layer.shape();
            for rows in ROWS {
                let Some(kernel) = kernels::product(precision, layer, rows) else { continue };
                let id = BenchmarkId::new(format!("{inputs}x{outputs}"), rows);
                bench(&mut group, id, 2 * rows * inputs * outputs, kernel);
            }
        }
        group.finish();
    }
}

fn attention(criterion: &mut Criterion) {
    for precision in [Precision::F32, Precision::Bf16] {
        let mut group = criterion.benchmark_group(format!("attention/{precision}"));
        for tokens in TOKENS {
            let Some(kernel) = kernels::attention(precision, tokens) else { continue };
            // Scores and weighted sums: 2 * tokens² * HIDDEN operations each.
            bench(
                &mut group,
                BenchmarkId::from_parameter(tokens),
                4 * tokens * tokens * HIDDEN,
                kernel,
            );
        }
        group.finish();
    }
}

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rows");
    for rows in ROWS {
        for layer in [LinearLayer::Wide, LinearLayer::Narrow] {
            let (inputs, _) = layer.shape();
            let id = BenchmarkId::new(format!("quantize {inputs}"), rows);
            bench(&mut group, id, rows * inputs, kernels::quantize(layer, rows));
        }
        let id = BenchmarkId::new("gelu 1536", rows);
        bench(&mut group, id, rows * INTERMEDIATE, kernels::gelu(rows));
        let id = BenchmarkId::new("layer_norm 384", rows);
        bench(&mut group, id, rows * HIDDEN, kernels::layer_norm(rows));
    }
    for keys in TOKENS {
        let id = BenchmarkId::new("softmax", keys);
        bench(&mut group, id, QUERIES * keys, kernels::softmax(keys));
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    products(&mut criterion);
    attention(&mut criterion);
    rows(&mut criterion);
    criterion.final_summary();
}
