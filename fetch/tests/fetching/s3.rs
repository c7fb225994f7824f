//! A server of S3 that checks signatures, in this process.

use super::*;
use smalti_fetch::range::Have;
use smalti_fetch::{Ask, Part, SourceError};
use smalti_test_s3::{S3, SECRET};

/// Keys that somebody has to encode.
pub(crate) const KEYS: [&str; 9] = [
    "plain.wasm",
    "dir/with space.wasm",
    "dir/it's \"quoted\".wasm",
    "ümlaut/文.wasm",
    "a+b&c=d;e.wasm",
    "q?x#y.wasm",
    "100% sure.wasm",
    "a%20b%2Fc.wasm",
    "*[x]{y}~!$@^|.wasm",
];

/// The settings of its operator, with these changes.
pub(crate) fn setup_of(s3: &S3, changes: &[(&str, &str)]) -> Setup {
    let kept = s3.env().into_iter().filter(|(n, _)| changes.iter().all(|(c, _)| c != n));
    let s3 = kept.chain(changes.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))).collect();
    // No address needs to be listed: the endpoint is the operator's own word.
    Setup { s3, policy: smalti_fetch::Policy::default(), ..setup("x:1") }
}

#[tokio::test]
async fn objects_of_any_name_are_read_with_a_signature() {
    let s3 = S3::start().unwrap();
    for (n, key) in KEYS.iter().enumerate() {
        let bytes = format!("content {n}").into_bytes();
        s3.put(key, &bytes).unwrap();
        let place = wanted(&format!("s3://bucket/{key}"));
        let (digest, facts) = fetch_with(setup_of(&s3, &[]), &place).await.unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!((digest, facts.total), (Digest::of(&bytes), Some(bytes.len() as u64)), "{key}");
        let sources = Sources::new(setup_of(&s3, &[])).unwrap();
        let role = Role::default();
        assert_eq!(sources.head(&role, &place.location).await.unwrap().0, bytes.len() as u64);
        assert_eq!(sources.range(&role, &place.location, Part { range: 2..5, version: None }).await.unwrap(), &bytes[2..5]);
        let have = Have { bytes: 4, etag: None, total: None };
        let ask = Ask { role: &role, location: &place.location, have: &have, version: None, digest_is_known: true };
        let opened = sources.open(ask).await.unwrap();
        assert_eq!((opened.from, opened.total), (4, Some(bytes.len() as u64)));
    }
}

#[tokio::test]
async fn what_a_server_refuses_is_told_once_and_without_secrets() {
    let s3 = S3::start().unwrap();
    s3.put("x", b"content").unwrap();
    type Changes = &'static [(&'static str, &'static str)];
    let cases: [(&str, Changes, &str); 5] = [
        ("s3://bucket/x", &[("AWS_SECRET_ACCESS_KEY", "wrong-hush")], "SignatureDoesNotMatch"),
        ("s3://bucket/x", &[("AWS_ACCESS_KEY_ID", "AKIAHUSH")], "refused"),
        ("s3://bucket/x", &[("AWS_SKIP_SIGNATURE", "true")], "AccessDenied"),
        ("s3://bucket/none", &[], "there is no s3://bucket/none"),
        ("s3://nothing/x", &[], "there is no s3://nothing/x"),
    ];
    for (uri, changes, says) in cases {
        let said = fetch_with(setup_of(&s3, changes), &wanted(uri)).await.expect_err(says);
        assert!(said.to_string().contains(says), "{said}");
        assert!(matches!(said, Failed::Source(SourceError::Refused { .. } | SourceError::NotFound { .. })), "nobody tries again: {said:?}");
        for secret in ["hush", "HUSH", SECRET, "Signature="] {
            assert!(!format!("{said:?}").contains(secret), "{said:?}");
        }
    }
}

#[tokio::test]
async fn buckets_and_prefixes_are_a_roles_own() {
    let s3 = S3::start().unwrap();
    s3.put("team-a/x", b"a").unwrap();
    s3.put("team-b/x", b"b").unwrap();
    let mut setup = setup_of(&s3, &[]);
    setup.policy = "[role.\"a\"]\nallow = [\"s3://bucket/team-a/\"]\n[role.\"b\"]\nallow = [\"s3://bucket/team-b/\"]\n".parse().unwrap();
    for (role, key, may) in [("a", "team-a/x", true), ("a", "team-b/x", false), ("b", "team-b/x", true), ("b", "team-a/../team-b/x", false)]
    {
        let asked = Wanted { role: Role::new(role).unwrap(), ..wanted(&format!("s3://bucket/{key}")) };
        assert_eq!(fetch_with(setup.clone(), &asked).await.is_ok(), may, "{role} {key}");
    }
}

#[tokio::test]
async fn an_object_that_changed_is_not_what_was_pinned() {
    let s3 = S3::start().unwrap();
    s3.put("x", b"content").unwrap();
    let sources = Sources::new(setup_of(&s3, &[])).unwrap();
    let place = wanted("s3://bucket/x");
    let (length, etag) = sources.head(&Role::default(), &place.location).await.unwrap();
    let pinned = Wanted { length: Some(length), etag, ..place };
    assert!(fetch_with(setup_of(&s3, &[]), &pinned).await.is_ok());
    s3.put("x", b"another content").unwrap();
    let said = fetch_with(setup_of(&s3, &[]), &pinned).await.unwrap_err().to_string();
    assert!(said.contains("changed since the task was submitted"), "{said}");
    let part = Part { range: 1..3, version: pinned.etag.as_deref() };
    let said = sources.range(&Role::default(), &pinned.location, part).await.unwrap_err();
    assert!(matches!(said, SourceError::Changed { .. }), "{said:?}");
}

#[tokio::test]
async fn outputs_are_put_whole_small_and_large_and_refusals_are_told() {
    let s3 = S3::start().unwrap();
    let allowed = |changes: &[(&str, &str)]| {
        let policy = "[default]\nstore = [\"s3://bucket/out/\"]".parse().unwrap();
        Sources::new(Setup { policy, ..setup_of(&s3, changes) }).unwrap()
    };
    let role = Role::default();
    let deposit = allowed(&[]).deposit(&role, "s3://bucket/out/here").unwrap();
    let large = content().repeat(15);
    for (name, bytes) in [("j1/0.0.stdout", &large[..]), ("j1/1.0.stdout", b"small"), ("j1/2.0.stdout", b"")] {
        // Twice: writing an output again is no failure.
        for _ in 0..2 {
            let mut upload = deposit.begin(name).await.unwrap();
            for chunk in bytes.chunks(300_000) {
                upload.write(bytes::Bytes::copy_from_slice(chunk)).await.unwrap();
            }
            upload.finish().await.unwrap();
        }
        assert_eq!(std::fs::read(s3.path("out/here").join(name)).unwrap(), bytes, "{name}");
    }
    let mut given_up = deposit.begin("j1/3.0.stdout").await.unwrap();
    given_up.write(bytes::Bytes::from(large)).await.unwrap();
    given_up.abort().await;
    assert!(!s3.path("out/here/j1/3.0.stdout").exists());
    for (changes, uri) in
        [(&[("AWS_SECRET_ACCESS_KEY", "wrong-hush")][..], "s3://bucket/out/"), (&[("AWS_SKIP_SIGNATURE", "true")], "s3://bucket/out/")]
    {
        let said = match allowed(changes).deposit(&role, uri).unwrap().begin("j1/x").await {
            Ok(upload) => upload.finish().await.unwrap_err(),
            Err(e) => e,
        };
        assert!(!said.may_pass() && said.to_string().contains(uri), "{said:?}");
        assert!(!format!("{said:?}").contains("hush") && !format!("{said:?}").contains(SECRET), "{said:?}");
    }
}
