//! The client verbs as a user meets them: the real binary against a cluster that only pretends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fake;

use fake::Fake;
use smalti_proto::v1::{map_job, stdin, submit_request};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

const WASM: &[u8] = b"\0asm\x01\0\0\0";

/// A fake cluster, a bundle, and a directory for more.
struct World {
    fake: Fake,
    dir: tempfile::TempDir,
    bundle: PathBuf,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("hello.wasm");
        std::fs::write(&bundle, WASM).unwrap();
        Self { fake: Fake::start().await, dir, bundle }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smalti"));
        command.args(args).env("SMALTI_MASTER", self.fake.address()).current_dir(self.dir.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn smalti(&self, args: &[&str]) -> Output {
        self.command(args).output().await.unwrap()
    }

    async fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.smalti(args).await;
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", stdout(&output)))
    }

    async fn exit_code(&self, args: &[&str]) -> i32 {
        self.smalti(args).await.status.code().unwrap()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn interrupt(child: &Child) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_says_whom_it_waits_for() {
    let world = World::new().await;
    assert_eq!(world.exit_code(&["submit", "--name", "late", "hello.wasm"]).await, 0);
    let output = world.smalti(&["logs", "--reconnect-timeout", "10m", "j1"]).await;
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "out\nerr\n"));
    let said = stderr(&output);
    assert!(said.contains("reading the output of j1: agent a1 did not answer within 10 s; asking again for up to 10m00s"), "{said}");
    assert!(said.contains("there is an answer again"), "{said}");
    let output = world.smalti(&["logs", "j1"]).await;
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("out\nerr\n", ""), "nothing to wait for, nothing to say");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_passes_both_streams_and_the_exit_code_through() {
    let world = World::new().await;
    let output = world.smalti(&["run", "hello.wasm", "-x", "--help"]).await;
    assert_eq!((output.status.code(), stdout(&output), stderr(&output)), (Some(0), "out\n".into(), "err\n".into()));
    let Some(submit_request::Kind::Single(job)) = world.fake.last().kind else { panic!() };
    let spec = job.spec.unwrap();
    assert_eq!(spec.args, ["-x", "--help"]);
    assert_eq!(&spec.bundle.unwrap().digest[..], blake3::hash(WASM).as_bytes());
    let failed = world.smalti(&["run", "--name", "exit-3", "hello.wasm"]).await;
    assert_eq!((failed.status.code(), stderr(&failed)), (Some(3), "err\n".into()), "a guest's own exit code needs no words");
    assert_eq!(world.fake.state.lock().unwrap().uploads, 1, "what the store has is not sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reason_has_its_exit_code_and_is_said() {
    let world = World::new().await;
    for (reason, code) in [("TIME_LIMIT", 124), ("INVALID_BUNDLE", 126), ("NO_ENTRY_POINT", 127), ("TRAP", 134), ("MEMORY_LIMIT", 137)] {
        let output = world.smalti(&["run", "--name", &format!("reason-{reason}"), "hello.wasm"]).await;
        assert_eq!(output.status.code(), Some(code), "{reason}");
        assert!(stderr(&output).ends_with(&format!("failed: {reason}: so it is\n")), "{}", stderr(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_lost_is_a_failure() {
    let world = World::new().await;
    let output = world.smalti(&["run", "--name", "lost", "hello.wasm"]).await;
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("the agent is gone"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn piped_stdin_goes_to_the_store_and_none_does_not() {
    let world = World::new().await;
    let mut child = world.command(&["run", "hello.wasm"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"words").await.unwrap();
    assert!(child.wait().await.unwrap().success());
    let source = |fake: &Fake| match fake.last().kind {
        Some(submit_request::Kind::Single(job)) => job.spec.unwrap().stdin.unwrap().source.unwrap(),
        other => panic!("{other:?}"),
    };
    let stdin::Source::Object(input) = source(&world.fake) else { panic!() };
    assert_eq!((input.length, &input.digest.unwrap()[..]), (5, &blake3::hash(b"words").as_bytes()[..]));
    let file = std::fs::File::open(&world.bundle).unwrap();
    let child = world.command(&["run", "--stdin", "none", "hello.wasm"]).stdin(file).spawn().unwrap();
    assert!(child.wait_with_output().await.unwrap().status.success());
    assert!(matches!(source(&world.fake), stdin::Source::Empty(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_kills_the_job_and_stays_to_its_end() {
    let world = World::new().await;
    let mut child = world.command(&["run", "--name", "hang", "hello.wasm"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("begun"), "output comes while the job runs");
    interrupt(&child);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(137), "{}", stderr(&output));
    assert_eq!(world.fake.state.lock().unwrap().killed, ["j1"]);
    assert!(stderr(&output).contains("KILLED_BY_REQUEST"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_ends_the_job_without_words() {
    let world = World::new().await;
    let mut child = world.command(&["run", "--name", "flood", "hello.wasm"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("y"));
    drop(lines);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(137), String::new()));
    assert_eq!(world.fake.state.lock().unwrap().killed, ["j1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn map_prints_items_in_order_with_their_number_on_stderr() {
    let world = World::new().await;
    let output = world.smalti(&["map", "hello.wasm", "--items", "2", "--", "-v"]).await;
    assert_eq!(stdout(&output), "zero\none\n");
    assert_eq!(stderr(&output), "[item 0] oops\n[item 1] oh\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_of_the_client_are_uploaded_and_uris_are_passed_on() {
    let world = World::new().await;
    for name in ["b.txt", "a.txt"] {
        std::fs::File::create(world.dir.path().join(name)).unwrap().write_all(name.as_bytes()).unwrap();
    }
    let id = world.smalti(&["submit", "hello.wasm", "--inputs", "*.txt", "--inputs", "s3://b/*.csv", "--split", "1MiB"]).await;
    assert_eq!(stdout(&id), "j1\n", "the id alone: {}", stderr(&id));
    let Some(submit_request::Kind::Map(job)) = world.fake.last().kind else { panic!() };
    let Some(map_job::Items::Inputs(inputs)) = job.items else { panic!() };
    let digests: Vec<_> = inputs.inputs.iter().map(|i| i.digest.as_ref().map(|d| d.to_vec())).collect();
    let of = |text: &[u8]| Some(blake3::hash(text).as_bytes().to_vec());
    assert_eq!(digests, [of(b"a.txt"), of(b"b.txt"), None]);
    assert_eq!((inputs.inputs[2].uri.as_deref(), job.split_bytes), (Some("s3://b/*.csv"), Some(1 << 20)));
    assert!(matches!(job.spec.unwrap().stdin.unwrap().source, Some(stdin::Source::Split(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uri_without_a_pin_is_left_to_the_scheduler() {
    let world = World::new().await;
    let bundle = |fake: &Fake| match fake.last().kind {
        Some(submit_request::Kind::Single(job)) => job.spec.unwrap().bundle.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(world.exit_code(&["run", "-d", "https://h/x.wasm"]).await, 0);
    let unpinned = bundle(&world.fake);
    assert_eq!((unpinned.uri.as_deref(), &unpinned.digest[..]), (Some("https://h/x.wasm"), &[0; 32][..]));
    let hash = blake3::hash(b"x");
    assert_eq!(world.exit_code(&["run", "-d", &format!("https://h/x.wasm#blake3={hash}")]).await, 0);
    assert_eq!(&bundle(&world.fake).digest[..], hash.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_that_are_not_there_or_not_wasm_are_told_apart() {
    let world = World::new().await;
    std::fs::write(world.dir.path().join("text"), "hello").unwrap();
    let digest = format!("blake3:{}", blake3::hash(b"nothing"));
    assert_eq!(world.exit_code(&["run", "none.wasm"]).await, 127);
    assert_eq!(world.exit_code(&["run", "."]).await, 127);
    assert_eq!(world.exit_code(&["run", &digest]).await, 127);
    assert_eq!(world.exit_code(&["run", "text"]).await, 126);
    assert_eq!(world.exit_code(&["bundle", "rm", &digest]).await, 127);
    assert_eq!(world.exit_code(&["wait", "none"]).await, 125);
    assert!(world.fake.state.lock().unwrap().submitted.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_json_arrays_with_the_promised_keys() {
    let world = World::new().await;
    assert_eq!(world.exit_code(&["run", "--name", "exit-3", "hello.wasm"]).await, 3);
    let agents = world.json(&["agents", "-o", "json"]).await;
    assert_eq!(agents[0]["free"], serde_json::json!({"cpus": 2.0, "mem": 1 << 30, "disk": 0, "ports": [[1, 2]]}));
    assert_eq!(agents[0]["registered_at"], "1970-01-01T00:00:01Z");
    let tasks = world.json(&["ps", "--all", "--output", "json"]).await;
    assert_eq!((tasks[0]["task_id"].as_str(), tasks[1]["task_id"].as_str()), (Some("t1"), Some("t2")), "all pages, one array");
    let jobs = world.json(&["jobs", "-o", "json"]).await;
    assert_eq!((jobs[0]["job_id"].as_str(), jobs[0]["exit_code"].as_i64()), (Some("j1"), Some(3)));
    assert_eq!(world.json(&["frameworks", "-o", "json"]).await[0]["id"], "F1");
    assert_eq!(world.json(&["offers", "-o", "json"]).await[0]["id"], "1-O2");
    assert_eq!(world.json(&["roles", "-o", "json"]).await[0]["name"], "default");
    assert_eq!(world.json(&["explain", "-o", "json", "j1"]).await["waits_for"], "cpus");
    assert_eq!(world.json(&["bundle", "ls", "-o", "json"]).await[0]["size"], 8);
    assert_eq!(world.json(&["submit", "-o", "json", "hello.wasm"]).await["job_id"], "j2");
    let ended = world.json(&["run", "-o", "json", "hello.wasm"]).await;
    assert_eq!((ended["stdout"].as_str(), ended["stderr"].as_str(), ended["exit_code"].as_i64()), (Some("out\n"), Some("err\n"), Some(0)));
    assert_eq!(world.json(&["wait", "-o", "json", "j2"]).await["state"], "FINISHED");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_a_job_is_in_its_role() {
    let world = World::new().await;
    for (args, role) in [(&["run", "hello.wasm"][..], "batch"), (&["submit", "--role", "team-a", "hello.wasm"], "team-a")] {
        assert_eq!(world.exit_code(args).await, 0);
        assert_eq!((world.fake.last().role.as_str(), world.fake.state.lock().unwrap().role.as_str()), (role, role), "{args:?}");
    }
    let pushed = world.json(&["bundle", "push", "-o", "json", "hello.wasm"]).await;
    assert_eq!(pushed["role"], "batch", "the scheduler's own, as for a job");
    assert_eq!(world.exit_code(&["run", "--role", "a/b", "hello.wasm"]).await, 125);
}

#[tokio::test(flavor = "multi_thread")]
async fn bundles_are_pushed_listed_inspected_and_removed() {
    let world = World::new().await;
    let pushed = world.smalti(&["bundle", "push", "hello.wasm"]).await;
    let digest = stdout(&pushed).trim().to_owned();
    assert_eq!(digest, format!("blake3:{}", blake3::hash(WASM)));
    assert!(stdout(&world.smalti(&["bundle", "ls"]).await).contains(&digest));
    let found = world.json(&["bundle", "inspect", "-o", "json", &digest]).await;
    assert_eq!((found["kind"].as_str(), found["size"].as_u64(), found["digest"].as_str()), (Some("module"), Some(8), Some(&*digest)));
    assert_eq!(stdout(&world.smalti(&["bundle", "grant", &digest, "--role", "b"]).await), format!("{digest} is for: b\n"));
    assert_eq!(world.json(&["bundle", "revoke", "-o", "json", "--role", "b", &digest]).await["roles"], serde_json::json!([]));
    assert_eq!(world.exit_code(&["bundle", "grant", &digest]).await, 125, "whom?");
    assert_eq!(world.exit_code(&["bundle", "rm", &digest]).await, 0);
    assert_eq!(world.exit_code(&["bundle", "inspect", &digest]).await, 127);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_sandbox_files_come_on_stdout() {
    let world = World::new().await;
    assert_eq!(stdout(&world.smalti(&["submit", "hello.wasm"]).await), "j1\n");
    assert_eq!(stdout(&world.smalti(&["logs", "--stderr", "j1"]).await), "err\n");
    assert_eq!(stdout(&world.smalti(&["sandbox", "cat", "t1:a/b"]).await), "this is a/b");
    assert_eq!(world.json(&["sandbox", "ls", "-o", "json", "t1"]).await[0]["name"], "stdout");
    assert_eq!(world.exit_code(&["sandbox", "cp", "t1:a/b"]).await, 0);
    assert_eq!(std::fs::read_to_string(world.dir.path().join("b")).unwrap(), "this is a/b");
    assert_eq!(world.exit_code(&["kill", "none"]).await, 125);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_what_wrote_to_stderr_alone_say_so() {
    let world = World::new().await;
    assert_eq!(world.exit_code(&["submit", "--name", "quiet", "hello.wasm"]).await, 0);
    let quiet = world.smalti(&["logs", "j1"]).await;
    assert_eq!((stdout(&quiet).as_str(), quiet.status.code()), ("", Some(0)));
    assert!(stderr(&quiet).contains("wrote nothing to stdout; `smalti logs --stderr j1`"), "{}", stderr(&quiet));
    let asked = world.smalti(&["logs", "--stderr", "j1"]).await;
    assert_eq!((stdout(&asked).as_str(), stderr(&asked).as_str()), ("err\n", ""));
    assert_eq!(world.exit_code(&["submit", "hello.wasm"]).await, 0);
    assert_eq!(stderr(&world.smalti(&["logs", "j2"]).await), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_master_there_is_one_line_that_says_what_to_do() {
    let world = World::new().await;
    let nobody = smalti_test_ports::take_one();
    let free = nobody.address().to_string();
    for args in [&["agents"][..], &["jobs"], &["run", "hello.wasm"], &["bundle", "ls"]] {
        let output = world.command(args).env("SMALTI_MASTER", &free).output().await.unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(125));
        assert!(text.starts_with("error: ") && text.lines().count() == 1 && text.contains("smalti dev"), "{args:?}: {text}");
    }
}
