//! The whole service against a fake origin that counts, stalls, breaks off and lies.

mod fair;
mod fetching;
mod peers;
mod pieces;
mod room;

use super::archive::tests::tar;
use super::*;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use smalti_types::{BundleRef, HoldingKey, Reason, Stdin};
use std::collections::HashMap;
use std::io::Read;
use std::sync::Mutex;
use tokio::sync::{Notify, mpsc};

/// What the origin does with a path.
#[derive(Clone)]
enum Answer {
    Bytes(Vec<u8>, Option<&'static str>),
    /// For whom asks in this role; for others there is nothing.
    For(&'static str, Vec<u8>),
    /// The first request gets 503, the others the bytes.
    BusyOnce(Vec<u8>),
    /// The first request breaks off in the middle; later ones may ask for a range.
    BreaksOnce(Vec<u8>),
    /// Sends half of it, then nothing.
    HalfThenStalls(Vec<u8>),
    /// Sends a byte, then nothing, until the client leaves; says so.
    Stalls(mpsc::UnboundedSender<&'static str>),
    /// Sends for ever, and says nothing of a length.
    Endless(mpsc::UnboundedSender<&'static str>),
    /// The part that is asked for, of a version with this tag.
    Parts(Vec<u8>, &'static str),
    /// Answers when told.
    Gated(Vec<u8>, Arc<Notify>),
}

#[derive(Default)]
struct Origin {
    answers: HashMap<String, Answer>,
    requests: Vec<(String, Option<String>)>,
}

type Shared = Arc<Mutex<Origin>>;

struct Leaves(mpsc::UnboundedSender<&'static str>);
impl Drop for Leaves {
    fn drop(&mut self) {
        let _ = self.0.send("left");
    }
}

async fn serve(State(origin): State<Shared>, request: HttpRequest) -> Response {
    let (parts, _) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let head = |name| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (range, if_match) = (head(header::RANGE), head(header::IF_MATCH));
    let (answer, before) = {
        let mut origin = origin.lock().unwrap();
        let before = origin.requests.iter().filter(|(p, _)| *p == path).count();
        origin.requests.push((path.clone(), range.clone()));
        (origin.answers.get(&path).cloned(), before)
    };
    match answer {
        Some(Answer::For(role, bytes)) if parts.uri.query() == Some(format!("role={role}").as_str()) => bytes.into_response(),
        None | Some(Answer::For(..)) => StatusCode::NOT_FOUND.into_response(),
        Some(Answer::Bytes(bytes, None)) => bytes.into_response(),
        Some(Answer::Bytes(bytes, Some(etag))) => match if_match {
            Some(tag) if tag != etag => StatusCode::PRECONDITION_FAILED.into_response(),
            _ => ([(header::ETAG, etag), (header::LAST_MODIFIED, "Wed, 21 Oct 2015 07:28:00 GMT")], bytes).into_response(),
        },
        Some(Answer::BusyOnce(_)) if before == 0 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Some(Answer::BusyOnce(bytes)) => bytes.into_response(),
        Some(Answer::BreaksOnce(bytes)) if before == 0 => {
            let half = bytes[..bytes.len() / 2].to_vec();
            let parts = futures::stream::iter([Ok(half), Err(std::io::Error::other("cable cut"))]);
            ([(header::CONTENT_LENGTH, bytes.len().to_string())], Body::from_stream(parts)).into_response()
        }
        Some(Answer::BreaksOnce(bytes)) => {
            let from =
                range.as_deref().unwrap_or("bytes=0-").strip_prefix("bytes=").unwrap().trim_end_matches('-').parse::<usize>().unwrap();
            let content = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, content)], bytes[from..].to_vec()).into_response()
        }
        Some(Answer::HalfThenStalls(bytes)) => {
            let half = bytes[..bytes.len() / 2].to_vec();
            let parts = futures::stream::iter([Ok::<_, std::io::Error>(half)]).chain(futures::stream::pending());
            ([(header::CONTENT_LENGTH, bytes.len().to_string())], Body::from_stream(parts)).into_response()
        }
        Some(Answer::Stalls(tell)) => {
            let _ = tell.send("asked");
            let leaves = Leaves(tell);
            let never = futures::stream::once(async { Ok::<_, std::io::Error>(vec![0_u8]) }).chain(futures::stream::once(async move {
                let _leaves = leaves;
                std::future::pending().await
            }));
            Body::from_stream(never).into_response()
        }
        Some(Answer::Endless(tell)) => {
            let _ = tell.send("asked");
            Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![5_u8; 16 << 10]))).into_response()
        }
        Some(Answer::Parts(bytes, etag)) => {
            if if_match.is_some_and(|tag| tag != etag) {
                return StatusCode::PRECONDITION_FAILED.into_response();
            }
            let (first, last) = range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.split_once('-')).expect("a range");
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            let content = format!("bytes {first}-{last}/{}", bytes.len());
            let headers = [(header::CONTENT_RANGE, content.as_str()), (header::ETAG, etag)];
            (StatusCode::PARTIAL_CONTENT, headers, bytes[first..=last].to_vec()).into_response()
        }
        Some(Answer::Gated(bytes, gate)) => {
            gate.notified().await;
            bytes.into_response()
        }
    }
}

struct Bed {
    data: tempfile::TempDir,
    origin: Shared,
    address: String,
    handle: Handle,
    results: mpsc::Receiver<Prepared>,
    options: Options,
}

const PROGRAM: &str = "(module (memory (export \"memory\") 1) (func (export \"_start\")))";

fn wasm() -> Vec<u8> {
    wat::parse_str(PROGRAM).unwrap()
}

impl Bed {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let origin = Shared::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let app = axum::Router::new().fallback(serve).with_state(origin.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let data = tempfile::tempdir().unwrap();
        let mut options = Options::new(data.path().to_owned(), &address, crate::compiler::tests::command());
        options.fetch.retries.backoff = Duration::from_millis(1);
        // The origin is the master, too, so that its address has to be named.
        options.fetch.policy = format!("[default]\naddresses = [\"{address}\"]").parse().unwrap();
        change(&mut options);
        let (handle, results) = Preparer::start(options.clone()).unwrap();
        Self { data, origin, address, handle, results, options }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn put(&self, path: &str, answer: Answer) {
        self.origin.lock().unwrap().answers.insert(path.into(), answer);
    }

    /// Puts a bundle into the cluster's store and names it.
    fn store(&self, bytes: &[u8]) -> BundleRef {
        let digest = Digest::of(bytes);
        self.put(&format!("/v1/bundles/{}", digest.to_hex()), Answer::Bytes(bytes.to_vec(), None));
        BundleRef { digest, uri: None }
    }

    fn requests(&self) -> usize {
        self.origin.lock().unwrap().requests.len()
    }

    fn request(&self, ticket: u64, bundle: BundleRef) -> Request {
        let spec = TaskSpec::new(bundle);
        let directory = self.data.path().join(format!("task-{ticket}"));
        Request {
            ticket,
            framework: FrameworkId::new("F1-1").unwrap(),
            role: Role::default(),
            spec,
            split_inputs: vec![],
            directory,
            fuel: false,
        }
    }

    async fn answer(&mut self, request: Request) -> Result<Ready, Failure> {
        let ticket = request.ticket;
        self.handle.prepare(request).unwrap();
        let answer = self.results.recv().await.unwrap();
        assert_eq!(answer.ticket, ticket);
        answer.result
    }

    async fn failure(&mut self, bundle: BundleRef) -> Failure {
        let request = self.request(99, bundle);
        self.answer(request).await.expect_err("it must fail")
    }

    fn count(&self, dir: &str) -> usize {
        std::fs::read_dir(self.data.path().join(dir)).unwrap().count()
    }
}

fn input(path: &str, uri: String, bytes: &[u8]) -> Input {
    let guest_path = (!path.is_empty()).then(|| path.to_owned());
    Input { guest_path, uri: Some(uri), digest: None, length: bytes.len() as u64, etag: None, packing: None }
}

fn is_code(file: &File) -> bool {
    let mut head = [0; 4];
    (&*file).read_exact(&mut head).unwrap();
    head == *b"\x7fELF"
}

fn read(ready: &ReadyDir, name: &str) -> String {
    // Through the descriptor, as the executor does.
    use std::os::fd::AsRawFd;
    std::fs::read_to_string(format!("/proc/self/fd/{}/{name}", ready.dir.as_raw_fd())).unwrap()
}

#[tokio::test]
async fn a_bundle_of_the_store_is_fetched_and_compiled_once_and_then_warm() {
    let mut bed = Bed::new().await;
    let bundle = bed.store(&wasm());
    let ready = bed.answer(bed.request(1, bundle.clone())).await.unwrap();
    assert!(!ready.component && is_code(&ready.code) && ready.dirs.is_empty() && ready.stdin.is_none());
    assert_eq!(ready.name, format!("{}.wasm", &bundle.digest.to_hex()[..12]));
    assert_eq!((bed.requests(), bed.count("bundles"), bed.count("compiled")), (1, 2, 1), "the bundle, and whose it is");
    // Warm: answered inside the call, even when the disk has nothing any more.
    for dir in ["bundles", "compiled"] {
        std::fs::remove_dir_all(bed.data.path().join(dir)).unwrap();
    }
    bed.handle.prepare(bed.request(2, bundle)).unwrap();
    let answer = bed.results.try_recv().unwrap();
    assert!(Arc::ptr_eq(&answer.result.unwrap().code, &ready.code));
    assert_eq!(bed.requests(), 1);
}

#[tokio::test]
async fn many_tickets_share_one_download_and_one_compilation() {
    let mut bed = Bed::new().await;
    let (bytes, gate) = (wasm(), Arc::new(Notify::new()));
    bed.put("/p/guest.wasm", Answer::Gated(bytes.clone(), gate.clone()));
    let bundle = BundleRef { digest: Digest::of(&bytes), uri: Some(bed.url("/p/guest.wasm?a=b")) };
    for ticket in 0..50 {
        bed.handle.prepare(bed.request(ticket, bundle.clone())).unwrap();
    }
    // The one that began the transfer gives up; the others go on with it.
    while bed.requests() == 0 {
        tokio::task::yield_now().await;
    }
    bed.handle.cancel(0);
    gate.notify_one();
    let mut code = Vec::new();
    for _ in 1..50 {
        let ready = bed.results.recv().await.unwrap().result.unwrap();
        assert_eq!(ready.name, "guest.wasm");
        code.push(ready.code);
    }
    assert!(code.iter().all(|c| Arc::ptr_eq(c, &code[0])));
    assert_eq!((bed.requests(), bed.count("compiled")), (1, 1));
    // Code that counts fuel is compiled from the bytes that are there.
    let fuel = Request { fuel: true, ..bed.request(60, bundle) };
    assert!(!Arc::ptr_eq(&bed.answer(fuel).await.unwrap().code, &code[0]));
    assert_eq!((bed.requests(), bed.count("compiled")), (1, 2));
}

#[tokio::test]
async fn a_restarted_agent_finds_its_code_again_unless_it_was_harmed() {
    let mut bed = Bed::new().await;
    let bundle = bed.store(&wasm());
    bed.answer(bed.request(1, bundle.clone())).await.unwrap();
    let restart = |bed: &mut Bed| (bed.handle, bed.results) = Preparer::start(bed.options.clone()).unwrap();
    restart(&mut bed);
    bed.put(&format!("/v1/bundles/{}", bundle.digest.to_hex()), Answer::Bytes(b"gone".into(), None));
    assert!(is_code(&bed.answer(bed.request(2, bundle.clone())).await.unwrap().code));
    assert_eq!(bed.requests(), 1);
    // Somebody changed the code: it is compiled again from the bundle.
    let dir = std::fs::read_dir(bed.data.path().join("compiled")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(dir.join("code"), b"evil").unwrap();
    restart(&mut bed);
    assert!(is_code(&bed.answer(bed.request(3, bundle)).await.unwrap().code));
    assert_eq!(bed.requests(), 1);
}

#[tokio::test]
async fn code_that_somebody_writes_into_while_the_agent_runs_is_compiled_again() {
    use std::io::{Seek, Write};
    let mut bed = Bed::new().await;
    let bundle = bed.store(&wasm());
    let first = bed.answer(bed.request(1, bundle.clone())).await.unwrap();
    let dir = std::fs::read_dir(bed.data.path().join("compiled")).unwrap().next().unwrap().unwrap().path();
    // In place: the descriptor that the agent keeps has the same bytes. As long as before.
    let mut code = std::fs::File::options().write(true).open(dir.join("code")).unwrap();
    let modified = || std::fs::metadata(dir.join("code")).unwrap().modified().unwrap();
    let before = modified();
    // The file system's clock has ticks of some milliseconds.
    while modified() == before {
        code.seek(std::io::SeekFrom::Start(100)).unwrap();
        code.write_all(b"evil").unwrap();
    }
    let second = bed.answer(bed.request(2, bundle.clone())).await.unwrap();
    assert!(!Arc::ptr_eq(&first.code, &second.code) && is_code(&second.code));
    let mut bytes = Vec::new();
    std::fs::File::open(dir.join("code")).unwrap().read_to_end(&mut bytes).unwrap();
    assert_ne!(&bytes[100..104], b"evil");
    assert_eq!((bed.requests(), bed.count("compiled")), (1, 1), "from the bytes that are there");
    // What is there again is handed on from memory.
    let third = bed.answer(bed.request(3, bundle)).await.unwrap();
    assert!(Arc::ptr_eq(&second.code, &third.code));
}

#[tokio::test]
async fn what_tasks_of_an_earlier_life_see_stays_until_they_have_ended() {
    let mut bed = Bed::new().await;
    let bundle = bed.store(&tar(&[("main.wasm", &wasm()), ("data.txt", b"words")]));
    bed.answer(bed.request(1, bundle.clone())).await.unwrap();
    bed.options.budgets = Budgets::shared(Bytes(1));
    bed.options.in_use = BTreeSet::from([bundle.digest]);
    (bed.handle, bed.results) = Preparer::start(bed.options.clone()).unwrap();
    assert_eq!((bed.count("bundles"), bed.count("compiled"), bed.count("unpacked")), (0, 0, 1), "what is open or linked may go");
    bed.handle.release(&BTreeSet::new());
    bed.handle.evict();
    assert_eq!(bed.count("unpacked"), 0, "nobody uses it any more");
}

#[tokio::test]
async fn what_does_not_match_its_digest_never_runs() {
    let mut bed = Bed::new().await;
    let (asked, sent) = (Digest::of(b"other"), Digest::of(&wasm()));
    bed.put("/x.wasm", Answer::Bytes(wasm(), None));
    let failure = bed.failure(BundleRef { digest: asked, uri: Some(bed.url("/x.wasm")) }).await;
    assert_eq!(failure.reason, Reason::DigestMismatch);
    assert!(failure.message.contains(&asked.to_string()) && failure.message.contains(&sent.to_string()), "{failure}");
    assert_eq!((bed.count("bundles"), bed.count("compiled")), (0, 0));
}

#[tokio::test]
async fn bundles_that_cannot_run_say_why() {
    let mut bed = Bed::new().await;
    let missing = b"(module (import \"env\" \"f\" (func)) (func (export \"_start\")))";
    let up = tar(&[("main.wasm", &wasm()), ("../evil", b"x")]);
    let cases: [(&[u8], Reason, &str); 7] = [
        (b"hello, I am text", Reason::InvalidBundle, "not Wasm"),
        (&wasm()[..wasm().len() - 3], Reason::InvalidBundle, "not valid Wasm"),
        (missing, Reason::MissingImport, "env::f"),
        (b"(module)", Reason::NoEntryPoint, "_start"),
        (&tar(&[]), Reason::InvalidBundle, "empty"),
        (&up, Reason::InvalidBundle, "outside"),
        (b"", Reason::InvalidBundle, "empty"),
    ];
    for (bytes, reason, says) in cases {
        let failure = bed.failure(bed.store(bytes)).await;
        assert_eq!(failure.reason, reason, "{failure}");
        assert!(failure.message.contains(says), "{failure}");
    }
    assert_eq!((bed.count("compiled"), bed.count("unpacked")), (0, 0));
    assert!(!bed.data.path().join("evil").exists());
}

#[tokio::test]
async fn an_archive_shows_its_other_files_at_assets() {
    let mut bed = Bed::new().await;
    let bundle = bed.store(&tar(&[("tool.wasm", &wasm()), ("words/en.txt", b"one two")]));
    let ready = bed.answer(bed.request(1, bundle)).await.unwrap();
    assert_eq!((ready.name.as_str(), ready.dirs[0].guest_path.as_str(), ready.dirs[0].writable), ("tool.wasm", "/assets", false));
    assert_eq!(read(&ready.dirs[0], "words/en.txt"), "one two");
}

#[tokio::test]
async fn transfers_are_retried_and_resumed_but_a_404_is_final() {
    let mut bed = Bed::new().await;
    let uri = |path: &str| Some(format!("http://{}{path}", bed.address));
    let (busy, cut, gone) = (uri("/busy"), uri("/cut"), uri("/gone"));
    // A custom section of 1 MiB makes each a bundle of its own, and too large for one packet.
    let padded = |n: u8| [wasm(), vec![0, 0x82, 0x80, 0x40, 1, b'p'], vec![n; 1 << 20]].concat();
    bed.put("/busy", Answer::BusyOnce(padded(1)));
    bed.put("/cut", Answer::BreaksOnce(padded(2)));
    bed.answer(bed.request(1, BundleRef { digest: Digest::of(&padded(1)), uri: busy })).await.unwrap();
    bed.answer(bed.request(2, BundleRef { digest: Digest::of(&padded(2)), uri: cut })).await.unwrap();
    let again = bed.origin.lock().unwrap().requests[3].clone();
    assert!(again.0 == "/cut" && again.1.is_some_and(|range| range.starts_with("bytes=")));
    let before = bed.requests();
    let failure = bed.failure(BundleRef { digest: Digest::of(b"x"), uri: gone }).await;
    assert_eq!(failure.reason, Reason::FetchFailed);
    assert!(failure.message.contains("/gone") && failure.message.contains("404"), "{failure}");
    assert_eq!(bed.requests(), before + 2, "there, and in the store");
}

#[tokio::test]
async fn s3_is_read_with_the_clusters_credentials() {
    let nobody = smalti_test_ports::take_one();
    let endpoint = nobody.address();
    let settings = |endpoint: &str| {
        [("AWS_ENDPOINT_URL", format!("http://{endpoint}").as_str()), ("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    };
    let s3 = Bed::new().await;
    s3.put("/bucket/dir/guest.wasm", Answer::Bytes(wasm(), Some("\"7\"")));
    let mut bed = Bed::with(|o| o.fetch.s3 = settings(&s3.address)).await;
    let named = |key: &str| BundleRef { digest: Digest::of(&wasm()), uri: Some(format!("s3://bucket/{key}")) };
    let ready = bed.answer(bed.request(1, named("dir/guest.wasm"))).await.unwrap();
    assert_eq!((ready.name.as_str(), s3.requests()), ("guest.wasm", 1));
    let missing = BundleRef { digest: Digest::of(b"x"), ..named("nothing.wasm") };
    let failure = bed.failure(missing).await;
    assert_eq!(failure.reason, Reason::FetchFailed);
    assert!(failure.message.contains("there is no s3://bucket/nothing.wasm"), "{failure}");
    // Pinned inputs are read with If-Match.
    let mut request = bed.request(2, named("dir/guest.wasm"));
    request.spec.inputs = vec![Input { etag: Some("\"6\"".into()), ..input("/in/x", "s3://bucket/dir/guest.wasm".into(), &wasm()) }];
    let failure = bed.answer(request).await.unwrap_err();
    assert!(failure.reason == Reason::InputFailed && failure.message.contains("changed"), "{failure}");
    let mut bed = Bed::with(|o| o.fetch.s3 = settings(&endpoint.to_string())).await;
    let failure = bed.failure(named("dir/guest.wasm")).await;
    assert!(failure.reason == Reason::FetchFailed && failure.message.contains("s3://bucket/dir/guest.wasm"), "{failure}");
}

#[tokio::test]
async fn a_master_that_is_not_there_and_a_place_that_is_none_are_named() {
    let nobody = smalti_test_ports::take_one();
    let port = nobody.address();
    let mut bed = Bed::with(|o| o.fetch.master = port.to_string()).await;
    let failure = bed.failure(BundleRef { digest: Digest::of(b"x"), uri: None }).await;
    assert_eq!(failure.reason, Reason::FetchFailed);
    assert!(failure.message.contains(&port.to_string()) && failure.message.contains("refused"), "{failure}");
    for bad in ["gopher://x/y", "http://[::", "http://h:99999/x", "s3://b", "oci://h"] {
        let failure = bed.failure(BundleRef { digest: Digest::of(b"x"), uri: Some(bad.into()) }).await;
        assert_eq!(failure.reason, Reason::FetchFailed, "{failure}");
        assert!(failure.message.contains(bad), "{failure}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_taken() {
    let mut bed = Bed::with(|o| o.max_bundle = Bytes(10)).await;
    let failure = bed.failure(bed.store(&wasm())).await;
    assert_eq!(failure.reason, Reason::FetchFailed);
    assert!(failure.message.contains("larger than the limit"), "{failure}");
}

#[tokio::test]
async fn a_cancelled_ticket_stops_its_transfer_and_gets_no_answer() {
    let mut bed = Bed::new().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    bed.put("/slow", Answer::Stalls(tell));
    let bundle = BundleRef { digest: Digest::of(b"x"), uri: Some(bed.url("/slow")) };
    bed.handle.prepare(bed.request(1, bundle.clone())).unwrap();
    bed.handle.prepare(bed.request(2, bundle.clone())).unwrap();
    assert!(matches!(bed.handle.prepare(bed.request(1, bundle)), Err(Error::Duplicate(1))));
    assert_eq!(told.recv().await, Some("asked"));
    bed.handle.cancel(1);
    // The other ticket still waits for the same bytes.
    let good = bed.store(&wasm());
    assert_eq!(bed.answer(bed.request(3, good)).await.map(|r| r.component), Ok(false));
    // (It may have begun anew, when it had not joined the transfer yet.)
    let mut under_way = 1;
    while let Ok(said) = told.try_recv() {
        under_way += if said == "asked" { 1 } else { -1 };
    }
    assert!(under_way >= 1);
    bed.handle.cancel(2);
    while under_way > 0 {
        under_way += if told.recv().await == Some("asked") { 1 } else { -1 };
    }
    assert!(bed.results.try_recv().is_err());
    bed.handle.cancel(77);
}

#[tokio::test]
async fn a_cancelled_ticket_kills_its_compiler() {
    let pid = tempfile::NamedTempFile::new().unwrap();
    let script = format!("echo $$ > {}; exec sleep 1000", pid.path().display());
    let bed = Bed::with(|o| o.compile_command = ["/bin/sh", "-c", &script].map(OsString::from).to_vec()).await;
    bed.handle.prepare(bed.request(1, bed.store(&wasm()))).unwrap();
    let pid = loop {
        if let Ok(pid) = std::fs::read_to_string(pid.path()).unwrap().trim().parse::<i32>() {
            break nix::unistd::Pid::from_raw(pid);
        }
        tokio::task::yield_now().await;
    };
    bed.handle.cancel(1);
    while nix::sys::signal::kill(pid, None).is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(bed.count("compiled"), 0);
}

#[tokio::test]
async fn files_are_read_only_below_allowed_directories() {
    let outside = tempfile::tempdir().unwrap();
    let root = outside.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("g.wasm"), wasm()).unwrap();
    std::fs::write(outside.path().join("secret"), wasm()).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), root.join("link")).unwrap();
    let named = |path: &std::path::Path| BundleRef { digest: Digest::of(&wasm()), uri: Some(format!("file://{}", path.display())) };
    let mut closed = Bed::new().await;
    assert!(closed.failure(named(&root.join("g.wasm"))).await.message.contains("no file:// paths are allowed"));
    let mut bed = Bed::with(|o| o.fetch.file_roots = vec![root.clone()]).await;
    for bad in [root.join("link"), root.join("../secret"), outside.path().join("secret")] {
        let failure = bed.failure(named(&bad)).await;
        assert!(failure.reason == Reason::FetchFailed && failure.message.contains("not below"), "{failure}");
    }
    assert!(bed.failure(named(&root.join("nothing"))).await.message.contains("no such file"));
    assert_eq!(bed.answer(bed.request(1, named(&root.join("g.wasm")))).await.unwrap().name, "g.wasm");
}

#[tokio::test]
async fn inputs_are_fetched_once_and_lie_in_directories_of_each_task() {
    let mut bed = Bed::new().await;
    let bundle = bed.store(&wasm());
    bed.put("/a", Answer::Bytes(b"alpha".into(), Some("\"1\"")));
    bed.put("/b", Answer::Bytes(b"beta".into(), None));
    bed.put(&format!("/v1/bundles/{}", Digest::of(b"state").to_hex()), Answer::Bytes(b"state".into(), None));
    let tagged = Input { etag: Some("\"1\"".into()), ..input("/data/a.txt", bed.url("/a"), b"alpha") };
    let pinned = Input { digest: Some(Digest::of(b"beta")), ..input("/data/b.txt", bed.url("/b"), b"beta") };
    let stored = Input { uri: None, digest: Some(Digest::of(b"state")), ..input("/smalti/state", String::new(), b"state") };
    for ticket in [1, 2] {
        let mut request = bed.request(ticket, bundle.clone());
        request.spec.inputs = vec![tagged.clone(), pinned.clone(), stored.clone()];
        request.split_inputs = vec![Input { guest_path: None, ..tagged.clone() }];
        request.spec.stdin = Stdin::Object(pinned.clone());
        let ready = bed.answer(request).await.unwrap();
        assert_eq!(ready.dirs.iter().map(|d| d.guest_path.as_str()).collect::<Vec<_>>(), ["/data", "/smalti"]);
        assert_eq!(read(&ready.dirs[0], "a.txt") + &read(&ready.dirs[0], "b.txt") + &read(&ready.dirs[1], "state"), "alphabetastate");
        assert_eq!(ready.stdin.as_ref().map(|s| (s.offset, s.length)), Some((0, 4)));
        let splits = ready.split_inputs.as_ref().expect("a directory");
        let path = format!("/proc/self/fd/{}/0", std::os::fd::AsRawFd::as_raw_fd(&**splits));
        assert_eq!(std::fs::metadata(path).unwrap().len(), tagged.length);
    }
    assert_eq!(bed.requests(), 4, "one for the bundle and for each input");
}

#[tokio::test]
async fn an_input_that_changed_fails_its_task_and_says_so() {
    let mut bed = Bed::new().await;
    let bundle = bed.store(&wasm());
    bed.put("/a", Answer::Bytes(b"alpha".into(), Some("\"2\"")));
    let longer = input("/a", bed.url("/a"), b"alpha and more");
    let retagged = Input { etag: Some("\"1\"".into()), ..input("/a", bed.url("/a"), b"alpha") };
    let other = Input { digest: Some(Digest::of(b"gamma")), ..input("/a", bed.url("/a"), b"alpha") };
    for (input, says) in [(longer, "changed"), (retagged, "changed"), (other, "digest")] {
        let mut request = bed.request(1, bundle.clone());
        request.spec.inputs = vec![input];
        let failure = bed.answer(request).await.unwrap_err();
        assert_eq!(failure.reason, Reason::InputFailed);
        assert!(failure.message.contains(says) && failure.message.contains("/a"), "{failure}");
    }
    assert_eq!(bed.count("inputs"), 0);
}

#[tokio::test]
async fn an_object_of_a_map_that_cannot_be_had_leaves_word_for_its_items() {
    let mut bed = Bed::new().await;
    let bundle = bed.store(&wasm());
    bed.put("/a", Answer::Bytes(b"alpha".into(), Some("\"2\"")));
    bed.put("/b.gz", Answer::Bytes(b"packed".into(), Some("\"1\"")));
    let of = |name: &str, etag: &str, bytes: &[u8]| Input { etag: Some(etag.into()), ..input("", bed.url(name), bytes) };
    let packed = Input { packing: Some(smalti_types::Packing::Gzip), ..of("/b.gz", "\"1\"", b"packed") };
    let mut request = bed.request(1, bundle);
    request.split_inputs = vec![of("/a", "\"2\"", b"alpha"), of("/a", "\"1\"", b"alpha"), packed, of("/none", "\"1\"", b"x")];
    let ready = bed.answer(request).await.unwrap();
    let splits = ready.split_inputs.expect("a directory");
    let path = |name: &str| format!("/proc/self/fd/{}/{name}", std::os::fd::AsRawFd::as_raw_fd(&*splits));
    let mut names: Vec<_> = std::fs::read_dir(path("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["0", "1.failed", "2.gz", "3.failed"]);
    let word = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    assert!(word("1.failed").contains("changed since the task was submitted"), "{}", word("1.failed"));
    assert!(word("3.failed").contains("/none"), "{}", word("3.failed"));
}

#[tokio::test]
async fn the_budget_is_kept_and_what_is_in_use_stays() {
    let mut bed = Bed::with(|o| o.budgets = Budgets::shared(Bytes(150 << 10))).await;
    let archive = |n: u8| tar(&[("main.wasm", &wasm()), ("n", &[n])]);
    let first = bed.store(&archive(1));
    let in_use = bed.answer(bed.request(1, first)).await.unwrap();
    let second = bed.store(&archive(2));
    drop(bed.answer(bed.request(2, second.clone())).await.unwrap());
    let mut n = 3;
    while bed.data.path().join("unpacked").join(second.digest.to_hex()).exists() {
        let next = bed.store(&archive(n));
        drop(bed.answer(bed.request(n.into(), next)).await.unwrap());
        n += 1;
    }
    assert_eq!(read(&in_use.dirs[0], "n"), "\u{1}");
}

#[tokio::test]
async fn tickets_are_bounded_in_all_and_for_each_framework() {
    let bed = Bed::with(|o| o.max_tickets = (1, 2)).await;
    let (tell, _told) = mpsc::unbounded_channel();
    bed.put("/slow", Answer::Stalls(tell));
    let bundle = BundleRef { digest: Digest::of(b"x"), uri: Some(bed.url("/slow")) };
    let of = |ticket, framework| Request { framework: FrameworkId::new(framework).unwrap(), ..bed.request(ticket, bundle.clone()) };
    bed.handle.prepare(of(1, "F1")).unwrap();
    let refused = bed.handle.prepare(of(2, "F1")).unwrap_err();
    assert!(matches!(refused, Error::TenantBusy(1)) && refused.to_string().contains("launch fewer"), "{refused}");
    bed.handle.prepare(of(2, "F2")).unwrap();
    assert!(matches!(bed.handle.prepare(of(3, "F3")), Err(Error::Busy(2))));
    bed.handle.cancel(1);
    bed.handle.prepare(of(3, "F1")).unwrap();
}
