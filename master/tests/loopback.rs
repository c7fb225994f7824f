//! A whole master on a real loopback port, with a fake agent and a fake framework that speak the wire protocol.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use harness::{FakeAgent, FakeFramework, Master, http, res};
use smalti_master::{Options, Server, StartError};
use smalti_proto::{v1, version};
use smalti_types::protocol::{AgentCommand, Call, Claim, FrameworkEvent};
use smalti_types::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_task_goes_all_the_way_and_back() {
    let master = Master::start().await;
    let mut agent = FakeAgent::register(&master, "a1", res(4, 4)).await;
    let mut framework = FakeFramework::subscribe(&master, "one").await;
    let offer = framework.offer().await;
    assert_eq!((offer.resources.clone(), offer.agent.as_str()), (res(4, 4), "a1"));

    let launch = harness::launch("t", res(1, 1));
    framework
        .call(Call::Accept { offers: vec![offer.id], operations: vec![Operation::Launch(launch.clone())], filters: Filters::default() })
        .await;
    let AgentCommand::Launch { framework: whose, role, launch: arrived } = agent.command().await else { panic!("a launch expected") };
    assert_eq!((whose.clone(), arrived), (framework.id.clone(), launch));
    assert_eq!(role, Role::default());

    let key = TaskKey { framework: whose, task: TaskId::new("t").unwrap(), attempt: 0 };
    for (seq, state) in [(1, TaskState::Running), (2, TaskState::Finished)] {
        let update = StatusUpdate::new(key.clone(), seq, state, Reason::None, "", Time(1));
        agent.update(update.clone()).await;
        let arrived = framework.update().await;
        assert_eq!(arrived, update);
        framework.call(Call::Acknowledge(vec![(key.task.clone(), 0, seq)])).await;
        let acknowledged = AgentCommand::Acknowledge(UpdateKey { task: key.clone(), seq });
        assert_eq!(agent.command().await, acknowledged);
    }

    let mut operators = master.operators().await;
    let agents = operators.list_agents(v1::Empty {}).await.unwrap().into_inner().agents;
    let total = Resources::try_from(agents[0].info.clone().unwrap().total.unwrap()).unwrap();
    let sum = [&agents[0].used, &agents[0].offered, &agents[0].free]
        .into_iter()
        .map(|part| Resources::try_from(part.clone().unwrap()).unwrap())
        .fold(Resources::default(), |sum, part| sum.checked_add(&part).unwrap());
    assert_eq!((agents[0].state.as_str(), sum), ("active", total));
    assert!(agents[0].counters["master_frames_sent"] >= 4 && agents[0].counters["master_frames_received"] == 2, "{:?}", agents[0].counters);
    let cluster = operators.cluster(v1::Empty {}).await.unwrap().into_inner();
    assert_eq!((cluster.agents, cluster.frameworks, cluster.services["test.v1"].as_str()), (1, 1, "127.0.0.1:1"));
    assert_eq!(operators.list_frameworks(v1::Empty {}).await.unwrap().into_inner().frameworks[0].state, "active");

    drop(agent);
    master.wait_until(|agents| agents[0].state == "disconnected").await;
    master.stop().await;
}

#[tokio::test]
async fn calls_that_are_wrong_are_refused_and_the_subscription_goes_on() {
    let master = Master::start().await;
    let mut framework = FakeFramework::subscribe(&master, "one").await;
    let bad = v1::KillCall { task: "../x".into(), attempt: 0, grace_ms: None };
    framework.send(v1::Call { call: Some(v1::call::Call::Kill(bad)) }).await;
    let FrameworkEvent::Refused { call, message } = framework.event().await else { panic!("a refusal expected") };
    assert!(call == "kill" && message.contains("task"), "{call}: {message}");
    framework.call(Call::Reconcile(vec![(TaskId::new("nobody").unwrap(), 0, None)])).await;
    assert_eq!(framework.update().await.state, TaskState::Unknown);
    master.stop().await;
}

#[tokio::test]
async fn peers_that_are_too_old_or_say_nonsense_are_told() {
    let master = Master::start().await;
    let mut info: v1::Register = FakeAgent::registration("a1", res(1, 1)).into();
    info.version = Some(v1::Version { protocol: 0, ..version::current() });
    let mut inbound = harness::connect_agent(&master, v1::agent_to_master::Message::Register(info)).await;
    let first = inbound.message().await.unwrap().unwrap().message.unwrap();
    assert!(matches!(&first, v1::master_to_agent::Message::Refused(r) if r.reason.contains("protocol 0")), "{first:?}");
    let status = inbound.message().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    let mut inbound = harness::connect_agent(&master, v1::agent_to_master::Message::Heartbeat(v1::Heartbeat::default())).await;
    let first = inbound.message().await.unwrap().unwrap().message.unwrap();
    assert!(matches!(&first, v1::master_to_agent::Message::Refused(r) if r.reason.contains("must be Register")), "{first:?}");
    master.stop().await;
}

#[tokio::test]
async fn garbage_closes_its_own_connection_and_nothing_else() {
    let master = Master::start().await;
    let mut framework = FakeFramework::subscribe(&master, "one").await;
    let garbage: [&[u8]; 4] = [&[0xff; 4096], b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxxxxxxxxxxxxxxxxxx", &[0; 24]];
    for bytes in garbage {
        let mut stream = TcpStream::connect(master.addr).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await; // Ends: the master closed it.
    }
    let _agent = FakeAgent::register(&master, "a1", res(1, 1)).await;
    assert_eq!(framework.offer().await.resources, res(1, 1));
    master.stop().await;
}

#[tokio::test]
async fn bundles_are_pushed_checked_fetched_and_removed() {
    let master = Master::start().await;
    let mut bundles = master.bundles().await;
    let data: Vec<u8> = (0..9_000_000_u32).map(|n| (n % 251) as u8).collect();
    let digest = Digest::of(&data);
    let stored = bundles.push(harness::push(digest, &data, "big.wasm")).await.unwrap().into_inner();
    assert_eq!((stored.length, stored.name.as_str(), stored.existed), (9_000_000, "big.wasm", false));
    assert!(bundles.push(harness::push(digest, &data, "again")).await.unwrap().into_inner().existed);

    let path = format!("/v1/bundles/{}", digest.to_hex());
    let whole = http(master.addr, "GET", &path, "").await;
    assert!(whole.status == 200 && whole.header("content-length") == Some("9000000") && whole.body == data);
    let head = http(master.addr, "HEAD", &path, "").await;
    assert!(head.status == 200 && head.header("content-length") == Some("9000000") && head.body.is_empty());
    let part = http(master.addr, "GET", &path, "Range: bytes=8999990-\r\n").await;
    assert_eq!(
        (part.status, part.header("content-range"), &part.body[..]),
        (206, Some("bytes 8999990-8999999/9000000"), &data[8_999_990..])
    );
    assert_eq!(http(master.addr, "GET", &path, "Range: bytes=9000000-\r\n").await.status, 416);
    assert_eq!(http(master.addr, "GET", "/v1/bundles/xyz", "").await.status, 400);
    assert_eq!(http(master.addr, "GET", "/healthz", "").await.status, 200);
    assert_eq!(http(master.addr, "GET", "/elsewhere", "").await.status, 404);

    let wrong = bundles.push(harness::push(Digest::of(b"other"), &data, "")).await.unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
    let short = bundles.push(harness::push_announcing(Digest::of(b"abc"), 4, b"abc")).await.unwrap_err();
    assert!(short.message().contains("3 of 4"), "{short:?}");
    let small = bundles.push(harness::push(Digest::of(b"abc"), b"abc", "abc.wat")).await.unwrap().into_inner();
    assert_eq!(small.length, 3);
    assert_eq!(bundles.list(v1::BundleQuery::default()).await.unwrap().into_inner().bundles.len(), 2);
    let name = |d: Digest| v1::BundleDigest { digest: d.as_bytes().to_vec().into(), role: String::new() };
    bundles.remove(name(digest)).await.unwrap();
    assert_eq!(bundles.stat(name(digest)).await.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(http(master.addr, "GET", &path, "").await.status, 404);
    master.stop().await;
}

#[tokio::test]
async fn for_a_role_without_a_right_a_bundle_is_not_there() {
    let master = Master::start().await;
    let mut bundles = master.bundles().await;
    let (digest, absent) = (Digest::of(b"abc"), Digest::of(b"nothing"));
    let named = |d: Digest, role: &str| v1::BundleDigest { digest: d.as_bytes().to_vec().into(), role: role.into() };
    let right = |d: Digest, role: &str| v1::BundleRight { digest: d.as_bytes().to_vec().into(), role: role.into() };
    bundles.push(harness::push_in("a", digest, b"abc", "a.wasm")).await.unwrap();
    // One's own is not sent again: the answer comes before any bytes.
    assert!(bundles.push(harness::push_in("a", digest, b"", "a.wasm")).await.unwrap().into_inner().existed);
    let same = |refused: tonic::Status, of: Digest| (refused.code(), refused.message().replace(&of.to_hex(), "it"));
    for role in ["b", "a-b"] {
        for d in [digest, absent] {
            let stat = bundles.stat(named(d, role)).await.unwrap_err();
            let get = bundles.get(named(d, role)).await.unwrap_err();
            let removal = bundles.remove(named(d, role)).await.unwrap_err();
            let expected = same(bundles.stat(named(absent, "c")).await.unwrap_err(), absent);
            assert_eq!([same(stat, d), same(get, d), same(removal, d)], [expected.clone(), expected.clone(), expected]);
            let fetched = http(master.addr, "GET", &format!("/v1/bundles/{}?role={role}", d.to_hex()), "").await;
            let words = String::from_utf8(fetched.body).unwrap();
            assert_eq!((fetched.status, words), (404, format!("there is no bundle {d} in the cluster's store\n")));
        }
        assert!(bundles.list(v1::BundleQuery { role: role.into() }).await.unwrap().into_inner().bundles.is_empty());
    }
    let path = format!("/v1/bundles/{}", digest.to_hex());
    let fetched = http(master.addr, "GET", &format!("{path}?role=a"), "").await;
    assert_eq!((fetched.status, &fetched.body[..]), (200, &b"abc"[..]));
    assert_eq!(http(master.addr, "GET", &format!("{path}?role="), "").await.status, 400);
    assert_eq!(http(master.addr, "GET", &path, "").await.status, 200, "the operator's");
    // The digest alone is no proof; the answer to the bytes does not tell that somebody else has them.
    assert!(bundles.push(harness::push_in("b", digest, b"abd", "b.wasm")).await.is_err());
    let stored = bundles.push(harness::push_in("b", digest, b"abc", "b.wasm")).await.unwrap().into_inner();
    assert!(!stored.existed && stored.name == "b.wasm" && stored.roles.is_none(), "{stored:?}");
    let head = http(master.addr, "HEAD", &format!("{path}?role=b"), "").await;
    assert_eq!(head.header("content-disposition"), Some("attachment; filename=\"b.wasm\""));
    bundles.remove(named(digest, "a")).await.unwrap();
    assert!(bundles.stat(named(digest, "a")).await.is_err() && bundles.stat(named(digest, "b")).await.is_ok());
    let granted = bundles.grant(right(digest, "c")).await.unwrap().into_inner();
    assert_eq!(granted.roles.unwrap().roles, ["b", "c"]);
    assert_eq!(bundles.list(v1::BundleQuery { role: "c".into() }).await.unwrap().into_inner().bundles.len(), 1);
    assert_eq!(bundles.revoke(right(digest, "b")).await.unwrap().into_inner().roles.unwrap().roles, ["c"]);
    assert_eq!(bundles.grant(right(digest, "")).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    assert_eq!(bundles.grant(right(absent, "c")).await.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(bundles.stat(named(digest, "a/b")).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    // Rights outlive the master.
    let master = master.restart().await;
    let mut bundles = master.bundles().await;
    assert!(bundles.stat(named(digest, "b")).await.is_err() && bundles.stat(named(digest, "c")).await.is_ok());
    bundles.remove(named(digest, "")).await.unwrap();
    assert!(bundles.list(v1::BundleQuery::default()).await.unwrap().into_inner().bundles.is_empty());
    master.stop().await;
}

#[tokio::test]
async fn a_bundle_beyond_the_limit_is_refused() {
    let master = Master::start_with(|options| options.max_bundle = Bytes(10)).await;
    let mut bundles = master.bundles().await;
    for announced in [0, 11] {
        let refused = bundles.push(harness::push_announcing(Digest::of(&[1; 11]), announced, &[1; 11])).await.unwrap_err();
        assert!(refused.code() == tonic::Code::ResourceExhausted && refused.message().contains("--max-bundle"), "{refused:?}");
    }
    master.stop().await;
}

#[tokio::test]
async fn sandboxes_are_read_through_the_agents_own_connection() {
    let master = Master::start().await;
    let mut agent = FakeAgent::register(&master, "a1", res(1, 1)).await;
    let mut operators = master.operators().await;
    let read = |agent: &str, file: &str| v1::SandboxRead {
        task: Some(v1::TaskKey { framework: "F1-1".into(), task: "t".into(), attempt: 0 }),
        agent: agent.into(),
        what: Some(v1::sandbox_read::What::File(file.into())),
    };
    let serving = tokio::spawn(async move {
        let request = agent.read_request().await;
        agent.serve(request.read_id, &[b"hello ", b"world"]).await;
        let request = agent.read_request().await;
        agent.refuse(request.read_id, "no such file").await;
        agent
    });
    let mut stream = operators.read_sandbox(read("a1", "stdout")).await.unwrap().into_inner();
    let mut text = Vec::new();
    while let Some(reply) = stream.message().await.unwrap() {
        let Some(v1::read_reply::Message::Chunk(chunk)) = reply.message else { panic!("a chunk expected") };
        text.extend_from_slice(&chunk.data);
    }
    assert_eq!(text, b"hello world");
    let refused = operators.read_sandbox(read("a1", "nothing")).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (tonic::Code::NotFound, "no such file"));
    assert_eq!(operators.read_sandbox(read("a2", "x")).await.unwrap_err().message(), "there is no agent a2");
    assert_eq!(operators.read_sandbox(read("", "x")).await.unwrap_err().code(), tonic::Code::NotFound);
    drop(serving.await.unwrap());
    master.wait_until(|agents| agents[0].state == "disconnected").await;
    assert_eq!(operators.read_sandbox(read("a1", "x")).await.unwrap_err().message(), "agent a1 is not connected");
    master.stop().await;
}

#[tokio::test]
async fn a_master_that_cannot_start_says_why_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start().await;
    let options =
        |listen: &str, data: &str| Options { listen: listen.parse().unwrap(), data_dir: Some(dir.path().join(data)), ..Options::default() };
    let taken = Server::bind(options(&master.addr.to_string(), "a")).await.unwrap_err();
    assert!(matches!(taken, StartError::Listen { .. }) && taken.to_string().contains("another process has this port"), "{taken}");
    let beyond = Server::bind(options("0.0.0.0:0", "b")).await.unwrap_err();
    assert!(beyond.to_string().contains("--insecure-listen"), "{beyond}");
    std::fs::write(dir.path().join("file"), "").unwrap();
    let data = Server::bind(options("127.0.0.1:0", "file/x")).await.unwrap_err();
    assert!(matches!(data, StartError::DataDir { .. }), "{data}");
    let store = Options { bundle_store: Some("ftp://x".into()), ..options("127.0.0.1:0", "c") };
    assert!(Server::bind(store).await.unwrap_err().to_string().contains("ftp://x"));
    master.stop().await;
}

#[tokio::test]
async fn a_master_that_restarts_says_so_and_knows_who_was_there() {
    let master = Master::start().await;
    let agent = FakeAgent::register(&master, "a1", res(4, 4)).await;
    let framework = FakeFramework::subscribe(&master, "one").await;
    let id = framework.id.clone();
    let epoch = master.operators().await.cluster(v1::Empty {}).await.unwrap().into_inner().epoch;
    let (master, agent_told, framework_told) = tokio::join!(master.restart(), agent.end(), framework.end());
    for told in [agent_told, framework_told] {
        assert_eq!((told.code(), told.message()), (tonic::Code::Unavailable, "the master is stepping down; connect again"));
    }
    let mut operators = master.operators().await;
    let cluster = operators.cluster(v1::Empty {}).await.unwrap().into_inner();
    assert!(cluster.epoch > epoch && (cluster.agents, cluster.frameworks) == (1, 1), "{cluster:?}");
    assert_eq!(cluster.counters["refused_updates"], 0);
    let there = operators.list_agents(v1::Empty {}).await.unwrap().into_inner().agents.remove(0);
    assert!(there.state == "disconnected" && there.away_since_us.is_some(), "{there:?}");
    let known = operators.list_frameworks(v1::Empty {}).await.unwrap().into_inner().frameworks.remove(0);
    assert!(known.state == "disconnected" && known.failover_deadline_us.is_some(), "{known:?}");

    let mut framework = FakeFramework::subscribe_as(&master, "one", Some(id.clone())).await;
    assert_eq!(framework.id, id);
    let _agent = FakeAgent::register(&master, "a1", res(4, 4)).await;
    assert_eq!(framework.offer().await.id.epoch.0, cluster.epoch);
    master.wait_until(|agents| agents[0].state == "active" && agents[0].away_since_us.is_none()).await;
    master.stop().await;
}

#[tokio::test]
async fn a_second_scheduler_under_one_id_fences_the_first_out() {
    let master = Master::start().await;
    let mut first = FakeFramework::subscribe(&master, "one").await;
    let second = FakeFramework::subscribe_as(&master, "one", Some(first.id.clone())).await;
    let FrameworkEvent::Error(why) = first.event().await else { panic!("an error expected") };
    assert!(why.contains("another scheduler took over"), "{why}");
    assert_eq!(second.id, first.id);
    assert_eq!(first.end().await.code(), tonic::Code::Aborted);
    master.stop().await;
}

#[tokio::test]
async fn a_scheduler_that_is_late_is_told_whose_number_stands_before_its_connection_ends() {
    let master = Master::start().await;
    let claim = |life| Claim { life, turn: 0 };
    let mut living = FakeFramework::ask(&master, "one", None, claim(7)).await;
    let FrameworkEvent::Subscribed { framework, .. } = living.event().await else { panic!("not subscribed") };
    let mut late = FakeFramework::ask(&master, "one", Some(framework.clone()), claim(6)).await;
    let FrameworkEvent::Fenced { life: 7, message } = late.event().await else { panic!("a refusal expected") };
    assert!(message.contains("another scheduler has framework"), "{message}");
    late.end().await;
    let mut next = FakeFramework::ask(&master, "one", Some(framework), claim(8)).await;
    assert!(matches!(next.event().await, FrameworkEvent::Subscribed { .. }));
    let FrameworkEvent::Error(why) = living.event().await else { panic!("an error expected") };
    assert!(why.contains("took over"), "{why}");
    master.stop().await;
}

#[tokio::test]
async fn a_lease_is_granted_over_the_heartbeat() {
    let master = Master::start().await;
    let mut agent = FakeAgent::register(&master, "a1", res(4, 4)).await;
    agent.ask_for_a_lease(77).await;
    assert_eq!(agent.command().await, AgentCommand::Lease { asked: BootTime(77), lease: DurationMs(15_000) });
    master.stop().await;
}

#[tokio::test]
async fn agents_are_told_to_beat_often_enough_for_the_ping_timeout() {
    for (ping_timeout, beat) in [(15_000, 5_000), (4_000, 1_333), (60_000, 5_000)] {
        let master = Master::start_with(|options| options.ping_timeout = DurationMs(ping_timeout)).await;
        let agent = FakeAgent::register(&master, "a1", res(4, 4)).await;
        assert_eq!(agent.beat, std::time::Duration::from_millis(beat));
        master.stop().await;
    }
}

#[tokio::test]
async fn a_registry_that_cannot_be_used_ends_the_start_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let options = |registry: &str| Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: Some(dir.path().join("data")),
        registry: Some(registry.to_owned()),
        ..Options::default()
    };
    let file = dir.path().join("other.redb");
    std::fs::write(&file, "no database").unwrap();
    let damaged = Server::bind(options(&format!("redb:{}", file.display()))).await.unwrap_err();
    assert!(matches!(&damaged, StartError::Registry(_)) && damaged.to_string().contains("move it away"), "{damaged}");
    let wrong = Server::bind(options("zk://somewhere")).await.unwrap_err().to_string();
    assert!(wrong.starts_with("master: --registry zk://somewhere") && !wrong.contains('\n'), "{wrong}");
    assert!(Server::bind(options("memory")).await.is_ok());
}
