//! A fixture for tests of limits: does one wrong thing, named by its first argument.

use std::io::Write;
use std::time::Duration;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = || args.get(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    match args.first().map(String::as_str) {
        Some("trap") => panic!("asked to trap"),
        Some("loop") => endless_loop(),
        Some("sleep") => std::thread::sleep(Duration::from_millis(number())),
        Some("spin-us") => spin(Duration::from_micros(number())),
        Some("eat-memory") => eat_memory(number()),
        Some("print") => print_without_end(),
        Some("exit") => std::process::exit(i32::try_from(number()).unwrap_or(1)),
        Some("until-stopped") => until_stopped(),
        Some("tick") => tick(&args[1..]),
        Some("fail-item") => fail_item(number()),
        other => {
            eprintln!("unknown misbehaviour {other:?}");
            std::process::exit(2);
        }
    }
}

fn endless_loop() {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

fn spin(span: Duration) {
    let start = std::time::Instant::now();
    while start.elapsed() < span {
        std::hint::spin_loop();
    }
}

/// Touches one more MiB at a time, up to `limit_mib`, and says how far it came.
fn eat_memory(limit_mib: u64) {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    for n in 1..=limit_mib {
        blocks.push(vec![1; 1 << 20]);
        println!("{n} MiB");
    }
    std::hint::black_box(&blocks);
}

fn print_without_end() {
    let block = [b'x'; 4096];
    while std::io::stdout().write_all(&block).is_ok() {}
}

/// Runs until somebody asks it to stop, then says so: shows that a kill asks first.
fn until_stopped() {
    println!("running");
    while !smalti_guest_sdk::should_stop() {
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("asked to stop");
}

/// Says its item and a number, `COUNT` times, `PAUSE_MS` apart, and exits with `CODE`: output that comes over time.
fn tick(args: &[String]) {
    let number = |i: usize| args.get(i).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    let item = smalti_guest_sdk::Me::from_env().item.unwrap_or(0);
    for n in 0..number(0) {
        println!("tick {item} {n}");
        std::thread::sleep(Duration::from_millis(number(1)));
    }
    std::process::exit(i32::try_from(number(2)).unwrap_or(1));
}

/// Item `which` exits with code 3, the others with 0.
fn fail_item(which: u64) {
    if smalti_guest_sdk::Me::from_env().item == Some(which) {
        eprintln!("item {which} fails as asked");
        std::process::exit(3);
    }
}
