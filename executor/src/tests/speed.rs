//! Figures, not checks: `cargo test --release -p smalti-executor speed -- --ignored --nocapture --test-threads=1`.

use super::*;
use crate::clock::thread_cpu;
use std::time::Instant;

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find(|l| l.starts_with("VmRSS")).expect("there");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// Rust's shape: a shadow stack of a mebibyte first, of which little is touched, then data.
const RUST_LIKE: &str = r#"(module (memory (export "memory") 17) (table 4 funcref) (data (i32.const 1048576) "some data")
  (func (export "_start")
    (i32.store (i32.const 1048560) (i32.const 1)) (i32.store (i32.const 1044000) (i32.const 1)) (i32.store (i32.const 1050000) (i32.const 1))))"#;

#[test]
#[ignore = "prints figures"]
fn items_per_second() {
    for (name, text) in [("empty", guests::EMPTY), ("like Rust", RUST_LIKE), ("printing one byte", guests::COUNTER)] {
        for slots in [1, 2] {
            let mut agent = Agent::start(slots);
            let idle = resident_kib();
            let module = agent.load(text);
            let items = 400_000_u64;
            let start = v1::StartArray {
                run: 1,
                slots: (0..slots).collect(),
                guest: Some(guest(module)),
                total_items: items,
                ..Default::default()
            };
            agent.send_array(start, &[]);
            agent.await_started(1);
            let (began, cpu) = (Instant::now(), thread_cpu());
            let (mut leased, mut done, mut item_cpu) = (0, 0, 0);
            let chunk = 10_000;
            while done < items {
                if leased < items && leased - done <= chunk / 2 {
                    let items = vec![v1::ItemRange { first: leased, end: leased + chunk }];
                    let lease = v1::Lease {
                        run: 1,
                        items,
                        attempt: 0,
                        splits: Vec::new(),
                        report_when_left: chunk / 2,
                        report_interval_us: 60_000_000,
                    };
                    agent.send(To::Lease(lease), &[]);
                    leased += chunk;
                }
                let From::Report(report) = agent.receive() else { panic!("a report") };
                assert!(report.failed.is_empty(), "{:?}", report.failed[0]);
                done += report.finished.iter().map(|r| r.end - r.first).sum::<u64>();
                item_cpu += report.usage.map_or(0, |u| u.cpu_us);
            }
            let took = began.elapsed();
            let rate = u128::from(items) * 1_000_000 / took.as_micros();
            eprintln!(
                "{name}, {slots} slots, {}/{}: {rate} items/s, {} ns cpu per item, agent {:?} cpu, idle {idle} KiB, after {} KiB {:?}",
                agent.hello.allocator,
                agent.hello.reset,
                item_cpu * 1000 / items,
                thread_cpu() - cpu,
                resident_kib(),
                agent.hello.warnings,
            );
            agent.send(To::Shutdown(v1::Shutdown {}), &[]);
        }
    }
}

#[test]
#[ignore = "prints figures"]
fn tasks_per_second() {
    let mut agent = Agent::start(2);
    let module = agent.load(guests::EMPTY);
    let tasks = 4_000_u64;
    let began = Instant::now();
    let (mut sent, mut done) = (0, 0);
    while done < tasks {
        while sent < tasks && sent - done < 64 {
            let slot = u32::try_from(sent % 2).expect("small");
            let start = v1::StartTask { run: sent, slot, guest: Some(guest(module)), ..Default::default() };
            agent.send_task(start, &[]);
            sent += 1;
        }
        if matches!(agent.receive(), From::Outcome(_)) {
            done += 1;
        }
    }
    eprintln!("{} single tasks/s", u128::from(tasks) * 1_000_000 / began.elapsed().as_micros());
    agent.stop();
}
