//! Gradient descent over rounds of one job. An item sums the gradient over its split of `x1,x2,…,label` rows, with the
//! weights of the round before from `/smalti/state`; the reduce (`--step RATE`) prints the weights of the next round.

use smalti_wasm_examples::logistic;
use std::io;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("--step") {
        let rate: f64 = args.next().ok_or("usage: logistic-regression --step RATE")?.parse()?;
        let (weights, loss) = logistic::step(io::stdin().lock(), rate)?;
        eprintln!("mean loss before this step: {loss:.6}");
        println!("{weights}");
        return Ok(());
    }
    let weights = match std::fs::read_to_string("/smalti/state") {
        Ok(text) => Some(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(format!("reading /smalti/state: {e}").into()),
    };
    println!("{}", logistic::gradient(io::stdin().lock(), weights.as_deref())?.to_line());
    Ok(())
}
