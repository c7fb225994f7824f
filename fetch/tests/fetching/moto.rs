//! Another server of S3, by other people and with tags: moto, which `cargo xtask test` installs below the target directory.

use super::s3::KEYS;
use super::*;
use smalti_fetch::range::Have;
use smalti_fetch::{Ask, Part, SourceError, object_version};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Says its port, and ends with its standard input, that is, with this process.
const SERVE: &str = "
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
";

/// The server.
struct Moto {
    child: Child,
    address: String,
}

impl Moto {
    /// Starts it and makes a bucket, called `bucket`.
    async fn start() -> Self {
        let python = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("moto/bin/python");
        let mut command = Command::new(&python);
        command.args(["-c", SERVE]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| {
            panic!(
                "{}: {e}: this test needs moto there. `cargo xtask test` installs it; that needs python3 with its module venv, and an index of \
                 packages that pip can reach",
                python.display()
            )
        });
        let mut port = String::new();
        let began = BufReader::new(child.stdout.take().unwrap()).read_line(&mut port);
        if !began.is_ok_and(|bytes| bytes > 0) {
            let said = child.wait_with_output().unwrap().stderr;
            panic!(
                "moto does not start, is {} whole? Remove it, and `cargo xtask test` makes it anew: {}",
                python.display(),
                String::from_utf8_lossy(&said)
            );
        }
        // Nobody reads what it logs of each request.
        let log = child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut BufReader::new(log), &mut std::io::sink()));
        let moto = Self { child, address: format!("127.0.0.1:{}", port.trim()) };
        let made = reqwest::Client::builder().no_proxy().build().unwrap().put(format!("http://{}/bucket", moto.address)).send().await;
        assert!(made.unwrap().status().is_success());
        moto
    }

    fn sources(&self, policy: &str) -> Sources {
        let endpoint = format!("http://{}", self.address);
        let s3 = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "AKIATEST"),
            ("AWS_SECRET_ACCESS_KEY", "hush"),
        ];
        let s3 = s3.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Sources::new(Setup { s3, policy: policy.parse().unwrap(), ..setup("x:1") }).unwrap()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

async fn write(sources: &Sources, name: &str, bytes: &[u8]) {
    let deposit = sources.deposit(&Role::default(), "s3://bucket/").unwrap();
    let mut upload = deposit.begin(name).await.unwrap();
    for chunk in bytes.chunks(1 << 20) {
        upload.write(bytes::Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    upload.finish().await.unwrap();
}

#[tokio::test]
async fn another_server_understands_the_same() {
    let moto = Moto::start().await;
    let sources = moto.sources("[default]\nstore = [\"s3://bucket/\"]");
    let role = Role::default();
    let large = content().repeat(15);
    let mut all: Vec<(String, &[u8])> = KEYS.iter().map(|key| ((*key).to_owned(), key.as_bytes())).collect();
    // In parts, and nothing.
    all.extend([("in/parts".to_owned(), &large[..]), ("in/nothing".to_owned(), b"")]);
    for (key, bytes) in &all {
        write(&sources, key, bytes).await;
        let place = wanted(&format!("s3://bucket/{key}"));
        let (length, etag) = sources.head(&role, &place.location).await.unwrap();
        assert!(length == bytes.len() as u64 && etag.is_some(), "{key}");
        let pinned = Wanted { length: Some(length), etag: etag.clone(), ..place };
        let mut sink = Hashing::default();
        let facts = Transfer { sources: &sources, wanted: &pinned }.run(&mut sink).await.unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!((smalti_fetch::Sink::digests(&mut sink).0, facts.etag), (Digest::of(bytes), etag), "{key}");
        if bytes.len() > 5 {
            let part = Part { range: 2..5, version: pinned.etag.as_deref() };
            assert_eq!(sources.range(&role, &pinned.location, part).await.unwrap(), &bytes[2..5], "{key}");
            let have = Have { bytes: 4, etag: pinned.etag.clone(), total: None };
            let ask = Ask { role: &role, location: &pinned.location, have: &have, version: None, digest_is_known: false };
            let opened = sources.open(ask).await.unwrap();
            assert_eq!((opened.from, opened.total), (4, Some(length)), "{key}");
        }
    }
    let bucket = sources.bucket(&role, "bucket", "").unwrap();
    let listed: Vec<_> = futures::TryStreamExt::try_collect(bucket.list(None)).await.unwrap();
    assert!(listed.iter().all(|meta| object_version(meta).is_some()));
    let mut names: Vec<String> = listed.iter().map(|meta| meta.location.to_string()).collect();
    let mut expected: Vec<String> = all.into_iter().map(|(key, _)| key).collect();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn another_server_tells_what_changed_and_what_is_not_there() {
    let moto = Moto::start().await;
    let sources = moto.sources("[default]\nstore = [\"s3://bucket/\", \"s3://none/\"]");
    let role = Role::default();
    write(&sources, "x", b"content").await;
    let place = wanted("s3://bucket/x");
    let (length, etag) = sources.head(&role, &place.location).await.unwrap();
    // Of the same length and within the same second.
    write(&sources, "x", b"CONTENT").await;
    let pinned = Wanted { length: Some(length), etag: etag.clone(), ..place };
    let said = Transfer { sources: &sources, wanted: &pinned }.run(&mut Hashing::default()).await.unwrap_err();
    assert!(matches!(said, Failed::Source(SourceError::Changed { .. })), "{said:?}");
    let said = sources.range(&role, &pinned.location, Part { range: 1..3, version: etag.as_deref() }).await.unwrap_err();
    assert!(matches!(said, SourceError::Changed { .. }), "{said:?}");
    for uri in ["s3://bucket/none", "s3://none/x"] {
        let said = sources.head(&role, &wanted(uri).location).await.unwrap_err();
        assert!(matches!(said, SourceError::NotFound { .. }) && said.to_string().contains(uri), "{said:?}");
    }
    let said = match sources.deposit(&role, "s3://none/").unwrap().begin("x").await {
        Ok(upload) => upload.finish().await.unwrap_err(),
        Err(e) => e,
    };
    assert!(!said.may_pass(), "{said:?}");
}
