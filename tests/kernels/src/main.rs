//! Contains and runs every kernel, so that `cycles.py` can measure them.

fn main() {
    for (name, results) in kernels::engine::multiply() {
        println!("{name}: {results:?}");
    }
}
