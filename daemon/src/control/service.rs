//! The admin service: each method checks its request, asks the engine, and words the answer.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tidemark_core::types::WallMs;
use tidemark_core::verb::Verb;
use tidemark_proto::admin as wire;
use tidemark_proto::admin::admin_server::Admin;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::calls::{Call, Calls};
use super::engine::{Answer, Engine, EngineError, VolumeKey};
use super::invalid::field;
use super::{answer, plan, policy, request, streams};

/// Of the API; a new one only for changes that an older client would misread.
const API_VERSION: &str = "v1";
/// Of the wire between sites.
const WIRE_VERSION: u32 = 1;
/// Of the formats on disk.
const FORMAT_VERSION: u32 = tidemark_core::format::segment::VERSION as u32;

/// The service in front of an engine.
pub(super) struct Service {
    engine: Arc<dyn Engine>,
    calls: Calls,
    /// True once the agent stops: streams end.
    stopping: watch::Receiver<bool>,
}

type Reply<T> = Result<Response<T>, Status>;

impl Service {
    pub fn new(engine: Arc<dyn Engine>, calls: Calls, stopping: watch::Receiver<bool>) -> Self {
        Self { engine, calls, stopping }
    }

    /// Runs `work`, then answers with the volume as it is afterwards.
    async fn then_volume<T: Send + 'static>(&self, call: Call, key: VolumeKey, work: Answer<T>) -> Reply<wire::Volume> {
        let engine = self.engine.clone();
        let both = async move {
            work.await?;
            engine.volume(key).await
        };
        self.answered(call, both, answer::volume).await
    }

    /// A verb of the copy itself, answered with the volume as it is afterwards.
    async fn verb(&self, call: Call, volume: &str, verb: Verb) -> Reply<wire::Volume> {
        let key = request::volume(volume)?;
        let work = self.engine.verb(key.clone(), verb);
        self.then_volume(call, key, work).await
    }

    async fn answered<T: Send + 'static, A>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
        word: impl FnOnce(T) -> A,
    ) -> Reply<A> {
        self.calls.run(call, work).await.map(|value| Response::new(word(value)))
    }
}

/// The wall clock.
pub(super) fn now() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[tonic::async_trait]
impl Admin for Service {
    type WatchStatusStream = ReceiverStream<Result<wire::WatchStatusResponse, Status>>;
    type VerifyStream = ReceiverStream<Result<wire::VerifyResponse, Status>>;

    async fn get_version(&self, _: Request<wire::GetVersionRequest>) -> Reply<wire::Version> {
        Ok(Response::new(wire::Version {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            api: API_VERSION.to_owned(),
            wire: WIRE_VERSION,
            format: FORMAT_VERSION,
        }))
    }

    async fn get_agent(&self, request: Request<wire::GetAgentRequest>) -> Reply<wire::Agent> {
        self.answered(Call::of("GetAgent", &request), self.engine.agent(), answer::agent).await
    }

    async fn create_volume(&self, request: Request<wire::CreateVolumeRequest>) -> Reply<wire::Volume> {
        let volume = request::create(request.get_ref())?;
        self.answered(Call::of("CreateVolume", &request), self.engine.create_volume(volume), answer::volume).await
    }

    async fn adopt_volume(&self, request: Request<wire::AdoptVolumeRequest>) -> Reply<wire::Volume> {
        let volume = request::adopt(request.get_ref())?;
        self.answered(Call::of("AdoptVolume", &request), self.engine.create_volume(volume), answer::volume).await
    }

    async fn list_volumes(&self, request: Request<wire::ListVolumesRequest>) -> Reply<wire::ListVolumesResponse> {
        let word =
            |volumes: Vec<_>| wire::ListVolumesResponse { volumes: volumes.into_iter().map(answer::volume).collect() };
        self.answered(Call::of("ListVolumes", &request), self.engine.volumes(), word).await
    }

    async fn get_volume(&self, request: Request<wire::GetVolumeRequest>) -> Reply<wire::Volume> {
        let key = request::volume(&request.get_ref().volume)?;
        self.answered(Call::of("GetVolume", &request), self.engine.volume(key), answer::volume).await
    }

    async fn watch_status(&self, request: Request<wire::WatchStatusRequest>) -> Reply<Self::WatchStatusStream> {
        let call = Call::of("WatchStatus", &request);
        let request = request.into_inner();
        let keys = request::volumes(&request.volumes)?;
        let interval = streams::interval(request.interval_ms)?;
        let permit = self.calls.admit(&call)?;
        let watch = streams::Watch { engine: self.engine.clone(), keys, interval, stopping: self.stopping.clone() };
        Ok(Response::new(watch.start(permit)))
    }

    async fn attach_volume(&self, request: Request<wire::AttachVolumeRequest>) -> Reply<wire::AttachVolumeResponse> {
        let key = request::volume(&request.get_ref().volume)?;
        let frontend = policy::frontend(request.get_ref().frontend)?;
        let (engine, work) = (self.engine.clone(), self.engine.attach(key.clone(), frontend));
        let both = async move { Ok((work.await?, engine.volume(key).await?)) };
        let word = |(attachment, volume)| wire::AttachVolumeResponse {
            attachment: Some(answer::attachment(attachment)),
            volume: Some(answer::volume(volume)),
        };
        self.answered(Call::of("AttachVolume", &request), both, word).await
    }

    async fn detach_volume(&self, request: Request<wire::DetachVolumeRequest>) -> Reply<wire::Volume> {
        let key = request::volume(&request.get_ref().volume)?;
        let work = self.engine.detach(key.clone(), request.get_ref().force);
        self.then_volume(Call::of("DetachVolume", &request), key, work).await
    }

    async fn resize_volume(&self, request: Request<wire::ResizeVolumeRequest>) -> Reply<wire::Volume> {
        let key = request::volume(&request.get_ref().volume)?;
        let work = self.engine.resize(key.clone(), request::size(request.get_ref().size_bytes)?);
        self.then_volume(Call::of("ResizeVolume", &request), key, work).await
    }

    async fn release_volume(&self, request: Request<wire::ReleaseVolumeRequest>) -> Reply<wire::ReleaseVolumeResponse> {
        let key = request::volume(&request.get_ref().volume)?;
        let word = |base: std::path::PathBuf| wire::ReleaseVolumeResponse { base_path: answer::path(&base) };
        self.answered(Call::of("ReleaseVolume", &request), self.engine.release(key), word).await
    }

    async fn delete_volume(&self, request: Request<wire::DeleteVolumeRequest>) -> Reply<wire::DeleteVolumeResponse> {
        let key = request::volume(&request.get_ref().volume)?;
        let disposal = request::disposal(request.get_ref().disposal)?;
        let scope = request::scope(request.get_ref().whole_group);
        let work = self.engine.delete(key, scope, disposal, request.get_ref().force);
        let word = |trash: Option<std::path::PathBuf>| wire::DeleteVolumeResponse {
            trash_path: trash.as_deref().map(answer::path).unwrap_or_default(),
        };
        self.answered(Call::of("DeleteVolume", &request), work, word).await
    }

    async fn set_policy(&self, request: Request<wire::SetPolicyRequest>) -> Reply<wire::Volume> {
        let key = request::volume(&request.get_ref().volume)?;
        let wanted = request.get_ref().policy.as_ref().ok_or_else(|| field("policy", "names no field to change"))?;
        let work = self.engine.change_policy(key.clone(), policy::patch(wanted)?);
        self.then_volume(Call::of("SetPolicy", &request), key, work).await
    }

    async fn set_peer(&self, request: Request<wire::SetPeerRequest>) -> Reply<wire::Volume> {
        let key = request::volume(&request.get_ref().volume)?;
        let work = self.engine.set_peer(key.clone(), request::peer_choice(&request.get_ref().peer_site)?);
        self.then_volume(Call::of("SetPeer", &request), key, work).await
    }

    async fn promote(&self, request: Request<wire::PromoteRequest>) -> Reply<wire::PromoteResponse> {
        let key = request::volume(&request.get_ref().volume)?;
        let verb = request::promote(request.get_ref(), now())?;
        let (engine, work) = (self.engine.clone(), self.engine.verb(key.clone(), verb));
        let both = async move { Ok((work.await?, engine.volume(key).await?)) };
        let word = |(promoted, volume)| answer::promoted(promoted, answer::volume(volume));
        self.answered(Call::of("Promote", &request), both, word).await
    }

    async fn demote(&self, request: Request<wire::DemoteRequest>) -> Reply<wire::Volume> {
        let verb = Verb::Demote { force: request.get_ref().force };
        self.verb(Call::of("Demote", &request), &request.get_ref().volume, verb).await
    }

    async fn switchover(&self, request: Request<wire::SwitchoverRequest>) -> Reply<wire::SwitchoverResponse> {
        let key = request::volume(&request.get_ref().volume)?;
        let switchover = request::switchover(request.get_ref())?;
        let (engine, work) = (self.engine.clone(), self.engine.switchover(key.clone(), switchover));
        let both = async move { Ok((work.await?, engine.volume(key).await?)) };
        let word = |(switched, volume)| answer::switched(&switched, answer::volume(volume));
        self.answered(Call::of("Switchover", &request), both, word).await
    }

    async fn pause(&self, request: Request<wire::PauseRequest>) -> Reply<wire::Volume> {
        let verb = request::pause(request.get_ref())?;
        self.verb(Call::of("Pause", &request), &request.get_ref().volume, verb).await
    }

    async fn resume(&self, request: Request<wire::ResumeRequest>) -> Reply<wire::Volume> {
        let verb = request::resume(request.get_ref());
        self.verb(Call::of("Resume", &request), &request.get_ref().volume, verb).await
    }

    async fn drop_peer(&self, request: Request<wire::DropPeerRequest>) -> Reply<wire::Volume> {
        let verb = request::drop_peer(request.get_ref(), now())?;
        self.verb(Call::of("DropPeer", &request), &request.get_ref().volume, verb).await
    }

    async fn abort_io(&self, request: Request<wire::AbortIoRequest>) -> Reply<wire::Volume> {
        self.verb(Call::of("AbortIo", &request), &request.get_ref().volume, Verb::AbortIo).await
    }

    async fn reseed(&self, request: Request<wire::ReseedRequest>) -> Reply<wire::Volume> {
        self.verb(Call::of("Reseed", &request), &request.get_ref().volume, Verb::Reseed).await
    }

    async fn drain(&self, request: Request<wire::DrainRequest>) -> Reply<wire::Volume> {
        self.verb(Call::of("Drain", &request), &request.get_ref().volume, Verb::Drain).await
    }

    async fn verify(&self, request: Request<wire::VerifyRequest>) -> Reply<Self::VerifyStream> {
        let call = Call::of("Verify", &request);
        let key = request::volume(&request.get_ref().volume)?;
        let permit = self.calls.admit(&call)?;
        let (progress, seen) = watch::channel(Default::default());
        let work = self.engine.verify(key, progress);
        let verify = streams::Verify { calls: self.calls.clone(), call, work, seen, stopping: self.stopping.clone() };
        Ok(Response::new(verify.start(permit)))
    }

    async fn plan(&self, request: Request<wire::PlanRequest>) -> Reply<wire::VerbPlan> {
        let (verb, question) = plan::question(request.get_ref())?;
        let work = match question {
            plan::Question::Volume(key, planned) => self.engine.plan(key, planned),
            plan::Question::Peer(key) => self.engine.plan_removal(key),
        };
        self.answered(Call::of("Plan", &request), work, |foretold| plan::verb_plan(verb, foretold)).await
    }

    async fn explain(&self, request: Request<wire::ExplainRequest>) -> Reply<wire::Explanation> {
        let key = request::volume(&request.get_ref().volume)?;
        self.answered(Call::of("Explain", &request), self.engine.explain(key), plan::explanation).await
    }

    async fn list_branches(&self, request: Request<wire::ListBranchesRequest>) -> Reply<wire::ListBranchesResponse> {
        let key = request::volume(&request.get_ref().volume)?;
        self.answered(Call::of("ListBranches", &request), self.engine.branches(key), answer::branches).await
    }

    async fn open_branch(&self, request: Request<wire::OpenBranchRequest>) -> Reply<wire::OpenBranchResponse> {
        let wire::OpenBranchRequest { volume, number, frontend } = request.get_ref();
        let (key, seen) = (request::volume(volume)?, request::seen(*number)?);
        let work = self.engine.open_view(key, seen, policy::frontend(*frontend)?);
        let word = |opened| wire::OpenBranchResponse { attachment: Some(answer::attachment(opened)) };
        self.answered(Call::of("OpenBranch", &request), work, word).await
    }

    async fn close_branch(&self, request: Request<wire::CloseBranchRequest>) -> Reply<wire::CloseBranchResponse> {
        let wire::CloseBranchRequest { volume, number, force } = request.get_ref();
        let (key, seen) = (request::volume(volume)?, request::seen(*number)?);
        let work = self.engine.close_view(key, seen, *force);
        self.answered(Call::of("CloseBranch", &request), work, |()| wire::CloseBranchResponse {}).await
    }

    async fn drop_branch(&self, request: Request<wire::DropBranchRequest>) -> Reply<wire::DropBranchResponse> {
        let key = request::volume(&request.get_ref().volume)?;
        let (number, word) = request::drop_branch(request.get_ref(), now())?;
        let work = self.engine.drop_branch(key, number, word, request.get_ref().acknowledged);
        self.answered(Call::of("DropBranch", &request), work, |()| wire::DropBranchResponse {}).await
    }

    async fn add_peer(&self, request: Request<wire::AddPeerRequest>) -> Reply<wire::Peer> {
        let peer = request::new_peer(request.get_ref())?;
        self.answered(Call::of("AddPeer", &request), self.engine.add_peer(peer), answer::peer).await
    }

    async fn remove_peer(&self, request: Request<wire::RemovePeerRequest>) -> Reply<wire::RemovePeerResponse> {
        let key = request::peer(&request.get_ref().peer)?;
        let word = |()| wire::RemovePeerResponse {};
        self.answered(Call::of("RemovePeer", &request), self.engine.remove_peer(key), word).await
    }

    async fn check_witness(&self, request: Request<wire::CheckWitnessRequest>) -> Reply<wire::WitnessCheck> {
        self.answered(Call::of("CheckWitness", &request), self.engine.check_witness(), answer::witness).await
    }

    async fn list_peers(&self, request: Request<wire::ListPeersRequest>) -> Reply<wire::ListPeersResponse> {
        let word = |peers: Vec<_>| wire::ListPeersResponse { peers: peers.into_iter().map(answer::peer).collect() };
        self.answered(Call::of("ListPeers", &request), self.engine.peers(), word).await
    }
}
