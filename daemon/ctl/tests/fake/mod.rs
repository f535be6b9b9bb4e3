//! An agent that answers what the test wants and remembers what it was asked, on a real socket.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_proto::admin::admin_server::{Admin, AdminServer};
use tidemark_proto::admin::verify_response::Event;
use tidemark_proto::admin::*;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// What every call does before it answers.
#[derive(Clone, Default)]
pub enum Behaviour {
    /// Answers.
    #[default]
    Answer,
    /// Fails with this status.
    Refuse(Status),
    /// Never answers.
    Hang,
}

#[derive(Clone, Default)]
struct Fake {
    behaviour: Behaviour,
    seen: Arc<Mutex<Vec<String>>>,
    differing: bool,
}

impl Fake {
    async fn answer<M: std::fmt::Debug, R>(
        &self,
        call: &str,
        request: Request<M>,
        answer: R,
    ) -> Result<Response<R>, Status> {
        self.seen.lock().expect("no test panics with it").push(format!("{call} {:?}", request.get_ref()));
        match &self.behaviour {
            Behaviour::Answer => Ok(Response::new(answer)),
            Behaviour::Refuse(status) => Err(status.clone()),
            Behaviour::Hang => std::future::pending().await,
        }
    }
}

type Messages<M> = tokio_stream::Iter<std::vec::IntoIter<Result<M, Status>>>;

fn messages<M>(messages: Vec<M>) -> Messages<M> {
    tokio_stream::iter(messages.into_iter().map(Ok).collect::<Vec<_>>())
}

macro_rules! fake_admin {
    ($($name:ident($request:ty) -> $response:ty = $answer:expr;)*) => {
        #[tonic::async_trait]
        impl Admin for Fake {
            type WatchStatusStream = Messages<WatchStatusResponse>;
            type VerifyStream = Messages<VerifyResponse>;

            $(async fn $name(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                self.answer(stringify!($name), request, $answer).await
            })*

            async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
                let differing = self.differing;
                self.answer("verify", request, messages(comparison(differing))).await
            }
        }
    };
}

fake_admin! {
    get_version(GetVersionRequest) -> Version = Version { api: "v1".into(), ..Version::default() };
    get_agent(GetAgentRequest) -> Agent = agent();
    create_volume(CreateVolumeRequest) -> Volume = volume();
    adopt_volume(AdoptVolumeRequest) -> Volume = volume();
    list_volumes(ListVolumesRequest) -> ListVolumesResponse = ListVolumesResponse { volumes: vec![volume()] };
    get_volume(GetVolumeRequest) -> Volume = volume();
    watch_status(WatchStatusRequest) -> Messages<WatchStatusResponse> = messages(vec![look(1_000), look(2_000)]);
    attach_volume(AttachVolumeRequest) -> AttachVolumeResponse = attached();
    detach_volume(DetachVolumeRequest) -> Volume = volume();
    resize_volume(ResizeVolumeRequest) -> Volume = volume();
    release_volume(ReleaseVolumeRequest) -> ReleaseVolumeResponse = ReleaseVolumeResponse { base_path: "/dev/x".into() };
    delete_volume(DeleteVolumeRequest) -> DeleteVolumeResponse = DeleteVolumeResponse::default();
    set_policy(SetPolicyRequest) -> Volume = volume();
    set_peer(SetPeerRequest) -> Volume = volume();
    promote(PromoteRequest) -> PromoteResponse = promoted();
    demote(DemoteRequest) -> Volume = volume();
    switchover(SwitchoverRequest) -> SwitchoverResponse = switched();
    pause(PauseRequest) -> Volume = volume();
    resume(ResumeRequest) -> Volume = volume();
    drop_peer(DropPeerRequest) -> Volume = volume();
    abort_io(AbortIoRequest) -> Volume = volume();
    reseed(ReseedRequest) -> Volume = volume();
    drain(DrainRequest) -> Volume = volume();
    plan(PlanRequest) -> VerbPlan = plan();
    explain(ExplainRequest) -> Explanation = explanation();
    list_branches(ListBranchesRequest) -> ListBranchesResponse = ListBranchesResponse::default();
    open_branch(OpenBranchRequest) -> OpenBranchResponse = OpenBranchResponse { attachment: attached().attachment };
    close_branch(CloseBranchRequest) -> CloseBranchResponse = CloseBranchResponse {};
    drop_branch(DropBranchRequest) -> DropBranchResponse = DropBranchResponse {};
    add_peer(AddPeerRequest) -> Peer = peer();
    remove_peer(RemovePeerRequest) -> RemovePeerResponse = RemovePeerResponse {};
    check_witness(CheckWitnessRequest) -> WitnessCheck = witness();
    list_peers(ListPeersRequest) -> ListPeersResponse = ListPeersResponse { peers: vec![peer()] };
}

/// Id of the fake's own site.
pub const SITE_A: &str = "aaaaaaaa-0000-4000-8000-000000000001";
/// Id of its peer.
pub const SITE_B: &str = "bbbbbbbb-0000-4000-8000-000000000002";

fn plan() -> VerbPlan {
    let refusal = Refusal { code: "role".into(), reason: "it serves".into(), lifted_by: "demote it".into() };
    VerbPlan { verb: "reseed".into(), refusal: Some(refusal), ..VerbPlan::default() }
}

fn explanation() -> Explanation {
    let goes = VerbPlan { verb: "drain".into(), steps: vec!["it is drained".into()], ..VerbPlan::default() };
    Explanation {
        volume: Some(volume()),
        arbiter: state("none", ""),
        waits_for: vec!["link: down".into()],
        verbs: vec![goes, plan()],
        ..Explanation::default()
    }
}

fn witness() -> WitnessCheck {
    let (backend, place) = ("etcd".into(), "w1.example:2379".into());
    WitnessCheck { backend, place, read_us: 1_500, cas_us: 2_750, revision: "42".into() }
}

fn state(code: &str, reason: &str) -> Option<State> {
    Some(State { code: code.into(), text: code.into(), reason: reason.into(), normal: reason.is_empty() })
}

fn agent() -> Agent {
    Agent { site_id: SITE_A.into(), site_name: "berlin".into(), peers: vec![peer()], ..Agent::default() }
}

fn peer() -> Peer {
    let health = state("down", "no heartbeat for 3s");
    Peer { name: "munich".into(), site_id: SITE_B.into(), health, ..Peer::default() }
}

fn volume() -> Volume {
    Volume {
        id: "12345678-0000-4000-8000-000000000003".into(),
        name: "db".into(),
        size_bytes: 10 << 30,
        peer_site_id: SITE_B.into(),
        peer_name: "munich".into(),
        policy: Some(Policy { mode: Some(Mode::Sync.into()), ..Policy::default() }),
        status: Some(status()),
        ..Volume::default()
    }
}

fn status() -> VolumeStatus {
    let epoch = Some(Epoch { major: 2, minor: 1 });
    let sites = vec![SITE_A.into(), SITE_B.into()];
    VolumeStatus {
        role: state("primary", ""),
        copy: state("current", ""),
        link: state("disconnected", "connection refused"),
        protection: state("not-protected", "the link is down"),
        config: Some(GroupConfig { epoch, sites, mode: Mode::Sync.into(), ..GroupConfig::default() }),
        backlog_bytes: 8192,
        rpo_ms: 1500,
        promotable: Some(Promotable { promotion_class: "lossy".into(), ..Promotable::default() }),
        ..VolumeStatus::default()
    }
}

fn look(at_ms: i64) -> WatchStatusResponse {
    WatchStatusResponse { at_ms, volumes: vec![volume()] }
}

fn attached() -> AttachVolumeResponse {
    let attachment = Attachment {
        frontend: Frontend::Nbd.into(),
        nbd_uri: "nbd+unix:///db?socket=/run/tidemark/nbd.sock".into(),
        ..Attachment::default()
    };
    AttachVolumeResponse { attachment: Some(attachment), volume: Some(volume()) }
}

fn promoted() -> PromoteResponse {
    PromoteResponse {
        promotion_class: PromotionClass::Lossy.into(),
        fork_lsn: 7,
        lost_bytes: 4096,
        lost_ms: 250,
        volume: Some(volume()),
    }
}

fn switched() -> SwitchoverResponse {
    SwitchoverResponse { primary_site_id: SITE_B.into(), pause_ms: 321, volume: Some(volume()) }
}

fn comparison(differing: bool) -> Vec<VerifyResponse> {
    let progress = VerifyProgress { blocks_done: 1, blocks_total: 2 };
    let ranges = if differing { vec![ByteRange { offset: 8192, length: 4096 }] } else { Vec::new() };
    let result = VerifyResult { equal: !differing, blocks: 2, lsn: 9, differing: ranges };
    [Event::Progress(progress), Event::Result(result)].map(|event| VerifyResponse { event: Some(event) }).to_vec()
}

/// A running fake agent; its thread ends with the process.
pub struct FakeAgent {
    /// What `--agent` has to be.
    pub url: String,
    seen: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
}

impl FakeAgent {
    /// An agent that answers.
    pub fn answering() -> Self {
        Self::on_unix(Fake::default())
    }

    /// An agent that behaves like this.
    pub fn behaving(behaviour: Behaviour) -> Self {
        Self::on_unix(Fake { behaviour, ..Fake::default() })
    }

    /// An agent whose copies differ.
    pub fn differing() -> Self {
        Self::on_unix(Fake { differing: true, ..Fake::default() })
    }

    /// An agent over TCP with mutual TLS, with the node's files in `pki`.
    pub fn over_tls(pki: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let fake = Fake::default();
        let seen = fake.seen.clone();
        let read = |name: &str| std::fs::read_to_string(pki.join(name)).expect("a file of the PKI");
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(read("node.crt"), read("node.key")))
            .client_ca_root(tonic::transport::Certificate::from_pem(read("ca.crt")));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let url = format!("https://{}", listener.local_addr().expect("it is bound"));
        serve(async move {
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).expect("a socket"));
            let server =
                Server::builder().tls_config(tls).expect("valid certificates").add_service(AdminServer::new(fake));
            server.serve_with_incoming(incoming).await.expect("serves");
        });
        Self { url, seen, _dir: dir }
    }

    fn on_unix(fake: Fake) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket: PathBuf = dir.path().join("admin.sock");
        let seen = fake.seen.clone();
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        serve(async move {
            let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener).expect("a socket"));
            Server::builder().add_service(AdminServer::new(fake)).serve_with_incoming(incoming).await.expect("serves");
        });
        Self { url: format!("unix://{}", socket.display()), seen, _dir: dir }
    }

    /// What it was asked, as text.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no test panics with it").clone()
    }

    /// Runs `tidemark` against it.
    pub fn run(&self, line: &str) -> Output {
        tidemark(&format!("--agent {} {line}", self.url))
    }
}

fn serve(server: impl Future<Output = ()> + Send + 'static) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(server);
    });
}

/// Runs `tidemark` with the words of `line`; it has no terminal.
pub fn tidemark(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemark"));
    for name in ["TIDEMARK_AGENT", "TIDEMARK_CERT", "TIDEMARK_KEY", "TIDEMARK_CA"] {
        command.env_remove(name);
    }
    command.args(line.split_whitespace()).stdin(std::process::Stdio::null()).output().expect("it starts")
}

/// Stdout as text.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Stderr as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// The exit code.
pub fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

/// Long enough for a command that must not hang.
pub const PATIENCE: Duration = Duration::from_secs(20);
