mod accept;
mod supervise;
use smalti_executor_protocol::{*, v1::*};
fn main() -> std::process::ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    if args[0] != "work" { return supervise::main(args); }
    let n = |i: usize| args[i].to_str().unwrap().parse().unwrap();
    let (l, _d) = accept::inherited(n(2), n(4)).unwrap();
    let Some(s) = accept::accept(&l, std::time::Duration::from_secs(30)).unwrap() else { return 9.into() };
    let (mut r, mut w) = blocking::split(s).unwrap();
    let slots = match r.recv::<ToExecutor>().unwrap().unwrap().0.message { Some(to_executor::Message::Welcome(w)) => w.slots, m => panic!("{m:?}") };
    let (tx, rx) = std::sync::mpsc::channel();
    let spin = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for slot in 0..slots { let tx = tx.clone(); let spin = spin.clone(); std::thread::spawn(move || { tx.send(SlotThread { slot, tid: nix::unistd::gettid().as_raw() }).unwrap(); loop { if spin.load(std::sync::atomic::Ordering::Relaxed) { std::hint::spin_loop() } else { std::thread::sleep(std::time::Duration::from_millis(5)) } } }); }
    let slots = rx.iter().take(slots as usize).collect();
    w.send(&FromExecutor { message: Some(from_executor::Message::Hello(Hello { protocol: 1, pid: std::process::id() as i32, slots, ..Default::default() })) }, &[]).unwrap();
    loop { match r.recv::<ToExecutor>().unwrap() { None => return 8.into(), Some((m, _)) => match m.message.unwrap() {
        to_executor::Message::Shutdown(_) => return 0.into(),
        to_executor::Message::Kill(k) => return (k.run as u8).into(),
        to_executor::Message::Unload(_) => spin.store(true, std::sync::atomic::Ordering::Relaxed),
        to_executor::Message::EndArray(_) => { let mut v: Vec<Vec<u8>> = vec![]; loop { v.push(vec![1; 1 << 20]); } }
        _ => {} } } }
}
