//! Output is kept on the agent and streamed through its own connection.

use crate::{Result, cluster, eventually, guest, one_agent};
use smalti_tests::Process;
use std::time::Duration;

#[test]
fn logs_follow_a_running_task() -> Result {
    let c = one_agent("1")?;
    let job = c.ok(&["submit", &guest(&c, "misbehave")?, "--", "until-stopped"])?;
    let job = job.trim();
    let mut follow = Process::spawn("follow", c.command(&["logs", "-f", job]), c.dir())?;
    follow.wait_for_line("running")?;
    c.ok(&["kill", job])?;
    follow.wait_for_line("asked to stop")?;
    assert!(follow.wait(Duration::from_secs(30))?.success());
    Ok(())
}

#[test]
fn stdout_and_stderr_are_kept_apart_and_the_tail_can_be_had() -> Result {
    let c = one_agent("1")?;
    let job = c.ok(&["submit", &guest(&c, "hello")?, "--", "a", "b", "c"])?;
    let job = job.trim();
    c.smalti(&["wait", job])?;
    assert_eq!(c.ok(&["logs", job])?, "Hello from Smalti\nargument 0: a\nargument 1: b\nargument 2: c\n");
    assert_eq!(c.ok(&["logs", "--tail", "1", job])?, "argument 2: c\n");
    assert!(c.smalti(&["logs", "--stderr", job])?.stdout.contains("hello is done"));
    Ok(())
}

#[test]
fn one_item_of_an_array_can_be_read_and_items_do_not_make_files() -> Result {
    let c = cluster()?;
    let path = c.dir().join("item.wat");
    std::fs::write(&path, include_str!("print_item.wat"))?;
    let job = c.ok(&["submit", &path.display().to_string(), "--items", "1000"])?;
    let job = job.trim();
    c.smalti(&["wait", job])?;
    assert_eq!(c.ok(&["logs", "--item", "617", job])?.trim(), "617");
    let mut files = 0;
    let mut dirs = vec![c.dir().to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else if entry.path().components().any(|p| p.as_os_str() == "sandboxes") {
                files += 1;
            }
        }
    }
    assert!(files > 0 && files < 100, "{files} files for 1000 items");
    Ok(())
}

#[test]
fn a_sandbox_can_be_listed_and_read() -> Result {
    let c = one_agent("1")?;
    let job = c.ok(&["submit", &guest(&c, "hello")?])?;
    let job = job.trim();
    c.smalti(&["wait", job])?;
    let list = c.ok(&["sandbox", "ls", job])?;
    assert!(list.contains("stdout"), "{list}");
    assert_eq!(c.ok(&["sandbox", "cat", &format!("{job}:stdout")])?, "Hello from Smalti\n");
    for bad in ["../../../etc/passwd", "/etc/passwd"] {
        let done = c.smalti(&["sandbox", "cat", &format!("{job}:{bad}")])?;
        assert_ne!(done.code, 0);
        assert!(!done.stdout.contains("root:"), "{}", done.stdout);
    }
    Ok(())
}

#[test]
fn a_large_output_arrives_whole() -> Result {
    let c = one_agent("1")?;
    let text = "0123456789abcdef".repeat(1 << 16);
    let done = c.smalti_with_stdin(&["run", &guest(&c, "hello")?, "--", "cat"], text.as_bytes())?;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout == text, "{} bytes of {}", done.stdout.len(), text.len());
    eventually("the job is over", || Ok(c.json(&["jobs", "--all"])?[0]["state"] == "FINISHED"))
}
