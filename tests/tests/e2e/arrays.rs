//! Task arrays: fresh instances, few frames, both agents, order, splits.

use crate::{Result, cluster, guest, one_agent};
use anyhow::Context;
use smalti_tests::Cluster;
use std::collections::{BTreeMap, BTreeSet};

/// Counts words in the plainest way, as the reduce prints them.
pub(crate) fn expected_counts(text: &str) -> String {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    text.split_whitespace().for_each(|w| *counts.entry(w).or_default() += 1);
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    sorted.iter().map(|(w, n)| format!("{w}\t{n}\n")).collect()
}

fn wordcount(c: &Cluster, inputs: &[String], split: &str) -> Result<String> {
    let guest = guest(c, "wordcount")?;
    let mut args = vec!["map", &guest];
    for input in inputs {
        args.extend(["--inputs", input]);
    }
    args.extend(["--split", split, "--reduce", &guest, "--reduce-arg", "--merge"]);
    c.ok(&args)
}

#[test]
fn words_are_counted_right_whatever_the_text_and_the_split() -> Result {
    let c = cluster()?;
    let dir = c.dir().join("texts");
    std::fs::create_dir(&dir)?;
    let long_line = "wort ".repeat(50_000);
    let texts = [
        ("plain.txt", "the cat and the dog\nand the mouse\n".repeat(500)),
        ("unicode.txt", "Füße\u{2003}naïve 東京 Füße\n\u{a0}x\n".repeat(300)),
        ("no-newline-at-end.txt", "one two three".into()),
        ("long-line.txt", long_line),
        ("empty.txt", String::new()),
        ("blank.txt", "\n\n \n".into()),
    ];
    for (name, text) in &texts {
        std::fs::write(dir.join(name), text)?;
    }
    for (name, text) in texts.iter().filter(|(_, t)| !t.is_empty()) {
        let out = wordcount(&c, &[dir.join(name).display().to_string()], "1KiB")?;
        assert_eq!(out, expected_counts(text), "{name}");
    }
    let all: String = texts.iter().map(|(_, t)| format!("{t}\n")).collect();
    assert_eq!(wordcount(&c, &[dir.display().to_string()], "4KiB")?, expected_counts(&all), "a whole directory");
    let glob = format!("{}/*.txt", dir.display());
    assert_eq!(wordcount(&c, &[glob], "64KiB")?, expected_counts(&all), "a glob");
    Ok(())
}

#[test]
fn a_map_reads_more_files_than_a_message_may_carry_descriptors() -> Result {
    let c = cluster()?;
    let dir = c.dir().join("many");
    std::fs::create_dir(&dir)?;
    for n in 0..300 {
        std::fs::write(dir.join(format!("{n:03}")), format!("file {n}\n"))?;
    }
    let guest = guest(&c, "hello")?;
    let out = c.ok(&["map", &guest, "--inputs", &dir.display().to_string(), "--", "cat"])?;
    assert_eq!(out, (0..300).map(|n| format!("file {n}\n")).collect::<String>());
    Ok(())
}

#[test]
fn every_item_has_a_fresh_instance_and_stdout_comes_in_item_order() -> Result {
    let c = cluster()?;
    let out = c.ok(&["map", &guest(&c, "whoami")?, "--items", "500", "--", "--counter"])?;
    assert_eq!(out, "1\n".repeat(500));
    let path = c.dir().join("item.wat");
    // Prints the value of SMALTI_ITEM: the environment is sorted by the host, so look for the name.
    std::fs::write(&path, include_str!("print_item.wat"))?;
    let out = c.ok(&["map", &path.display().to_string(), "--items", "300"])?;
    let lines: Vec<u32> = out.lines().map(|l| l.trim().parse().expect("a number")).collect();
    assert_eq!(lines, (0..300).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn a_hundred_thousand_items_need_few_frames_and_both_agents_run_some() -> Result {
    let c = cluster()?;
    let before = counters(&c)?;
    let job = c.ok(&["submit", &guest(&c, "empty")?, "--items", "100000"])?;
    assert_eq!(c.smalti(&["wait", job.trim()])?.code, 0);
    let jobs = c.json(&["jobs", "--all"])?;
    let by_agent = jobs[0]["items_by_agent"].as_object().context("items_by_agent")?.clone();
    assert_eq!(by_agent.len(), 2, "{by_agent:?}");
    assert_eq!(by_agent.values().filter_map(|n| n.as_u64()).sum::<u64>(), 100_000);
    crate::eventually("the counters arrive", || {
        let now = counters(&c)?;
        Ok(now.values().all(|a| a.get("items_finished").copied() >= Some(1)) && {
            let done: u64 = now.values().map(|a| a.get("items_finished").copied().unwrap_or(0)).sum();
            done >= 100_000
        })
    })?;
    for (agent, now) in counters(&c)? {
        for name in ["master_frames_sent", "master_frames_received", "executor_frames_sent", "executor_frames_received"] {
            let frames = now.get(name).with_context(|| format!("counter {name}"))? - before[&agent].get(name).copied().unwrap_or(0);
            assert!(frames < 2_000, "{agent} {name}: {frames}");
        }
    }
    Ok(())
}

/// Counters of every agent, by name.
fn counters(c: &Cluster) -> Result<BTreeMap<String, BTreeMap<String, u64>>> {
    let agents = c.json(&["agents"])?;
    let agents = agents.as_array().context("a list")?;
    let of = |a: &serde_json::Value| {
        a["counters"].as_object().map(|m| m.iter().map(|(k, v)| (k.clone(), v.as_u64().unwrap_or(0))).collect()).unwrap_or_default()
    };
    Ok(agents.iter().map(|a| (a["id"].as_str().unwrap_or("?").to_owned(), of(a))).collect())
}

#[test]
fn one_failed_item_lets_the_others_finish_and_gives_the_job_its_exit_code() -> Result {
    let c = cluster()?;
    let guest = guest(&c, "misbehave")?;
    let done = c.smalti(&["map", &guest, "--items", "20", "--", "fail-item", "7"])?;
    assert_eq!(done.code, 3, "{}", done.stderr);
    assert!(done.stderr.contains("[item 7]") && done.stderr.contains("fails as asked"), "{}", done.stderr);
    let items = c.json(&["ps", "--all", "--items"])?;
    let states: Vec<_> = items.as_array().context("a list")?.iter().filter(|t| !t["item"].is_null()).collect();
    assert_eq!(states.len(), 20);
    assert_eq!(states.iter().filter(|t| t["state"] == "FINISHED").count(), 19);
    let failed: BTreeSet<u64> = states.iter().filter(|t| t["state"] == "FAILED").filter_map(|t| t["item"].as_u64()).collect();
    assert_eq!(failed, BTreeSet::from([7]));
    Ok(())
}

#[test]
fn a_reduce_does_not_run_after_a_failed_item() -> Result {
    let c = one_agent("2")?;
    let guest = guest(&c, "misbehave")?;
    let done = c.smalti(&["map", &guest, "--items", "5", "--reduce", &guest, "--reduce-arg", "trap", "--", "fail-item", "0"])?;
    assert_eq!(done.code, 3, "{}", done.stderr);
    Ok(())
}

#[test]
fn a_retry_is_a_new_attempt_and_the_guest_can_see_it() -> Result {
    let c = one_agent("1")?;
    let guest = guest(&c, "misbehave")?;
    let done = c.smalti(&["run", "--retries", "2", &guest, "--", "exit", "9"])?;
    assert_eq!(done.code, 9);
    let tasks = c.json(&["ps", "--all"])?;
    assert_eq!(tasks[0]["attempt"], 2, "{tasks}");
    Ok(())
}
