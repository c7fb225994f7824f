//! Two agents and the test as their master: what one holds the other fetches, and what is wrong with that costs nothing but time.

use super::*;
use smalti_proto::v1::{self, agent_to_master::Message};

/// The test's end of an agent's connection.
struct Master {
    locator: Locator,
    inbound: mpsc::Receiver<v1::AgentToMaster>,
}

impl Master {
    fn of(bed: &Bed) -> Self {
        let (outbound, inbound) = mpsc::channel(16);
        let locator = bed.options.locator.clone();
        locator.connected(outbound);
        Self { locator, inbound }
    }

    async fn next(&mut self) -> Message {
        self.inbound.recv().await.unwrap().message.unwrap()
    }

    /// Answers one question; empty: go to the origin.
    async fn answer(&mut self, address: &str) -> u64 {
        let Message::Locate(question) = self.next().await else { panic!("a question is expected") };
        self.locator.answered(&v1::Located { ticket: question.ticket, address: address.to_owned() });
        question.ticket
    }

    async fn ended(&mut self) -> (u64, v1::LocateOutcome) {
        let Message::LocateEnd(end) = self.next().await else { panic!("an end is expected") };
        (end.ticket, end.outcome())
    }
}

async fn serve_holdings(bed: &Bed) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(super::super::serve(listener, bed.handle.clone()));
    address
}

fn in_role(role: &str, request: Request) -> Request {
    Request { role: Role::new(role).unwrap(), ..request }
}

/// A bundle with a name of its own, at the bed's origin.
fn bundle_at(bed: &Bed, path: &str) -> BundleRef {
    bed.put(path, Answer::Bytes(wasm(), None));
    BundleRef { digest: Digest::of(&wasm()), uri: Some(bed.url(path)) }
}

#[tokio::test]
async fn what_one_agent_has_fetched_the_next_one_fetches_from_it() {
    let (mut first, mut second) = (Bed::new().await, Bed::new().await);
    let (mut of_first, mut of_second) = (Master::of(&first), Master::of(&second));
    let bundle = bundle_at(&first, "/guest.wasm");
    // The origin must be allowed on the second agent as well.
    let address = first.address.clone();
    let mut second_options = second.options.clone();
    second_options.fetch.policy = format!("[default]\naddresses = [\"{address}\"]").parse().unwrap();
    (second.handle, second.results) = Preparer::start(second_options).unwrap();

    first.handle.prepare(first.request(1, bundle.clone())).unwrap();
    let ticket = of_first.answer("").await;
    first.results.recv().await.unwrap().result.unwrap();
    assert_eq!(of_first.ended().await, (ticket, v1::LocateOutcome::LocateHeld));
    assert_eq!(first.handle.holdings(), [(Role::default(), HoldingKey::of_digest(&bundle.digest))]);

    let peer = serve_holdings(&first).await;
    second.handle.prepare(second.request(1, bundle.clone())).unwrap();
    let ticket = of_second.answer(&peer).await;
    let ready = second.results.recv().await.unwrap().result.unwrap();
    assert_eq!(ready.name, "guest.wasm");
    assert_eq!(of_second.ended().await, (ticket, v1::LocateOutcome::LocateHeld));
    assert_eq!((first.requests(), second.requests()), (1, 0), "the origin was asked once");

    // Another role has no right there: it is sent away, says so, and asks the origin.
    second.handle.prepare(in_role("b", second.request(2, bundle))).unwrap();
    let ticket = of_second.answer(&peer).await;
    assert_eq!(of_second.ended().await, (ticket, v1::LocateOutcome::LocateFailed));
    let ticket = of_second.answer("").await;
    second.results.recv().await.unwrap().result.unwrap();
    assert_eq!(of_second.ended().await, (ticket, v1::LocateOutcome::LocateHeld));
    assert_eq!(first.requests(), 2);
}

#[tokio::test]
async fn an_agent_that_lies_stalls_or_is_gone_costs_time_only() {
    let mut bed = Bed::new().await;
    let mut master = Master::of(&bed);
    // The bed's origin is the lying agent, too: something else of the same length, something longer, a part.
    type Lie = fn(&[u8]) -> Vec<u8>;
    let lies: [Lie; 3] = [|b| vec![7; b.len()], |b| vec![7; b.len() * 100], |b| b[..20].to_vec()];
    for (n, lie) in lies.into_iter().enumerate() {
        let bytes = wat::parse_str(format!("(module (memory 1) (func (export \"_start\")) (data (i32.const 0) \"{n}\"))")).unwrap();
        let path = format!("/{n}.wasm");
        bed.put(&format!("/v1/content/{}", Digest::of(&bytes).to_hex()), Answer::Bytes(lie(&bytes), None));
        bed.put(&path, Answer::Bytes(bytes.clone(), None));
        let bundle = BundleRef { digest: Digest::of(&bytes), uri: Some(bed.url(&path)) };
        bed.handle.prepare(bed.request(1, bundle)).unwrap();
        let ticket = master.answer(&bed.address.clone()).await;
        assert_eq!(master.ended().await, (ticket, v1::LocateOutcome::LocateFailed));
        let ticket = master.answer("").await;
        bed.results.recv().await.unwrap().result.unwrap();
        assert_eq!(master.ended().await, (ticket, v1::LocateOutcome::LocateHeld));
    }
    // Nobody is there any more.
    let bundle = bundle_at(&bed, "/guest.wasm");
    bed.handle.prepare(bed.request(2, bundle.clone())).unwrap();
    let ticket = master.answer("127.0.0.1:1").await;
    assert_eq!(master.ended().await, (ticket, v1::LocateOutcome::LocateFailed));
    // The connection to the master ends while it waits: it goes to the origin.
    assert!(matches!(master.next().await, Message::Locate(_)));
    master.locator.disconnected();
    bed.results.recv().await.unwrap().result.unwrap();
}

#[tokio::test]
async fn who_may_not_fetch_it_is_not_helped_by_others() {
    let mut bed = Bed::with(|options| options.fetch.policy = "[default]\nallow = []".parse().unwrap()).await;
    let mut master = Master::of(&bed);
    let bundle = bundle_at(&bed, "/guest.wasm");
    let failure = bed.failure(bundle).await;
    assert!(failure.message.contains("may not fetch"), "{}", failure.message);
    assert!(master.inbound.try_recv().is_err(), "nobody was asked");
}

#[tokio::test]
async fn an_input_with_a_digest_is_shared_and_told_of_like_a_bundle() {
    let (mut first, mut second) = (Bed::new().await, Bed::new().await);
    let (mut of_first, mut of_second) = (Master::of(&first), Master::of(&second));
    let (bytes, bundle) = (b"some input".to_vec(), first.store(&wasm()));
    second.store(&wasm());
    let digest = Digest::of(&bytes);
    first.put(&format!("/v1/bundles/{}", digest.to_hex()), Answer::Bytes(bytes.clone(), None));
    let input = Input { digest: Some(digest), ..input("/data/x", "store:".into(), &bytes) };
    let request = |bed: &Bed| {
        let mut request = bed.request(1, bundle.clone());
        request.spec.inputs = vec![input.clone()];
        request
    };
    first.handle.prepare(request(&first)).unwrap();
    for _ in 0..2 {
        of_first.answer("").await;
    }
    first.results.recv().await.unwrap().result.unwrap();
    let mut holdings = first.handle.holdings();
    holdings.sort();
    let mut expected = [digest, bundle.digest].map(|d| (Role::default(), HoldingKey::of_digest(&d)));
    expected.sort();
    assert_eq!(holdings, expected);

    let peer = serve_holdings(&first).await;
    second.handle.prepare(request(&second)).unwrap();
    for _ in 0..2 {
        of_second.answer(&peer).await;
    }
    let ready = second.results.recv().await.unwrap().result.unwrap();
    assert_eq!(read(&ready.dirs[0], "x"), "some input");
    assert_eq!(second.requests(), 0);
}
