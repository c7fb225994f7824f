//! Where nobody may go: by address, by redirect, by pattern; and what no message says.

use super::origin::{Origin, Reply};
use super::*;

/// What is said when this role fetches that, by this policy.
async fn refusal(policy: &str, role: &str, uri: &str) -> String {
    let setup = Setup { policy: policy.parse().unwrap(), ..setup("127.0.0.1:1") };
    let wanted = Wanted { role: Role::new(role).unwrap(), ..wanted(uri) };
    fetch_with(setup, &wanted).await.expect_err(uri).to_string()
}

#[tokio::test]
async fn special_addresses_are_refused_unless_they_are_listed() {
    let origin = Origin::start().await;
    origin.on("/x", |_, _| Reply::whole(b"secret"));
    let port = origin.address.rsplit_once(':').unwrap().1;
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f000001", "2130706433", "127.1", "0.0.0.0"] {
        let said = refusal("", "default", &format!("http://{host}:{port}/x")).await;
        assert!(said.contains("may not connect") || said.contains("no address"), "{host}: {said}");
    }
    for uri in [
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[fd00:ec2::254]/",
        "http://192.168.0.1/",
        "http://169.254.1.1/",
    ] {
        let said = refusal("", "default", uri).await;
        assert!(said.contains("refused") && said.contains("fetch policy"), "{said}");
    }
    assert_eq!(origin.asked().len(), 0, "nobody connects to find out");
    // Listed for one role only.
    let policy = format!("[role.\"ops\"]\naddresses = [\"127.0.0.1:{port}\"]");
    let said = refusal(&policy, "other", &origin.url("/x")).await;
    assert!(said.contains("`other`") && origin.asked().is_empty(), "{said}");
    let ops = Wanted { role: Role::new("ops").unwrap(), ..wanted(&origin.url("/x")) };
    let allowed = Setup { policy: policy.parse().unwrap(), ..setup("127.0.0.1:1") };
    assert!(fetch_with(allowed.clone(), &ops).await.is_ok());
    // The cluster's own services need their very port.
    let guarded = Setup { services: vec![origin.address.clone()], ..allowed };
    let said = fetch_with(guarded, &Wanted { location: Location::parse(Some(&origin.url("/x")), None).unwrap(), ..ops }).await;
    assert!(said.is_ok(), "that port was named");
    let wide = Setup {
        policy: "[default]\naddresses = [\"127.0.0.0/8:*\"]".parse().unwrap(),
        services: vec![origin.address.clone()],
        ..setup("x:1")
    };
    let said = fetch_with(wide, &wanted(&origin.url("/x"))).await.unwrap_err().to_string();
    assert!(said.contains("service of the cluster"), "{said}");
}

#[tokio::test]
async fn every_redirect_is_checked_like_a_first_request() {
    let (origin, hidden) = (Origin::start().await, Origin::start().await);
    hidden.on("/x", |_, _| Reply::whole(b"secret"));
    let to = hidden.url("/x");
    let redirect = |to: &str| {
        let to = to.to_owned();
        move |_: &super::origin::Asked, _: usize| Reply::raw("302 Found", &[("location", &to), ("content-length", "0")], b"")
    };
    origin.on("/hidden", redirect(&to));
    origin.on("/circle", redirect("/circle"));
    origin.on("/a", redirect("/b"));
    origin.on("/b", redirect("/a"));
    origin.on("/metadata", redirect("http://169.254.169.254/latest/meta-data/iam/"));
    origin.on("/file", redirect("file:///etc/passwd"));
    origin.on("/nowhere", |_, _| Reply::raw("302 Found", &[("content-length", "0")], b""));
    origin.on("/good", redirect("/x"));
    origin.on("/x", |_, _| Reply::whole(b"fine"));
    for (path, says) in [
        ("/hidden", "may not connect"),
        ("/circle", "circle"),
        ("/a", "circle"),
        ("/metadata", "metadata"),
        ("/file", "redirected from http to file"),
        ("/nowhere", "not where"),
    ] {
        let said = fetch(&origin, path, b"fine").await.expect_err(path).to_string();
        assert!(said.contains(says), "{path}: {said}");
    }
    assert_eq!(hidden.asked().len(), 0);
    assert!(fetch(&origin, "/good", b"fine").await.is_ok());
    // By pattern, too.
    let policy = format!("[default]\nallow = [\"http://{}/good\"]\naddresses = [\"{}\"]", origin.address, origin.address);
    let said =
        fetch_with(Setup { policy: policy.parse().unwrap(), ..setup("x:1") }, &wanted(&origin.url("/good"))).await.unwrap_err().to_string();
    assert!(said.contains("redirected") && said.contains("may not fetch from there"), "{said}");
}

#[tokio::test]
async fn no_secret_is_in_any_message() {
    let origin = Origin::start().await;
    let address = &origin.address;
    origin.on("/busy?token=hush", |_, _| Reply::raw("503 Service Unavailable", &[("content-length", "0")], b"hush"));
    origin.on("/cut?token=hush", |_, _| Reply::whole(&[0; 1_000]).cut(10));
    origin.on("/loop?token=hush", |_, _| Reply::raw("302 Found", &[("location", "/loop?token=hush"), ("content-length", "0")], b""));
    origin.on("/away?token=hush", |_, _| {
        Reply::raw("302 Found", &[("location", "http://10.0.0.1/?token=hush"), ("content-length", "0")], b"")
    });
    for path in ["/busy", "/cut", "/loop", "/away", "/none"] {
        let uri = format!("http://hush:hush@{address}{path}?token=hush");
        let said = fetch_with(setup(address), &Wanted { digest: Some(Digest::of(b"x")), ..wanted(&uri) }).await.unwrap_err();
        assert!(!said.to_string().contains("hush") && !format!("{said:?}").contains("hush"), "{said:?}");
        assert!(said.to_string().contains(path), "{said}");
    }
    assert!(origin.asked().iter().any(|a| a.header("authorization").is_some()), "but it is used");
}

#[tokio::test]
async fn nobody_there_and_no_such_name_are_told_apart() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let said = fetch_with(setup(&gone), &wanted(&format!("http://{gone}/x"))).await.unwrap_err().to_string();
    assert!(said.contains("refused"), "{said}");
    let said = fetch_with(setup(&gone), &wanted("http://a_.b-.invalid/x")).await.unwrap_err().to_string();
    assert!(said.contains("not an endpoint"), "{said}");
}
