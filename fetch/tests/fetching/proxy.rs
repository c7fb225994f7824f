//! Through a proxy: plain requests, tunnels, buckets that have hosts of their own, and what goes past it.

use super::authority::{Authority, tunnels_to};
use super::origin::{Origin, Reply};
use super::s3::{KEYS, setup_of};
use super::*;
use smalti_fetch::SourceError;
use smalti_test_s3::{DOMAIN, S3};

/// Everything through this proxy.
fn through(proxy: &str) -> Setup {
    Setup { proxy: Some(proxy.to_owned()), ..setup("127.0.0.1:1") }
}

#[tokio::test]
async fn plain_requests_go_through_it_but_for_exceptions() {
    let proxy = Origin::start().await;
    // What a proxy is asked for is the whole of the URI; nobody here knows that name.
    proxy.on("http://files.test/x", |_, _| Reply::whole(b"content"));
    let x = wanted("http://files.test/x?y=1");
    let (digest, _) = fetch_with(through(&format!("http://user:hush@{}", proxy.address)), &x).await.unwrap();
    assert_eq!(digest, Digest::of(b"content"));
    let asked = proxy.asked().pop().unwrap();
    assert_eq!((asked.path.as_str(), asked.header("host")), ("http://files.test/x?y=1", Some("files.test")));
    assert_eq!(asked.header("proxy-authorization"), Some("Basic dXNlcjpodXNo"));
    // Whoever may not fetch from there may not with a proxy either; and an address is one, whoever dials it.
    for (policy, uri) in [("[default]\nallow = [\"http://other.test\"]", "http://files.test/x"), ("", "http://10.0.0.1/x")] {
        let said =
            fetch_with(Setup { policy: policy.parse().unwrap(), ..through(&format!("http://{}", proxy.address)) }, &wanted(uri)).await;
        assert!(matches!(said, Err(Failed::Source(SourceError::Refused { .. }))), "{said:?}");
    }
    assert_eq!(proxy.asked().len(), 1);
    let origin = Origin::start().await;
    origin.on("/x", |_, _| Reply::whole(b"near"));
    let policy = format!("[default]\naddresses = [\"{}\"]", origin.address).parse().unwrap();
    let except = Setup { no_proxy: Some("localhost,127.0.0.1".into()), policy, ..through(&format!("http://{}", proxy.address)) };
    assert_eq!(fetch_with(except, &wanted(&origin.url("/x"))).await.unwrap().0, Digest::of(b"near"));
    assert_eq!((proxy.asked().len(), origin.asked()[0].path.as_str()), (1, "/x"));
}

#[tokio::test]
async fn a_proxy_that_does_not_help_is_told_without_its_password() {
    let proxy = Origin::start().await;
    proxy.on("http://files.test/x", |_, _| Reply::raw("407 Proxy Authentication Required", &[("content-length", "0")], b""));
    let said = fetch_with(through(&format!("http://user:hush@{}", proxy.address)), &wanted("http://files.test/x")).await.unwrap_err();
    assert!(said.to_string().contains("407") && matches!(said, Failed::Source(SourceError::Refused { .. })), "{said:?}");
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for uri in ["http://files.test/x", "https://files.test/x"] {
        let failed = fetch_with(through(&format!("http://user:hush@{gone}")), &wanted(uri)).await.unwrap_err();
        assert!(failed.to_string().contains("efused") && !format!("{said:?}{failed:?}").contains("hush"), "{failed:?}");
    }
}

#[tokio::test]
async fn tls_goes_through_it_unseen() {
    let ours = Authority::new();
    let origin = Origin::certified(ours.server("files.test")).await;
    origin.on("/x", |_, _| Reply::whole(b"content"));
    let (proxy, mut asked) = tunnels_to(origin.address.clone()).await;
    let setup = Setup { ca: vec![ours.pem()], ..through(&format!("http://{proxy}")) };
    let (digest, _) = fetch_with(setup, &wanted("https://files.test/x?token=hush")).await.unwrap();
    assert_eq!(digest, Digest::of(b"content"));
    let head = asked.recv().await.unwrap();
    assert!(head.starts_with("CONNECT files.test:443 HTTP/1.1\r\n") && !head.contains("hush"), "{head}");
    let said = fetch_with(through(&format!("http://{proxy}")), &wanted("https://files.test/x")).await.unwrap_err().to_string();
    assert!(said.contains("certificate is not accepted"), "who is behind the proxy has to show it: {said}");
}

#[tokio::test]
async fn buckets_may_have_hosts_of_their_own() {
    let s3 = S3::with_hosts().unwrap();
    for key in KEYS {
        s3.put(key, key.as_bytes()).unwrap();
    }
    // The endpoint of all buckets, or of this one.
    for endpoint in [format!("http://{DOMAIN}"), format!("http://bucket.{DOMAIN}")] {
        let changes = [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")];
        let setup = Setup { proxy: Some(format!("http://{}", s3.address())), ..setup_of(&s3, &changes) };
        for key in KEYS {
            let got = fetch_with(setup.clone(), &wanted(&format!("s3://bucket/{key}"))).await;
            assert_eq!(got.unwrap_or_else(|e| panic!("{endpoint} {key}: {e}")).0, Digest::of(key.as_bytes()), "{key}");
        }
        let asked = s3.asked();
        assert!(asked.len() == KEYS.len() && asked.iter().all(|a| a.starts_with(&format!("GET http://bucket.{DOMAIN}/"))), "{asked:?}");
        if !endpoint.contains("bucket") {
            let said = fetch_with(setup, &wanted("s3://other/plain.wasm")).await.unwrap_err().to_string();
            assert!(said.contains("there is no s3://other/plain.wasm"), "not that of another bucket: {said}");
            assert_eq!(s3.asked(), [format!("GET http://other.{DOMAIN}/plain.wasm")]);
        }
    }
}

#[tokio::test]
async fn credentials_are_not_asked_for_through_it() {
    let (s3, metadata) = (S3::with_hosts().unwrap(), Origin::start().await);
    s3.put("x", b"content").unwrap();
    super::credentials::instance(&metadata, |_| ("session".into(), "2100-01-01T00:00:00Z".into()));
    s3.expect_token("session");
    let place = format!("http://{}", metadata.address);
    let endpoint = format!("http://{DOMAIN}");
    let changes =
        [("AWS_ENDPOINT_URL", endpoint.as_str()), ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true"), ("AWS_METADATA_ENDPOINT", place.as_str())];
    let mut setup = Setup { proxy: Some(format!("http://{}", s3.address())), ..setup_of(&s3, &changes) };
    setup.s3.retain(|(name, _)| !name.contains("KEY"));
    assert_eq!(fetch_with(setup, &wanted("s3://bucket/x")).await.unwrap().0, Digest::of(b"content"));
    assert_eq!((s3.asked().len(), metadata.asked().len()), (1, 3));
}
