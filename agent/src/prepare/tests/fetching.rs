//! What stays of a transfer that did not end, and whose what was fetched is.

use super::*;
use smalti_types::Role;

/// A bundle of its own, too large for one packet.
fn padded(n: u8) -> Vec<u8> {
    [wasm(), vec![0, 0x82, 0x80, 0x40, 1, b'p'], vec![n; 1 << 20]].concat()
}

fn restart(bed: &mut Bed) {
    (bed.handle, bed.results) = Preparer::start(bed.options.clone()).unwrap();
}

fn in_role(role: &str, request: Request) -> Request {
    Request { role: Role::new(role).unwrap(), ..request }
}

/// The files of a directory of the agent whose name does not end so.
fn files(bed: &Bed, dir: &str, but: &str) -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir(bed.data.path().join(dir)).unwrap().map(|e| e.unwrap().path());
    all.filter(|p| !p.to_str().unwrap().ends_with(but)).collect()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_transfer_goes_on_in_the_agents_next_life() {
    let mut bed = Bed::new().await;
    let bytes = padded(1);
    bed.put("/x", Answer::HalfThenStalls(bytes.clone()));
    let bundle = BundleRef { digest: Digest::of(&bytes), uri: Some(bed.url("/x")) };
    bed.handle.prepare(bed.request(1, bundle.clone())).unwrap();
    let half = bytes.len() as u64 / 2;
    eventually("half of it is on the disk", || {
        files(&bed, "partial", ".json").iter().any(|p| std::fs::metadata(p).is_ok_and(|m| m.len() == half))
    })
    .await;
    // What is on the disk may be said a moment later.
    let mut told = Vec::new();
    eventually("half of it is said", || {
        told.extend(bed.handle.progress());
        told.last().is_some_and(|(_, permille, _)| (400..600).contains(permille))
    })
    .await;
    assert!(told.iter().all(|(ticket, _, words)| *ticket == 1 && words.contains("/x")), "{told:?}");
    assert!(bed.handle.progress().is_empty(), "nothing new");
    restart(&mut bed);
    bed.put("/x", Answer::BreaksOnce(bytes));
    bed.answer(bed.request(2, bundle)).await.unwrap();
    let last = bed.origin.lock().unwrap().requests.last().unwrap().clone();
    assert_eq!(last.1, Some(format!("bytes={half}-")));
    assert_eq!(bed.count("partial"), 0, "it is in its place now");
}

#[tokio::test]
async fn what_lies_there_and_is_something_else_does_not_matter() {
    let mut bed = Bed::new().await;
    let bytes = padded(1);
    bed.put("/x", Answer::HalfThenStalls(bytes.clone()));
    let bundle = BundleRef { digest: Digest::of(&bytes), uri: Some(bed.url("/x")) };
    bed.handle.prepare(bed.request(1, bundle.clone())).unwrap();
    eventually("half of it is there", || files(&bed, "partial", ".json").iter().any(|p| std::fs::metadata(p).is_ok_and(|m| m.len() > 0)))
        .await;
    bed.handle.cancel(1);
    restart(&mut bed);
    for path in files(&bed, "partial", ".json") {
        std::fs::write(path, vec![7; 10_000]).unwrap();
    }
    bed.put("/x", Answer::BreaksOnce(bytes));
    bed.answer(bed.request(2, bundle)).await.unwrap();
}

#[tokio::test]
async fn a_digest_opens_nothing_that_others_have_fetched() {
    let mut bed = Bed::new().await;
    let bytes = padded(1);
    bed.put("/theirs", Answer::Bytes(bytes.clone(), None));
    let named = |uri: Option<String>| BundleRef { digest: Digest::of(&padded(1)), uri };
    let theirs = named(Some(bed.url("/theirs")));
    bed.answer(in_role("a", bed.request(1, theirs.clone()))).await.unwrap();
    assert!(bed.handle.prepare(in_role("a", bed.request(2, theirs.clone()))).is_ok() && bed.results.try_recv().is_ok(), "warm");
    // Neither the bare digest, nor a place of one's own that has something else.
    bed.put("/mine", Answer::Bytes(b"(module)".into(), None));
    for (uri, reason) in
        [(None, Reason::FetchFailed), (Some(bed.url("/mine")), Reason::DigestMismatch), (Some(bed.url("/none")), Reason::FetchFailed)]
    {
        let failure = bed.answer(in_role("b", bed.request(3, named(uri.clone())))).await.expect_err("it is not theirs");
        assert_eq!(failure.reason, reason, "{uri:?}: {failure}");
    }
    // Who can fetch it may have it.
    bed.answer(in_role("b", bed.request(4, theirs.clone()))).await.unwrap();
    let requests = bed.requests();
    restart(&mut bed);
    for role in ["a", "b"] {
        bed.answer(in_role(role, bed.request(5, named(None)))).await.unwrap();
    }
    assert_eq!(bed.requests(), requests, "rights outlive the agent");
    assert!(bed.answer(in_role("c", bed.request(6, named(None)))).await.is_err());
}

#[tokio::test]
async fn what_the_store_has_is_shown_by_its_word() {
    let mut bed = Bed::new().await;
    let bundle = bed.store(&padded(1));
    bed.answer(in_role("a", bed.request(1, bundle.clone()))).await.unwrap();
    bed.answer(in_role("b", bed.request(2, bundle.clone()))).await.unwrap();
    assert_eq!(bed.requests(), 2, "the second only asks whether it is there");
}

#[tokio::test]
async fn of_the_store_a_role_has_what_it_may_use_there() {
    let mut bed = Bed::new().await;
    let bundle = bed.store(&padded(1));
    let path = format!("/v1/bundles/{}", bundle.digest.to_hex());
    bed.put(&path, Answer::For("a", padded(1)));
    bed.answer(in_role("a", bed.request(1, bundle.clone()))).await.unwrap();
    // It is here, compiled and warm; that is no right.
    let failure = bed.answer(in_role("b", bed.request(2, bundle.clone()))).await.expect_err("it is not theirs");
    assert!(failure.reason == Reason::FetchFailed && failure.message.contains("there is no blake3:"), "{failure}");
    let mut request = in_role("b", bed.request(3, bed.store(&wasm())));
    request.spec.inputs = vec![Input { uri: None, digest: Some(bundle.digest), ..input("/in/x", String::new(), &padded(1)) }];
    assert_eq!(bed.answer(request).await.unwrap_err().reason, Reason::InputFailed);
    // Granted now.
    bed.put(&path, Answer::For("b", padded(1)));
    bed.answer(in_role("b", bed.request(4, bundle.clone()))).await.unwrap();
    // And `a` goes on with what it had.
    restart(&mut bed);
    bed.answer(in_role("a", bed.request(5, bundle))).await.unwrap();
}

#[tokio::test]
async fn a_role_fetches_only_what_its_operator_allows() {
    let mut bed = Bed::with(|o| {
        o.fetch.policy = "[default]\nallow = []\n[role.\"web\"]\naddresses = [\"public\"]\n".parse().unwrap();
    })
    .await;
    bed.put("/x", Answer::Bytes(wasm(), None));
    let bundle = BundleRef { digest: Digest::of(&wasm()), uri: Some(bed.url("/x")) };
    let failure = bed.failure(bundle.clone()).await;
    assert!(failure.reason == Reason::FetchFailed && failure.message.contains("may not fetch from there"), "{failure}");
    let failure = bed.answer(in_role("web", bed.request(2, bundle.clone()))).await.unwrap_err();
    assert!(failure.message.contains("may not connect"), "{failure}");
    let mut request = in_role("web", bed.request(3, bed.store(&wasm())));
    request.spec.inputs = vec![input("/in/x", bed.url("/x"), &wasm())];
    let before = bed.requests();
    let failure = bed.answer(request).await.unwrap_err();
    assert!(failure.reason == Reason::InputFailed && failure.message.contains("may not connect"), "{failure}");
    assert!(bed.requests() <= before + 1, "only the store was asked");
}

#[tokio::test]
async fn wrong_bytes_are_gone_and_another_try_begins_anew() {
    let mut bed = Bed::new().await;
    let bytes = padded(1);
    bed.put("/x", Answer::Bytes(padded(2), Some("\"1\"")));
    let bundle = BundleRef { digest: Digest::of(&bytes), uri: Some(bed.url("/x")) };
    let failure = bed.failure(bundle.clone()).await;
    assert_eq!(failure.reason, Reason::DigestMismatch);
    assert_eq!((bed.count("partial"), bed.count("bundles")), (0, 0));
    bed.put("/x", Answer::Bytes(bytes, Some("\"1\"")));
    bed.answer(bed.request(2, bundle)).await.unwrap();
}

#[tokio::test]
async fn the_store_is_asked_when_the_named_place_has_nothing() {
    let mut bed = Bed::new().await;
    let stored = bed.store(&padded(1));
    let bundle = BundleRef { uri: Some(bed.url("/none")), ..stored };
    bed.answer(bed.request(1, bundle)).await.unwrap();
}

#[tokio::test]
async fn one_digest_is_downloaded_once_wherever_it_is_said_to_lie() {
    let mut bed = Bed::new().await;
    let (bytes, gate) = (padded(1), Arc::new(Notify::new()));
    for path in ["/a", "/b"] {
        bed.put(path, Answer::Gated(bytes.clone(), gate.clone()));
        let bundle = BundleRef { digest: Digest::of(&bytes), uri: Some(bed.url(path)) };
        bed.handle.prepare(bed.request(u64::from(path == "/b"), bundle)).unwrap();
    }
    eventually("one is asked", || bed.requests() > 0).await;
    gate.notify_one();
    for _ in 0..2 {
        bed.results.recv().await.unwrap().result.unwrap();
    }
    assert_eq!(bed.requests(), 1);
}

#[tokio::test]
async fn a_full_disk_fails_its_task_and_is_no_trouble_later() {
    // A file system of its own, which takes a privilege: without it there is nothing to fill.
    let Ok(small) = SmallDisk::mount(3 << 20) else {
        assert!(!nix::unistd::geteuid().is_root(), "root can mount");
        return;
    };
    let mut bed = Bed::with(|o| o.data_dir = small.0.path().to_owned()).await;
    let large = [wasm(), vec![0, 0x82, 0x80, 0x80, 2, 1, b'p'], vec![9; 4 << 20]].concat();
    bed.put("/large", Answer::Bytes(large.clone(), None));
    let failure = bed.failure(BundleRef { digest: Digest::of(&large), uri: Some(bed.url("/large")) }).await;
    assert_eq!(failure.reason, Reason::LaunchFailed, "{failure}");
    assert!(failure.message.contains("full"), "{failure}");
    assert_eq!(std::fs::read_dir(small.0.path().join("partial")).unwrap().count(), 0, "what it took is given back");
    let good = bed.store(&wasm());
    bed.answer(bed.request(2, good)).await.unwrap();
}

/// A tmpfs with a limit.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> nix::Result<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={bytes}");
        nix::mount::mount(Some("smalti-test"), dir.path(), Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}
