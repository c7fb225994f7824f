//! An executor for one task: what looks after guests begins only when a guest takes longer than a tick.

use super::*;

#[test]
fn a_guest_that_computes_is_ended_by_its_time_and_by_a_kill() {
    for killed in [false, true] {
        let mut agent = Agent::start_pooled();
        let module = agent.load(guests::LOOP);
        agent.start_task(1, v1::Guest { timeout_us: (!killed).then_some(50_000), ..guest(module) });
        assert_eq!(agent.receive(), From::Started(v1::Started { run: 1 }));
        if killed {
            agent.send(To::Kill(v1::Kill { run: 1, grace_us: 0 }), &[]);
        }
        let From::Outcome(outcome) = agent.receive() else { panic!("its end comes next") };
        let reason = if killed { "KILLED_BY_REQUEST" } else { "TIME_LIMIT" };
        assert_eq!(outcome.failure.map(|f| f.reason).as_deref(), Some(reason));
    }
}

#[test]
fn its_time_ends_while_there_is_no_agent() {
    let mut agent = Agent::start_pooled();
    let module = agent.load(guests::LOOP);
    let known = agent.last;
    agent.start_task(1, v1::Guest { timeout_us: Some(50_000), ..guest(module) });
    agent.cut();
    agent.come_back(known);
    loop {
        let said = agent.again.pop_front().map_or_else(|| agent.receive(), |(_, said)| said);
        if let From::Outcome(outcome) = said {
            break assert_eq!(outcome.failure.map(|f| f.reason).as_deref(), Some("TIME_LIMIT"));
        }
    }
}

#[test]
fn what_the_agent_does_not_read_at_once_it_reads_later() {
    let mut agent = Agent::start_pooled();
    // More than a socket holds, from one who has no thread yet that could wait for room.
    let mut runs = 0;
    for run in 0..20_000 {
        agent.send(To::Unlease(v1::Unlease { run, most: 1 }), &[]);
        runs += 1;
    }
    for run in 0..runs {
        let From::Report(report) = agent.receive() else { panic!("an answer to each") };
        assert_eq!(report.run, run);
    }
}
