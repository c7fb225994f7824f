//! Bundles of the cluster's store are the roles' own that pushed them.

use crate::{Result, guest, one_agent};
use anyhow::Context;
use smalti_framework_sdk::{Event, Framework, Options};
use smalti_tests::Cluster;
use smalti_types::{BundleRef, Bytes, Filters, Launch, MilliCpus, Operation, Reason, Resources, Role, StatusUpdate, TaskId, TaskSpec};

/// The digests that a role is shown.
fn list(c: &Cluster, role: &str) -> Result<Vec<String>> {
    let list = c.json(&["bundle", "ls", "--role", role])?;
    Ok(list.as_array().into_iter().flatten().filter_map(|b| b["digest"].as_str().map(str::to_owned)).collect())
}

/// How a task of a framework in this role ends that names nothing but a digest: no scheduler looks at it before an agent does.
async fn launch(c: &Cluster, role: &str, digest: &str) -> Result<StatusUpdate> {
    let mut options = Options::new(&c.address, "direct");
    options.info.role = Role::new(role)?;
    let (handle, mut events) = Framework::connect(options).await?;
    let mut launched = false;
    loop {
        match events.recv().await.context("the subscription ended")? {
            Event::Offers(offers) if !launched => {
                let offer = offers.first().context("an empty batch of offers")?;
                let spec = TaskSpec::new(BundleRef { digest: digest.parse()?, uri: None });
                let resources = Resources::new(MilliCpus(100), Bytes::mib(64));
                let launch = Operation::Launch(Launch { task: TaskId::new("t")?, attempt: 0, resources, spec });
                handle.accept(vec![offer.id], vec![launch], Filters::default()).await?;
                launched = true;
            }
            Event::Update(update) => {
                let ended = update.update.state.is_terminal().then(|| update.update.clone());
                update.ack.done();
                if let Some(ended) = ended {
                    handle.teardown().await?;
                    return Ok(ended);
                }
            }
            _ => {}
        }
    }
}

#[test]
fn another_role_has_nothing_of_a_digest_until_it_is_granted() -> Result {
    let c = one_agent("2")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let digest = c.ok(&["bundle", "push", "--role", "team-a", &guest(&c, "hello")?])?.trim().to_owned();
    let run = |role: &str, bundle: &str, more: &[&str]| c.smalti(&[&["run", "--stdin", "none", "--role", role], more, &[bundle]].concat());
    // The agent has it, compiled and warm.
    assert_eq!(run("team-a", &digest, &[])?.stdout, "Hello from Smalti\n");
    assert_eq!(list(&c, "team-a")?, std::slice::from_ref(&digest));

    // What is not there at all is answered alike.
    let (nothing, empty) = (format!("blake3:{}", "1".repeat(64)), guest(&c, "empty")?);
    for other in [&digest, &nothing] {
        let refused = run("team-b", other, &[])?;
        let says = format!("no bundle {other} in the store for role team-b");
        assert!(refused.code == 127 && refused.stdout.is_empty() && refused.stderr.contains(&says), "{}", refused.stderr);
        let input = run("team-b", &empty, &["--input", other])?;
        let says = format!("the input {other} is not in the bundle store for role team-b");
        assert!(input.code == 125 && input.stderr.contains(&says), "{}", input.stderr);
        for verb in ["inspect", "rm"] {
            let refused = c.smalti(&["bundle", verb, "--role", "team-b", other])?;
            assert_eq!(refused.code, 127, "{verb}: {}", refused.stderr);
        }
        let ended = runtime.block_on(launch(&c, "team-b", other))?;
        assert_eq!(ended.reason, Reason::FetchFailed, "{ended:?}");
        assert!(ended.message.contains(&format!("there is no {other}")), "{ended:?}");
    }
    assert!(!list(&c, "team-b")?.contains(&digest));

    let said = c.ok(&["bundle", "grant", &digest, "--role", "team-b"])?;
    assert!(said.contains("team-a, team-b"), "{said}");
    assert_eq!(run("team-b", &digest, &[])?.stdout, "Hello from Smalti\n");
    assert_eq!(runtime.block_on(launch(&c, "team-b", &digest))?.exit_code, Some(0));
    assert!(list(&c, "team-b")?.contains(&digest));
    let all = c.json(&["bundle", "ls"])?;
    let of = |digest: &str| all.as_array().into_iter().flatten().find(|b| b["digest"] == digest).map(|b| b["roles"].clone());
    assert_eq!(of(&digest), Some(serde_json::json!(["team-a", "team-b"])));
    c.ok(&["bundle", "revoke", &digest, "--role", "team-b"])?;
    assert!(!list(&c, "team-b")?.contains(&digest));
    // The last one's own removal takes the bundle.
    c.ok(&["bundle", "rm", "--role", "team-a", &digest])?;
    assert_eq!(c.smalti(&["bundle", "inspect", &digest])?.code, 127);
    Ok(())
}

#[test]
fn all_that_a_job_of_a_role_needs_is_uploaded_in_that_role() -> Result {
    let c = one_agent("2")?;
    let wordcount = guest(&c, "wordcount")?;
    let words = c.dir().join("words.txt");
    std::fs::write(&words, "b a\na\n")?;
    let words = words.display().to_string();
    // Bundle, inputs, splits, stdin, and the state that goes from one round to the next.
    let map =
        ["map", "--role", "team-a", "--inputs", &words, "--reduce", &wordcount, "--reduce-arg", "--merge", "--rounds", "2", &wordcount];
    assert_eq!(c.ok(&map)?, "a\t2\nb\t1\n", "{}", c.logs());
    let cat = ["run", "--role", "team-a", "--input", &words, &guest(&c, "hello")?, "--", "cat"];
    assert_eq!(c.smalti_with_stdin(&cat, b"piped")?.stdout, "piped");
    let all = c.json(&["bundle", "ls"])?;
    let all = all.as_array().context("a list")?;
    assert!(all.len() >= 5 && all.iter().all(|b| b["roles"] == serde_json::json!(["team-a"])), "{all:?}");
    Ok(())
}
