//! Outputs of many items from several agents, merged through a fake master.

use super::*;
use smalti_proto::v1::operator_service_server::{OperatorService, OperatorServiceServer};
use smalti_proto::v1::{self, read_reply, sandbox_read};
use smalti_types::{AgentId, Digest, ItemSet, TaskId};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Mutex;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Bytes of a chunk.
const CHUNK: usize = 64 << 10;

#[derive(Default)]
struct Master {
    /// Output of each item, by agent.
    outputs: BTreeMap<String, BTreeMap<u64, Vec<u8>>>,
    /// Requests, by agent.
    reads: Mutex<BTreeMap<String, u32>>,
    /// What the agents say at the end of their streams, this many times.
    trouble: Mutex<(u32, Option<Result<String, Status>>)>,
}

fn chunk(item: u64, data: &[u8]) -> v1::ReadReply {
    let chunk = v1::OutputChunk { item: Some(item), stream: v1::OutputStream::Stdout.into(), data: data.to_vec().into(), attempt: 0 };
    v1::ReadReply { message: Some(read_reply::Message::Chunk(chunk)) }
}

#[tonic::async_trait]
impl OperatorService for Shared {
    type ReadSandboxStream = std::pin::Pin<Box<dyn Stream<Item = Result<v1::ReadReply, Status>> + Send>>;

    async fn read_sandbox(&self, request: Request<v1::SandboxRead>) -> Result<Response<Self::ReadSandboxStream>, Status> {
        let read = request.into_inner();
        assert_eq!(read.task.as_ref().map(|t| (t.framework.as_str(), t.attempt)), Some(("F1-1", 2)));
        let Some(sandbox_read::What::Output(what)) = read.what else { return Err(Status::invalid_argument("not an output")) };
        let items = ItemSet::try_from(what.items.unwrap_or_default()).map_err(|e| Status::invalid_argument(e.to_string()))?;
        *self.0.reads.lock().unwrap().entry(read.agent.clone()).or_default() += 1;
        let outputs = self.0.outputs.get(&read.agent).ok_or_else(|| Status::not_found("no such agent"))?;
        let mut replies: Vec<Result<v1::ReadReply, Status>> = Vec::new();
        for (item, data) in outputs.iter().filter(|(item, _)| items.contains(**item)) {
            replies.extend(data.chunks(CHUNK).map(|part| Ok(chunk(*item, part))));
        }
        let mut trouble = self.0.trouble.lock().unwrap();
        if trouble.0 > 0 {
            trouble.0 -= 1;
            replies.truncate(replies.len() / 2);
            replies.push(match trouble.1.clone() {
                Some(Ok(why)) => Ok(v1::ReadReply { message: Some(read_reply::Message::Error(why)) }),
                Some(Err(status)) => Err(status),
                None => Ok(chunk(u64::MAX, b"not asked for")),
            });
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
    }

    async fn cluster(&self, _: Request<v1::Empty>) -> Result<Response<v1::ClusterInfo>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_agents(&self, _: Request<v1::Empty>) -> Result<Response<v1::AgentList>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_frameworks(&self, _: Request<v1::Empty>) -> Result<Response<v1::FrameworkList>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_offers(&self, _: Request<v1::Empty>) -> Result<Response<v1::OfferList>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Shared(Arc<Master>);

async fn serve(master: Arc<Master>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let app = axum::Router::new().route_service("/{*call}", OperatorServiceServer::new(Shared(master)));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// Item `n` of `items` lies on agent `n % agents`, and says `text(n)`.
fn spread(items: u64, agents: u64, text: impl Fn(u64) -> Vec<u8>) -> (Master, Vec<OutputSource>) {
    let mut master = Master::default();
    for agent in 0..agents {
        master.outputs.insert(format!("a{agent}"), BTreeMap::new());
    }
    for item in 0..items {
        master.outputs.get_mut(&format!("a{}", item % agents)).unwrap().insert(item, text(item));
    }
    let source = |agent: u64| OutputSource {
        agent: AgentId::new(format!("a{agent}")).unwrap(),
        task: TaskId::new(format!("t{agent}")).unwrap(),
        attempt: 2,
        items: (0..items).filter(|i| i % agents == agent).collect(),
    };
    (master, (0..agents).map(source).collect())
}

async fn merge(address: &str, sources: &[OutputSource]) -> Result<Vec<u8>, Failure> {
    let dir = tempfile::tempdir().unwrap();
    let transfers = Turns::new(crate::prepare::turns::Places { total: 1, per_tenant: 1, estimate: 1 });
    let (attempts, backoff) = (3, Duration::from_millis(1));
    let reader = OutputReader { master: address.into(), attempts, backoff, limit: Bytes::gib(1), transfers };
    let stdin = reader.merge(&FrameworkId::new("F1-1").unwrap(), sources, dir.path()).await?;
    let mut all = Vec::new();
    (&*stdin.file).read_to_end(&mut all).unwrap();
    assert_eq!(all.len() as u64, stdin.length);
    Ok(all)
}

#[tokio::test]
async fn outputs_come_in_item_order_whoever_keeps_them() {
    // Every seventh item says nothing.
    let text = |n: u64| if n.is_multiple_of(7) { Vec::new() } else { format!("item {n}\n").into_bytes() };
    let (master, sources) = spread(1_000, 3, text);
    let master = Arc::new(master);
    let address = serve(master.clone()).await;
    assert_eq!(merge(&address, &sources).await.unwrap(), (0..1_000).flat_map(text).collect::<Vec<_>>());
    assert_eq!(master.reads.lock().unwrap().values().copied().collect::<Vec<_>>(), [1, 1, 1], "small outputs are read once");
}

#[tokio::test]
async fn outputs_larger_than_what_may_wait_are_read_again_and_not_lost() {
    // The first agent's single item is needed while the other's wait: 40 MiB against a bound of 8.
    let text = |n: u64| vec![u8::try_from(n % 251).unwrap(); 1 << 20];
    let (mut master, mut sources) = spread(40, 1, text);
    // a0 keeps the even tens, a1 the odd ones, a2 one at the very end.
    let all = master.outputs.remove("a0").unwrap();
    for (item, data) in all {
        master.outputs.entry(format!("a{}", item / 10 % 2)).or_default().insert(item, data);
    }
    let set = |agent: u64| (0..40).filter(|i| i / 10 % 2 == agent).collect::<ItemSet>();
    let second = OutputSource { agent: AgentId::new("a1").unwrap(), items: set(1), ..sources[0].clone() };
    sources[0].items = set(0);
    sources.push(second);
    let address = serve(Arc::new(master)).await;
    let merged = merge(&address, &sources).await.unwrap();
    assert_eq!(Digest::of(&merged), Digest::of(&(0..40).flat_map(text).collect::<Vec<_>>()));
}

#[tokio::test]
async fn a_broken_stream_is_read_again_from_the_beginning() {
    let text = |n: u64| format!("{n},").into_bytes();
    let (master, sources) = spread(100, 2, text);
    *master.trouble.lock().unwrap() = (2, Some(Err(Status::unavailable("agent a1 left"))));
    let address = serve(Arc::new(master)).await;
    assert_eq!(merge(&address, &sources).await.unwrap(), (0..100).flat_map(text).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_an_agent_refuses_or_makes_up_is_an_input_failure() {
    let text = |_| b"x".to_vec();
    for (trouble, says) in [(Some(Ok("the sandbox was removed".to_owned())), "removed"), (None, "was not asked for")] {
        let (master, sources) = spread(10, 1, text);
        *master.trouble.lock().unwrap() = (u32::MAX, trouble);
        let address = serve(Arc::new(master)).await;
        let failure = merge(&address, &sources).await.unwrap_err();
        assert_eq!(failure.reason, Reason::InputFailed);
        assert!(failure.message.contains(says) && failure.message.contains("a0"), "{failure}");
    }
    let (master, mut sources) = spread(10, 1, text);
    sources[0].agent = AgentId::new("elsewhere").unwrap();
    let address = serve(Arc::new(master)).await;
    assert!(merge(&address, &sources).await.unwrap_err().message.contains("no such agent"));
}

#[tokio::test]
async fn no_sources_are_an_empty_input() {
    let address = serve(Arc::default()).await;
    assert_eq!(merge(&address, &[]).await.unwrap(), b"");
}
