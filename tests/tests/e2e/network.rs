//! The network: none by default; with `--ports` and `--connect` exactly what was granted, by the operator's policy.

use crate::{Result, eventually, guest};
use anyhow::{Context, ensure};
use smalti_tests::{AgentConfig, Cluster, Config, Finished};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Nothing here takes this long; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// One agent of two cpus with some ports and a policy, if any.
fn networked(policy: Option<&str>, more: &[&str]) -> Result<Cluster> {
    let mut flags = Vec::new();
    let file = tempfile::NamedTempFile::new()?;
    if let Some(policy) = policy {
        std::fs::write(file.path(), policy)?;
        flags.extend(["--network-policy".to_owned(), file.path().display().to_string()]);
    }
    flags.extend(more.iter().map(ToString::to_string));
    Cluster::start(Config {
        agents: vec![AgentConfig { flags, ports: Some(Arc::new(smalti_test_ports::take(4))), ..AgentConfig::default() }],
        ..Config::default()
    })
}

const LOOPBACK: &str = "[default]\nconnect = [\"public\", \"127.0.0.0/8:*\", \"[::1]:*\"]\n";

/// A job that runs, and where it listens.
struct Server<'a> {
    cluster: &'a Cluster,
    job: String,
    at: SocketAddr,
}

impl<'a> Server<'a> {
    /// Its bundle prints `… port N` when it listens.
    fn start(cluster: &'a Cluster, bundle: &str, args: &[&str]) -> Result<Self> {
        let job = cluster.ok(&[&["submit", "--ports", "1", bundle, "--"][..], args].concat())?.trim().to_owned();
        let mut port = None;
        eventually("the server says where it listens", || {
            let tasks = cluster.json(&["ps", "--all"])?;
            let task = tasks.as_array().and_then(|all| all.iter().find(|t| t["job_id"] == job.as_str())).cloned().unwrap_or_default();
            ensure!(!matches!(task["state"].as_str(), Some("FAILED" | "ERROR" | "DROPPED")), "{task}");
            let said = cluster.smalti(&["logs", &job])?.stdout;
            port = said.lines().next().and_then(|line| line.rsplit_once("port ")?.1.parse().ok());
            Ok(port.is_some())
        })?;
        Ok(Self { cluster, job, at: SocketAddr::from(([127, 0, 0, 1], port.context("a port")?)) })
    }

    /// What curl gets.
    fn curl(&self, path: &str) -> Result<String> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "30", &format!("http://{}{path}", self.at)]);
        let done = Finished::of(command, b"", PATIENCE)?;
        ensure!(done.code == 0, "curl: {}", done.stderr);
        Ok(done.stdout)
    }

    fn wait(&self) -> Result<i32> {
        Ok(self.cluster.smalti(&["wait", &self.job])?.code)
    }
}

/// Whether somebody could listen there now.
fn is_free(at: SocketAddr) -> bool {
    TcpListener::bind(at).is_ok()
}

#[test]
fn a_preview_1_server_is_reached_by_curl_and_its_port_is_free_afterwards() -> Result {
    let c = networked(None, &[])?;
    let server = Server::start(&c, &guest(&c, "http-server")?, &["3"])?;
    assert!(!is_free(server.at));
    for path in ["/", "/a", "/b"] {
        assert_eq!(server.curl(path)?, format!("Hello from Smalti, you asked for {path}\n"));
    }
    assert_eq!(server.wait()?, 0);
    eventually("the port is free again", || Ok(is_free(server.at)))
}

#[test]
fn a_component_server_is_reached_by_curl_and_its_port_is_free_afterwards() -> Result {
    let c = networked(None, &[])?;
    let server = Server::start(&c, &c.paths.component("http-server")?.display().to_string(), &["2"])?;
    for path in ["/", "/again"] {
        assert_eq!(server.curl(path)?, format!("Hello from Smalti, you asked for {path}\n"));
    }
    assert_eq!(server.wait()?, 0);
    eventually("the port is free again", || Ok(is_free(server.at)))
}

#[test]
fn a_c_server_with_a_poll_loop_serves_several_clients_at_once() -> Result {
    let c = networked(None, &[])?;
    let server = Server::start(&c, &guest(&c, "http-poll")?, &["3"])?;
    // Two that do not say anything yet must not keep the third from its answer.
    let mut waiting: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(server.at)).collect::<std::io::Result<_>>()?;
    assert_eq!(server.curl("/")?, "Hello from a poll loop!\n");
    for stream in &mut waiting {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert!(answer.ends_with("Hello from a poll loop!\n"), "{answer}");
    }
    assert_eq!(server.wait()?, 0);
    Ok(())
}

#[test]
fn two_servers_on_one_agent_have_a_port_each() -> Result {
    let c = networked(None, &[])?;
    let module = Server::start(&c, &guest(&c, "http-server")?, &[])?;
    let component = Server::start(&c, &c.paths.component("http-server")?.display().to_string(), &[])?;
    assert_ne!(module.at, component.at);
    assert!(module.curl("/m")?.contains("/m") && component.curl("/c")?.contains("/c"));
    for server in [&module, &component] {
        c.ok(&["kill", &server.job])?;
        eventually("the port is free again", || Ok(is_free(server.at)))?;
    }
    Ok(())
}

#[test]
fn a_server_goes_on_while_its_agent_is_away_and_belongs_to_the_next_one() -> Result {
    let config = AgentConfig { ports: Some(Arc::new(smalti_test_ports::take(4))), ..AgentConfig::default() };
    let mut c = Cluster::start(Config { agents: vec![config.clone()], ..Config::default() })?;
    for bundle in [guest(&c, "http-server")?, c.paths.component("http-server")?.display().to_string()] {
        let server = Server::start(&c, &bundle, &[])?;
        let (job, at) = (server.job, server.at);
        let curl = |cluster: &Cluster, path: &str| Server { cluster, job: job.clone(), at }.curl(path);
        assert!(curl(&c, "/before")?.contains("/before"));
        c.kill_agent(0)?;
        assert!(curl(&c, "/away")?.contains("/away"), "nobody is there, and it serves");
        c.restart_agent(0, &config)?;
        assert!(curl(&c, "/after")?.contains("/after"));
        let tasks = c.json(&["ps"])?;
        let task = tasks.as_array().and_then(|all| all.iter().find(|t| t["job_id"] == job.as_str())).cloned().unwrap_or_default();
        assert_eq!((&task["state"], &task["attempt"]), (&"RUNNING".into(), &0.into()), "{task}");
        c.ok(&["kill", "--grace", "0s", &job])?;
        assert_eq!(c.smalti(&["wait", &job])?.code, 137);
        eventually("the port is free again", || Ok(is_free(at)))?;
    }
    Ok(())
}

#[test]
fn a_server_that_waits_for_a_connection_is_killed_at_once() -> Result {
    let c = networked(None, &[])?;
    for bundle in [guest(&c, "http-server")?, c.paths.component("http-server")?.display().to_string()] {
        let server = Server::start(&c, &bundle, &[])?;
        let asked = Instant::now();
        c.ok(&["kill", "--grace", "0s", &server.job])?;
        assert_eq!(server.wait()?, 137);
        let took = asked.elapsed();
        eprintln!("{bundle}: killed in accept, over the whole cluster, in {took:?}");
        eventually("the port is free again", || Ok(is_free(server.at)))?;
    }
    Ok(())
}

#[test]
fn a_taken_port_fails_the_launch_and_is_named() -> Result {
    let c = networked(None, &[])?;
    let first = c.json(&["agents"])?[0]["total"]["ports"][0][0].as_u64().context("ports")?;
    let taken: Vec<TcpListener> =
        (0..4).map(|i| TcpListener::bind(("127.0.0.1", u16::try_from(first + i).unwrap_or(0)))).collect::<std::io::Result<_>>()?;
    // Who waits for it is told.
    let command = c.command(&["run", "--ports", "1", &guest(&c, "http-server")?, "--", "0"]);
    let waiting = std::thread::spawn(move || Finished::of(command, b"", PATIENCE));
    let mut jobs = Vec::new();
    for bundle in [guest(&c, "http-server")?, c.paths.component("http-server")?.display().to_string()] {
        let job = c.ok(&["submit", "--ports", "1", &bundle, "--", "0"])?.trim().to_owned();
        eventually("the reason names the port", || {
            let said = c.smalti(&["explain", &job])?.stdout;
            // Which of them is tried first depends on what the others were told meanwhile.
            let names_one = (first..first + 4).any(|port| said.contains(&format!("port {port}")));
            Ok(said.contains("in use") && names_one && said.contains("; attempt "))
        })?;
        jobs.push(job);
    }
    eventually("all three have failed", || {
        let tasks = c.json(&["ps", "--all"])?;
        Ok(tasks.as_array().is_some_and(|all| all.len() == 3 && all.iter().all(|t| t["attempt"].as_u64() > Some(0))))
    })?;
    // It was nobody's fault for ever: as soon as the port is free they run.
    drop(taken);
    let done = waiting.join().expect("no panic")?;
    let told: Vec<&str> = done.stderr.lines().filter(|l| l.contains("in use") && l.contains("it is tried again")).collect();
    assert!(done.code == 0 && !told.is_empty() && told.len() <= 21, "{} {}", done.code, done.stderr);
    for job in jobs {
        assert_eq!(c.smalti(&["wait", &job])?.code, 0);
    }
    Ok(())
}

#[test]
fn a_port_that_an_outside_program_has_does_not_keep_a_task_from_the_others() -> Result {
    let c = networked(None, &[])?;
    let first = u16::try_from(c.json(&["agents"])?[0]["total"]["ports"][0][0].as_u64().context("ports")?)?;
    let _outside = TcpListener::bind(("127.0.0.1", first))?;
    for (bundle, attempts) in [(guest(&c, "http-server")?, 2), (c.paths.component("http-server")?.display().to_string(), 1)] {
        let server = Server::start(&c, &bundle, &["1"])?;
        assert_ne!(server.at.port(), first);
        assert!(server.curl("/")?.contains("Hello from Smalti"));
        assert_eq!(server.wait()?, 0);
        // The first one found out; the second one was spared the try.
        let tasks = c.json(&["ps", "--all"])?;
        let task = tasks.as_array().and_then(|all| all.iter().find(|t| t["job_id"] == server.job.as_str())).context("its task")?;
        assert_eq!(task["attempt"].as_u64(), Some(attempts - 1), "{task}");
    }
    Ok(())
}

/// Answers one HTTP request on loopback.
fn page() -> Result<(SocketAddr, std::thread::JoinHandle<std::io::Result<()>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let at = listener.local_addr()?;
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        // All of the request: a connection that is closed with bytes unread is reset, and the answer may be lost with it.
        let (mut request, mut some) = (Vec::new(), [0; 1024]);
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut some)? {
                0 => break,
                n => request.extend_from_slice(&some[..n]),
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\npage\n")
    });
    Ok((at, thread))
}

#[test]
fn a_client_reaches_what_it_was_granted() -> Result {
    let c = networked(Some(LOOPBACK), &[])?;
    let get = c.paths.component("http-get")?.display().to_string();
    let (at, served) = page()?;
    let endpoint = at.to_string();
    let done = c.smalti(&["run", "--connect", &endpoint, &get, "--", &endpoint, "/x"])?;
    assert_eq!((done.code, done.stdout.as_str()), (0, "page\n"), "{}", done.stderr);
    served.join().expect("no panic")?;
    // By a name, which only the agent looks up.
    let (at, served) = page()?;
    let endpoint = format!("localhost:{}", at.port());
    let done = c.smalti(&["run", "--connect", &endpoint, &get, "--", &endpoint])?;
    assert_eq!((done.code, done.stdout.as_str()), (0, "page\n"), "{}", done.stderr);
    served.join().expect("no panic")?;
    Ok(())
}

#[test]
fn a_policy_that_does_not_name_it_keeps_a_task_from_starting() -> Result {
    let get = |c: &Cluster| -> Result<String> { Ok(c.paths.component("http-get")?.display().to_string()) };
    let refused = |c: &Cluster, options: &[&str], endpoint: &str| -> Result<String> {
        let bundle = get(c)?;
        let done = c.smalti(&[&["run", "--retries", "0", "--connect", endpoint][..], options, &[&bundle, "--", endpoint]].concat())?;
        ensure!(done.code == 125, "{endpoint}: exit code {}: {}", done.code, done.stderr);
        Ok(done.stderr)
    };
    let c = networked(None, &[])?;
    for (endpoint, what) in [
        ("127.0.0.1:9", "a loopback address"),
        ("localhost:9", "a loopback address"),
        ("10.1.2.3:80", "a private address"),
        ("169.254.169.254:80", "a cloud's metadata address"),
        ("[fd00:ec2::254]:80", "a cloud's metadata address"),
        ("[::ffff:169.254.169.254]:80", "a cloud's metadata address"),
        ("0.0.0.0:80", "no address that a task can connect to"),
    ] {
        let said = refused(&c, &[], endpoint)?;
        assert!(said.contains("may not connect to") && said.contains(what), "{endpoint}: {said}");
    }
    drop(c);
    // Loopback is allowed, and the cluster's own services are not part of it.
    let c = networked(Some(&format!("{LOOPBACK}[role.\"closed\"]\nconnect = []\n")), &[])?;
    let said = refused(&c, &[], &c.address)?;
    assert!(said.contains("a service of the cluster itself"), "{said}");
    let said = refused(&c, &["--role", "closed"], "127.0.0.1:9")?;
    assert!(said.contains("role `closed` may not connect"), "{said}");
    Ok(())
}

/// What [`net-attempts`] prints for each attempt.
fn attempts(c: &Cluster, options: &[&str], attempts: &[(&str, &str)]) -> Result<String> {
    let bundle = c.paths.component("net-attempts")?.display().to_string();
    let mut args = [&["run"][..], options, &[&bundle, "--"]].concat();
    args.extend(attempts.iter().flat_map(|(what, on)| [*what, *on]));
    let done = c.smalti(&args)?;
    ensure!(done.code == 0, "{}", done.stderr);
    Ok(done.stdout)
}

#[test]
fn what_was_not_granted_is_refused_in_the_guest() -> Result {
    let c = networked(Some(LOOPBACK), &[])?;
    let outside = TcpListener::bind("127.0.0.1:0")?;
    let outside = outside.local_addr()?.to_string();
    let dials: Vec<(&str, &str)> = vec![
        ("dial", &c.address),
        ("dial", &outside),
        ("dial", "169.254.169.254:80"),
        ("dial", "8.8.8.8:53"),
        ("bind", "0.0.0.0:0"),
        ("bind", "0.0.0.0:80"),
        ("bind", "127.0.0.1:5051"),
        ("udp", "0.0.0.0:0"),
        ("resolve", "example.org"),
        ("resolve", "localhost"),
    ];
    // Without a network at all, in both classes; with ports; with an endpoint.
    let (granted, _served) = page()?;
    let granted = granted.to_string();
    for options in [&["--isolation", "instance"][..], &["--isolation", "process"], &["--ports", "1"], &["--connect", &granted]] {
        let said = attempts(&c, options, &dials)?;
        assert_eq!(said.lines().count(), dials.len(), "{said}");
        for line in said.lines() {
            assert!(line.contains(": refused "), "{options:?}: {line}");
            if !line.starts_with("resolve") && options[0] != "--isolation" {
                assert!(line.contains("PermissionDenied") || line.contains("EACCES") || line.starts_with("udp"), "{options:?}: {line}");
            }
        }
    }
    // What was granted is not refused, beside what was not.
    let said = attempts(&c, &["--connect", &granted], &[("dial", &outside), ("dial", &granted), ("resolve", "127.0.0.1")])?;
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("refused PermissionDenied") && lines[1].contains(": done ") && lines[2].contains("done 127.0.0.1"), "{said}");
    Ok(())
}

#[test]
fn two_clusters_share_a_machine() -> Result {
    let (a, b) = (networked(None, &[])?, networked(None, &[])?);
    let (at_a, at_b) = (Server::start(&a, &guest(&a, "http-server")?, &["1"])?, Server::start(&b, &guest(&b, "http-server")?, &["1"])?);
    assert!(at_a.curl("/a")?.contains("/a") && at_b.curl("/b")?.contains("/b"));
    assert_eq!((at_a.wait()?, at_b.wait()?), (0, 0));
    Ok(())
}
