//! Servers whose certificates are an own authority's, another's, or nobody's.

use super::authority::Authority;
use super::origin::{Origin, Reply};
use super::*;
use smalti_fetch::{FetchOptions, SourceError};

/// With this trust.
fn trusting(origin: &Origin, ca: &[&Authority]) -> Setup {
    Setup { ca: ca.iter().map(|a| a.pem()).collect(), ..setup(&origin.address) }
}

/// Said once, with what would help.
fn is_refused_for_good(result: Result<(Digest, Facts), Failed>) {
    let failed = result.expect_err("it is not to be trusted");
    assert!(matches!(failed, Failed::Source(SourceError::Permanent { .. })), "nobody tries again: {failed:?}");
    let said = failed.to_string();
    assert!(said.contains("certificate is not accepted") && said.contains("--fetch-ca"), "{said}");
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_beside_others_and_no_other_is() {
    let (ours, another) = (Authority::new(), Authority::new());
    let origin = Origin::certified(ours.server("127.0.0.1")).await;
    origin.on("/x", |_, _| Reply::whole(b"content"));
    let x = wanted(&format!("https://{}/x", origin.address));
    for ca in [&[&ours][..], &[&another, &ours]] {
        assert_eq!(fetch_with(trusting(&origin, ca), &x).await.unwrap().0, Digest::of(b"content"));
    }
    assert_eq!(origin.asked().len(), 2);
    is_refused_for_good(fetch_with(trusting(&origin, &[]), &x).await);
    is_refused_for_good(fetch_with(trusting(&origin, &[&another]), &x).await);
    assert_eq!(origin.asked().len(), 2, "no request was sent");
    let elsewhere = Origin::certified(ours.server("files.test")).await;
    is_refused_for_good(fetch_with(trusting(&elsewhere, &[&ours]), &wanted(&format!("https://{}/x", elsewhere.address))).await);
}

#[tokio::test]
async fn the_same_goes_for_a_store_of_objects() {
    let ours = Authority::new();
    let origin = Origin::certified(ours.server("127.0.0.1")).await;
    origin.on("/bucket/dir/a%20b", |_, _| {
        Reply::raw("200 OK", &[("content-length", "7"), ("etag", "\"1\""), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")], b"content")
    });
    let s3 = [
        ("AWS_ENDPOINT_URL", format!("https://{}", origin.address)),
        ("AWS_ACCESS_KEY_ID", "AKIATEST".into()),
        ("AWS_SECRET_ACCESS_KEY", "hush".into()),
    ];
    let s3: Vec<(String, String)> = s3.map(|(name, value)| (name.to_owned(), value)).into();
    let with = |ca: &[&Authority]| Setup { s3: s3.clone(), policy: smalti_fetch::Policy::default(), ..trusting(&origin, ca) };
    let x = wanted("s3://bucket/dir/a b");
    assert_eq!(fetch_with(with(&[&ours]), &x).await.unwrap().0, Digest::of(b"content"));
    is_refused_for_good(fetch_with(with(&[]), &x).await);
    is_refused_for_good(fetch_with(with(&[&Authority::new()]), &x).await);
}

#[test]
fn a_file_without_certificates_is_named_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let ours = Authority::new().pem();
    let good = path("good.pem", &ours);
    let setup = setup("x:1").apply(&FetchOptions { fetch_ca: vec![good.clone(), good], ..FetchOptions::default() }).unwrap();
    assert!(setup.ca.len() == 2 && Sources::new(setup).is_ok());
    let damaged = [&ours[..ours.len() / 2], b"\n-----END CERTIFICATE-----\n"].concat();
    for (name, bytes) in [("empty.pem", &b""[..]), ("text.pem", b"hello"), ("der.pem", b"\x30\x82\x01\x01"), ("damaged.pem", &damaged)] {
        let bad = path(name, bytes);
        let applied = super::setup("x:1").apply(&FetchOptions { fetch_ca: vec![bad], ..FetchOptions::default() });
        let said = applied.and_then(|setup| Sources::new(setup).map(drop)).expect_err(name).to_string();
        assert!(said.contains(name) || name == "damaged.pem", "{said}");
    }
}
