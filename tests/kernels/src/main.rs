//! Has every kernel in it, for `cycles.py` to measure.

fn main() {
    for (name, results) in kernels::engine::multiply() {
        println!("{name}: {results:?}");
    }
}
