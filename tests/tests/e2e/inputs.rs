//! Inputs from where a cluster fetches them: prefixes, patterns, splits, compressed objects, and objects that change.

use crate::arrays::expected_counts;
use crate::{Result, guest};
use anyhow::Context;
use smalti_test_s3::S3;
use smalti_tests::{AgentConfig, Cluster, Config};
use std::io::Write;

fn with(s3: &S3, agents: usize) -> Result<Cluster> {
    Cluster::start(Config { agents: vec![AgentConfig::default(); agents], env: s3.env(), ..Config::default() })
}

fn wordcount(c: &Cluster, input: &str, further: &[&str]) -> Result<smalti_tests::Finished> {
    let guest = guest(c, "wordcount")?;
    let args = [&["map", &guest, "--inputs", input, "--reduce", &guest, "--reduce-arg", "--merge"], further].concat();
    let done = c.smalti(&args)?;
    anyhow::ensure!(done.code == 0, "{input} {further:?}: {}{}\n{}", done.stdout, done.stderr, c.logs());
    Ok(done)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).expect("in memory");
    out.finish().expect("in memory")
}

#[test]
fn a_prefix_in_splits_gives_the_same_counts_and_is_fetched_once() -> Result {
    let s3 = S3::start()?;
    let texts = [
        ("logs/2026-01/a b.txt", "the cat and the dog\r\nand the mouse\r\n".repeat(500)),
        ("logs/2026-01/\u{6587}.txt", "F\u{fc}\u{df}e na\u{ef}ve F\u{fc}\u{df}e\n".repeat(300)),
        ("logs/2026-02/long-line.txt", "wort ".repeat(20_000)),
        ("logs/2026-02/no-newline-at-end.txt", "one two three".into()),
        ("logs/2026-02/empty.txt", String::new()),
        ("logs/2025-12/old.txt", "old words\n".into()),
    ];
    for (key, text) in &texts {
        s3.put(key, text.as_bytes())?;
    }
    let all = |wanted: &str| -> String { texts.iter().filter(|(k, _)| k.contains(wanted)).map(|(_, t)| format!("{t}\n")).collect() };
    let c = with(&s3, 1)?;
    for split in ["1KiB", "64KiB", "none"] {
        assert_eq!(wordcount(&c, "s3://bucket/logs/", &["--split", split])?.stdout, expected_counts(&all("logs/")), "{split}");
    }
    let first = s3.fetched();
    assert_eq!(first.len(), 5, "each object that is not empty once, over three jobs: {first:?}");
    let out = wordcount(&c, "s3://bucket/logs/2026-*/*.txt", &["--split", "4KiB"])?.stdout;
    assert_eq!(out, expected_counts(&all("2026")), "a pattern");
    assert_eq!(s3.fetched(), Vec::<String>::new(), "another job over the same inputs");
    for (input, says) in [
        ("s3://bucket/logs/2027-*/*", "nothing at s3://bucket/logs/2027-*/*"),
        ("s3://bucket/none/", "nothing at s3://bucket/none/"),
        ("s3://bucket/log", "end it with a slash"),
        ("s3://nothing/logs/", "s3://nothing/logs/"),
    ] {
        let done = c.smalti(&["map", &guest(&c, "wordcount")?, "--inputs", input])?;
        assert!(done.code == 125 && done.stderr.contains(says), "{input}: {} {}", done.code, done.stderr);
        assert!(!done.stderr.contains(smalti_test_s3::SECRET));
    }
    Ok(())
}

#[test]
fn compressed_objects_are_read_unpacked_and_not_split() -> Result {
    let s3 = S3::start()?;
    let text = "some words and more words\n".repeat(5_000);
    let zstd = |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    s3.put("packed/a.gz", &[gzip(text.as_bytes()), gzip(b"last\n")].concat())?;
    s3.put("packed/b.zst", &zstd(text.as_bytes()))?;
    let c = with(&s3, 1)?;
    let done = wordcount(&c, "s3://bucket/packed/", &["--split", "1KiB"])?;
    assert_eq!(done.stdout, expected_counts(&format!("{text}last\n{text}")));
    let jobs = c.json(&["jobs", "--all"])?;
    assert_eq!(jobs[0]["items_total"], 2, "{jobs}");
    // A file of the client, too, and one that is not what its name says.
    let local = c.dir().join("local.txt.gz");
    std::fs::write(&local, gzip(text.as_bytes()))?;
    assert_eq!(wordcount(&c, &local.display().to_string(), &[])?.stdout, expected_counts(&text));
    s3.put("wrong/x.gz", b"not packed at all")?;
    s3.put("wrong/y.txt", b"fine\n")?;
    let done = c.smalti(&["map", &guest(&c, "wordcount")?, "--inputs", "s3://bucket/wrong/"])?;
    assert!(done.code == 125 && done.stderr.contains("cannot be unpacked"), "{} {}", done.code, done.stderr);
    let plain = c.smalti(&["map", &guest(&c, "hello")?, "--inputs", "s3://bucket/wrong/x.gz", "--no-unpack", "--", "cat"])?;
    assert_eq!((plain.code, plain.stdout.as_str()), (0, "not packed at all"), "{}", plain.stderr);
    Ok(())
}

#[test]
fn an_input_that_changed_fails_its_items_and_no_others() -> Result {
    let s3 = S3::start()?;
    s3.put("in/0", b"stays\n")?;
    s3.put("in/1", b"changes\n")?;
    s3.put("in/2", b"goes\n")?;
    // Nobody to run it yet.
    let mut c = with(&s3, 0)?;
    let local = c.dir().join("file.txt");
    std::fs::write(&local, "as it was\n")?;
    let hello = guest(&c, "hello")?;
    let uri = format!("file://{}", local.display());
    let job = c.ok(&["submit", &hello, "--inputs", "s3://bucket/in/", "--inputs", &uri, "--", "cat"])?.trim().to_owned();
    s3.put("in/1", b"changed\n")?;
    // Of a second's resolution at worst.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(2);
    std::fs::File::options().write(true).open(s3.path("in/1"))?.set_modified(later)?;
    std::fs::remove_file(s3.path("in/2"))?;
    std::fs::write(&local, "as it is.\n")?;
    std::fs::File::options().write(true).open(&local)?.set_modified(later)?;
    c.add_agent(&AgentConfig { flags: vec!["--file-root=/".into()], ..AgentConfig::default() })?;
    let done = c.smalti(&["wait", &job])?;
    assert_eq!(done.code, 125, "{}", done.stderr);
    let items = c.json(&["ps", "--all", "--items", &job])?;
    let items = items.as_array().context("a list")?;
    let of = |n: usize, key: &str| items[n][key].as_str().unwrap_or_default().to_owned();
    assert_eq!((0..4).map(|n| of(n, "state")).collect::<Vec<_>>(), ["FINISHED", "FAILED", "FAILED", "FAILED"], "{items:?}");
    for (n, says) in [(1, "changed since"), (2, "there is no s3://bucket/in/2"), (3, "changed since")] {
        assert_eq!((of(n, "reason").as_str(), items[n]["attempt"].as_u64()), ("INPUT_FAILED", Some(0)));
        assert!(of(n, "message").contains(says), "{}", of(n, "message"));
    }
    assert_eq!(c.ok(&["logs", &job, "--item", "0"])?, "stays\n");
    Ok(())
}

#[test]
fn the_next_job_over_an_input_goes_where_it_lies_and_waits_for_room_there() -> Result {
    let s3 = S3::start()?;
    s3.put("big.txt", "some words\n".repeat(400_000).as_bytes())?;
    let agents = ["a", "b"].map(|z| AgentConfig { flags: vec!["--attributes".into(), format!("zone={z}")], ..AgentConfig::default() });
    let scheduler_flags = ["--locality-wait", "100s"].map(String::from).to_vec();
    let c = Cluster::start(Config { agents: agents.to_vec(), scheduler_flags, env: s3.env(), ..Config::default() })?;
    let all = c.json(&["agents"])?;
    let there = |all: &serde_json::Value| -> Result<serde_json::Value> {
        Ok(all.as_array().context("a list")?.iter().find(|a| a["attributes"]["zone"] == "b").context("zone b")?.clone())
    };
    let holder = there(&all)?["id"].as_str().context("an id")?.to_owned();
    let guest_path = guest(&c, "wordcount")?;
    let submit = |further: &[&str]| {
        let args = [&["submit", "--inputs", "s3://bucket/big.txt", "--split", "none"], further, &[&guest_path]].concat();
        c.ok(&args).map(|job| job.trim().to_owned())
    };
    let ran_there = |job: &str| -> Result {
        assert_eq!(c.smalti(&["wait", job])?.code, 0, "{}", c.logs());
        let jobs = c.json(&["jobs", "--all"])?;
        let view = jobs.as_array().context("a list")?.iter().find(|j| j["job_id"] == job).context("the job")?;
        assert_eq!(view["items_by_agent"], serde_json::json!({ &holder: 1 }), "{view}");
        Ok(())
    };
    ran_there(&submit(&["--constraint", "zone=b"])?)?;
    crate::eventually("the master knows of bundle and input", || {
        let held = there(&c.json(&["agents"])?)?["holdings"].as_object().context("by role")?.values().next().cloned();
        Ok(held.and_then(|keys| Some(keys.as_array()?.len())) == Some(2))
    })?;
    for _ in 0..3 {
        ran_there(&submit(&[])?)?;
    }
    let blocker = c.ok(&["submit", "--cpus", "2", "--constraint", "zone=b", &guest(&c, "misbehave")?, "--", "sleep", "3600000"])?;
    crate::eventually("it runs", || Ok(c.json(&["ps"])?.as_array().context("a list")?.iter().any(|t| t["state"] == "RUNNING")))?;
    let job = submit(&[])?;
    crate::eventually("the job waits for the agent with its input", || {
        let explained = c.json(&["explain", &job])?;
        Ok(explained["waits_for"]["agent"] == holder.as_str())
    })?;
    c.ok(&["kill", "--grace", "0s", blocker.trim()])?;
    ran_there(&job)?;
    assert_eq!(s3.fetched().len(), 1, "the input was fetched once");
    Ok(())
}

/// Bytes of one look for a line's end.
const CUT: u64 = 64 << 10;

/// Text of about so many MiB, no two lines of it alike.
fn large_text(mib: u32) -> String {
    (0..mib * 16_384).map(|n| format!("line {n:<40} of a large text end\n")).collect()
}

#[test]
fn of_an_object_that_no_cache_can_hold_agents_fetch_what_their_items_read() -> Result {
    let s3 = S3::start()?;
    let text = large_text(32);
    s3.put("large.txt", text.as_bytes())?;
    // Two pieces of the usual length fit into each.
    let flags = vec!["--inputs-budget=10MiB".to_owned()];
    let c =
        Cluster::start(Config { agents: vec![AgentConfig { flags, ..AgentConfig::default() }; 2], env: s3.env(), ..Config::default() })?;
    let expected = expected_counts(&text);
    let counted = |further: &[&str]| -> Result<u64> {
        let done = wordcount(&c, "s3://bucket/large.txt", further)?;
        assert!(done.stdout == expected, "{further:?}: other counts");
        let asked = s3.asked();
        let whole: Vec<&String> = asked.iter().filter(|a| a.starts_with("GET ") && !a.contains("list-type")).collect();
        let all = whole.iter().map(|a| smalti_test_s3::part_length(a).with_context(|| format!("all of it was asked for: {a}")));
        let all = all.collect::<Result<Vec<u64>>>()?;
        // So much the scheduler looks at around each cut.
        Ok(all.into_iter().filter(|n| *n != CUT).sum())
    };
    let length = text.len() as u64;
    let sent = counted(&[])?;
    // What one agent began and another got is asked for again.
    assert!((length..length + length / 2).contains(&sent), "{sent} bytes of {length} were sent");
    // Small splits share their blocks; some blocks have splits that different agents got.
    let sent = counted(&["--split", "100KiB"])?;
    assert!((length * 9 / 10..length * 2).contains(&sent), "{sent} bytes of {length} were sent for small splits");
    Ok(())
}

#[test]
fn a_job_over_pieces_that_are_kept_fetches_nothing_and_one_over_another_version_fails() -> Result {
    let s3 = S3::start()?;
    let text = large_text(9);
    s3.put("large.txt", text.as_bytes())?;
    let mut c = with(&s3, 1)?;
    let expected = expected_counts(&text);
    for further in [&[][..], &["--isolation", "process"]] {
        assert!(wordcount(&c, "s3://bucket/large.txt", further)?.stdout == expected, "{further:?}: other counts");
    }
    let pieces: Vec<u64> = s3.asked().iter().filter_map(|a| smalti_test_s3::part_length(a)).filter(|n| *n > 1 << 20).collect();
    assert_eq!(pieces.len(), 3, "each piece once for two jobs: {pieces:?}");
    // An agent that is started anew finds them, and takes up a part that is under way.
    let config = AgentConfig::default();
    c.kill_agent(0)?;
    let job = c.ok(&["submit", &guest(&c, "wordcount")?, "--inputs", "s3://bucket/large.txt"])?.trim().to_owned();
    c.restart_agent(0, &config)?;
    assert_eq!(c.smalti(&["wait", &job])?.code, 0, "{}", c.logs());
    let more: Vec<String> = s3.asked().into_iter().filter(|a| smalti_test_s3::part_length(a).is_some_and(|n| n > 1 << 20)).collect();
    assert_eq!(more, Vec::<String>::new());
    // Nobody to run it yet, and then it is another object of the same length.
    c.kill_agent(0)?;
    s3.put("other.txt", text.as_bytes())?;
    let job = c.ok(&["submit", &guest(&c, "wordcount")?, "--inputs", "s3://bucket/other.txt", "--retries", "0"])?.trim().to_owned();
    s3.put("other.txt", text.replace("end", "END").as_bytes())?;
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(2);
    std::fs::File::options().write(true).open(s3.path("other.txt"))?.set_modified(later)?;
    c.restart_agent(0, &config)?;
    assert_eq!(c.smalti(&["wait", &job])?.code, 125);
    let items = c.json(&["ps", "--all", "--items", &job])?;
    for item in items.as_array().context("a list")? {
        assert!(item["reason"] == "INPUT_FAILED" && item["message"].as_str().is_some_and(|m| m.contains("changed since")), "{item}");
    }
    Ok(())
}
