//! What operators and the command line ask: snapshots of the core, and reads of sandboxes.

use crate::event_loop::{Handle, Input, NoAgent, Stopped};
use crate::peers::Peers;
use crate::sandbox_relay::{ReadStream, Relay};
use crate::views;
use smalti_master_core::{AgentView, Master};
use smalti_proto::v1;
use smalti_types::{AgentId, TaskKey};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

/// The service.
#[derive(Debug)]
pub(crate) struct Operators {
    pub(crate) handle: Handle,
    pub(crate) relay: Relay,
}

#[tonic::async_trait]
impl v1::operator_service_server::OperatorService for Operators {
    type ReadSandboxStream = ReadStream;

    async fn cluster(&self, _: Request<v1::Empty>) -> Result<Response<v1::ClusterInfo>, Status> {
        let (view, counters) = self.handle.ask(|master, peers| (master.cluster_view(), peers.cluster_counters())).await?;
        Ok(Response::new(views::cluster(view, counters)))
    }

    async fn list_agents(&self, _: Request<v1::Empty>) -> Result<Response<v1::AgentList>, Status> {
        let snapshot = |master: &Master, peers: &Peers| {
            let with_peer = |view: AgentView| {
                let conn = master.agent_connection(&view.info.id);
                let (counters, executors) = conn.map(|conn| (peers.counters(conn), peers.executors(conn))).unwrap_or_default();
                (view, counters, executors)
            };
            master.agent_views().map(with_peer).collect::<Vec<_>>()
        };
        let agents = self.handle.ask(snapshot).await?;
        let agents = agents.into_iter().map(|(view, counters, executors)| views::agent(view, counters, executors)).collect();
        Ok(Response::new(v1::AgentList { agents }))
    }

    async fn list_frameworks(&self, _: Request<v1::Empty>) -> Result<Response<v1::FrameworkList>, Status> {
        let frameworks = self.handle.ask(|master, _| master.framework_views().collect::<Vec<_>>()).await?;
        Ok(Response::new(v1::FrameworkList { frameworks: frameworks.into_iter().map(views::framework).collect() }))
    }

    async fn list_offers(&self, _: Request<v1::Empty>) -> Result<Response<v1::OfferList>, Status> {
        let offers = self.handle.ask(|master, _| master.offer_views().collect::<Vec<_>>()).await?;
        Ok(Response::new(v1::OfferList { offers: offers.into_iter().map(Into::into).collect() }))
    }

    async fn read_sandbox(&self, request: Request<v1::SandboxRead>) -> Result<Response<Self::ReadSandboxStream>, Status> {
        let invalid = |what: &str, why: String| Status::invalid_argument(format!("{what}: {why}"));
        let read = request.into_inner();
        let key = read.task.clone().ok_or_else(|| invalid("task", "is missing".to_owned()))?;
        let task = TaskKey::try_from(key).map_err(|e| invalid("task", e.to_string()))?;
        let agent = match read.agent.as_str() {
            "" => None,
            id => Some(AgentId::new(id).map_err(|e| invalid("agent", e.to_string()))?),
        };
        if read.what.is_none() {
            return Err(invalid("what", "name an output, a file or a directory".to_owned()));
        }
        let announced = self.relay.announce()?;
        let request = v1::ReadRequest { read_id: announced.id, read: Some(read) };
        let (sent, passed_on) = oneshot::channel();
        self.handle.send(Input::Read { request, task, agent, sent }).await?;
        let agent = passed_on.await.map_err(|_| Stopped)?.map_err(no_agent)?;
        Ok(Response::new(announced.begun(&agent).await?))
    }
}

fn no_agent(problem: NoAgent) -> Status {
    let text = problem.to_string();
    match problem {
        NoAgent::UnknownTask(_) | NoAgent::UnknownAgent(_) => Status::not_found(text),
        NoAgent::NotConnected(_) => Status::unavailable(text),
    }
}
