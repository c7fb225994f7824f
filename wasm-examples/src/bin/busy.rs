//! Computes for about 100 µs: what a task costs beside a little work of its own.

fn main() {
    let mut x = 0x9e37_79b9_u32;
    for _ in 0..60_000 {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
    }
    std::hint::black_box(x);
}
