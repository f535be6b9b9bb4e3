//! From the file's sections to [`Config`]: which keys exist, their defaults and their own rules. What has to hold between
//! sections is in [`super::check`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::section::Section;
use super::value::{BackendKind, KeyPrefix, Listen, LogLevel, Size, SocketMode};
use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// More serving threads than this only fight for the disk.
const MAX_SHARDS: usize = 64;

pub(super) fn root(mut root: Section<'_>, host: &Host) -> Option<Config> {
    let state_dir = root.or("state_dir", PathBuf::from("/var/lib/tidemark"));
    let run_dir = root.or("run_dir", PathBuf::from("/run/tidemark"));
    let site = site(root.section("site"));
    let node = node(root.section("node"), host);
    let pools = each(root.list("pool"), pool);
    let peer = root.optional_section("peer").map(peer_listener);
    let peers = each(root.list("peers"), static_peer);
    let witness = root.optional_section("witness").map(witness);
    let admin = admin(root.section("admin"), &run_dir);
    let nbd = nbd(root.section("nbd"), &run_dir);
    let fuse = fuse(root.section("fuse"), &run_dir);
    let nbd_device = nbd_device(root.section("nbd_device"));
    let metrics = metrics(root.section("metrics"));
    let shards = shards(root.section("shards"), host);
    let defaults = defaults(root.section("defaults"));
    let log = log(root.section("log"));
    let limits = limits(root.section("limits"));
    let config = Config {
        site: site?,
        node: node?,
        state_dir,
        run_dir,
        pools: pools?,
        peer: peer.flatten(),
        peers: peers?,
        witness: witness.map_or(Some(None), |witness| witness.map(Some))?,
        admin: admin?,
        nbd: nbd?,
        fuse,
        nbd_device,
        metrics,
        shards,
        defaults,
        log,
        limits,
    };
    check::whole(&config, &root);
    root.finish();
    Some(config)
}

fn each<'p, T>(sections: Vec<Section<'p>>, read: impl Fn(Section<'p>) -> Option<T>) -> Option<Vec<T>> {
    // Every section is read before the first failure is returned: all problems are to be listed.
    sections.into_iter().map(read).collect::<Vec<_>>().into_iter().collect()
}

fn site(mut section: Section<'_>) -> Option<SiteConfig> {
    let (name, id) = (section.need("name"), section.get("id"));
    let nodes = each(section.list("nodes"), site_node);
    section.finish();
    Some(SiteConfig { name: name?, id, nodes: nodes? })
}

fn site_node(mut section: Section<'_>) -> Option<SiteNode> {
    let (id, address) = (section.need("id"), section.need("address"));
    section.finish();
    Some(SiteNode { id: id?, address: address? })
}

fn node(mut section: Section<'_>, host: &Host) -> Option<NodeConfig> {
    let hostname = Name::parse(&host.hostname.to_ascii_lowercase()).ok();
    let name = match hostname {
        Some(default) => Some(section.or("name", default)),
        None => section.need("name"),
    };
    let id = section.get("id");
    section.finish();
    Some(NodeConfig { name: name?, id })
}

fn pool(mut section: Section<'_>) -> Option<PoolConfig> {
    let (name, path, log_path) = (section.need("name"), section.need("path"), section.get("log_path"));
    section.finish();
    Some(PoolConfig { name: name?, path: path?, log_path })
}

fn peer_listener(mut section: Section<'_>) -> Option<PeerListener> {
    let (listen, security) = (section.need("listen"), security(&mut section));
    section.finish();
    Some(PeerListener { listen: listen?, security: security? })
}

fn static_peer(mut section: Section<'_>) -> Option<PeerConfig> {
    let (name, address) = (section.need("name"), section.need("address"));
    let (site_id, ca) = (section.get("site_id"), section.get("ca"));
    section.finish();
    Some(PeerConfig { name: name?, site_id, address: address?, ca })
}

fn witness(mut section: Section<'_>) -> Option<WitnessConfig> {
    let timeout = section.or("timeout", Duration::from_secs(3));
    if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&timeout) {
        section.conflict("timeout", "must be from 100ms to 1m");
    }
    let mut lease = section.or("lease", Duration::from_secs(10));
    if !(Duration::from_secs(1)..=Duration::from_mins(10)).contains(&lease) {
        section.conflict("lease", "must be from 1s to 10m");
        lease = Duration::from_secs(10); // for what else is checked
    } else if lease < timeout * WitnessConfig::MIN_LEASE_CALLS {
        let (calls, timeout) = (WitnessConfig::MIN_LEASE_CALLS, timeout.as_millis());
        section.conflict("lease", format!("must be at least {calls} times the timeout of {timeout} ms"));
    }
    let calm = calm(&mut section);
    let backend = match section.need("backend") {
        Some(BackendKind::File) => section.need("path").map(|path| WitnessBackend::File { path }),
        Some(BackendKind::Etcd) => etcd(&mut section).map(WitnessBackend::Etcd),
        Some(BackendKind::S3) => s3::read(&mut section).map(WitnessBackend::S3),
        None => return None, // which keys belong here depends on it
    };
    section.finish();
    Some(WitnessConfig { backend: backend?, timeout, lease, calm })
}

fn calm(section: &mut Section<'_>) -> Calm {
    let nanos = |text: Duration| u64::try_from(text.as_nanos()).unwrap_or(u64::MAX);
    let mut time = |key: &'static str, default: u64| {
        let time = section.or(key, Duration::from_nanos(default));
        if !(Duration::from_secs(1)..=Duration::from_hours(24)).contains(&time) {
            section.conflict(key, "must be from 1s to 24h");
        }
        nanos(time)
    };
    let Calm { window_ns, rest_ns } = Calm::default();
    Calm { window_ns: time("flap_window", window_ns), rest_ns: time("flap_rest", rest_ns) }
}

fn etcd(section: &mut Section<'_>) -> Option<EtcdWitness> {
    let endpoints: Option<Vec<HostPort>> = section.need("endpoints");
    let KeyPrefix(prefix) = section.or("prefix", KeyPrefix("/tidemark/".to_owned()));
    let security = security(section);
    Some(EtcdWitness { endpoints: endpoints?, prefix, security: security? })
}

fn admin(mut section: Section<'_>, run_dir: &Path) -> Option<AdminConfig> {
    let socket = section.or("socket", run_dir.join("admin.sock"));
    let SocketMode(socket_mode) = section.or("socket_mode", SocketMode(0o600));
    let allow_uids = section.or("allow_uids", Vec::new());
    let listen: Option<SocketAddr> = section.get("listen");
    let allow: Option<Vec<String>> = section.get("allow");
    let tls = section.optional_section("tls").map(tls_files);
    let tcp = match listen {
        Some(listen) => admin_tcp(&section, listen, allow, tls),
        None => {
            without_listener(&section, &[("allow", allow.is_some()), ("tls", tls.is_some())]);
            None
        }
    };
    section.finish();
    Some(AdminConfig { socket, socket_mode, allow_uids, tcp })
}

fn admin_tcp(
    section: &Section<'_>,
    listen: SocketAddr,
    allow: Option<Vec<String>>,
    tls: Option<Option<TlsFiles>>,
) -> Option<AdminTcp> {
    if tls.is_none() {
        section
            .missing("tls", "a section with cert, key and ca: the admin API never listens on TCP without mutual TLS");
    }
    Some(AdminTcp { listen, tls: tls??, allow: allow.unwrap_or_default() })
}

fn nbd(mut section: Section<'_>, run_dir: &Path) -> Option<NbdConfig> {
    let unix_dir = section.or("unix_dir", run_dir.join("nbd"));
    let tcp = match section.get("listen") {
        Some(listen) => security(&mut section).map(|security| NbdTcp { listen, security }),
        None => {
            let (insecure, tls) = (section.get::<bool>("insecure"), section.optional_section("tls").map(tls_files));
            without_listener(&section, &[("insecure", insecure.is_some()), ("tls", tls.is_some())]);
            None
        }
    };
    section.finish();
    Some(NbdConfig { unix_dir, tcp })
}

/// Complains about keys that do nothing because there is no listener.
fn without_listener(section: &Section<'_>, keys: &[(&str, bool)]) {
    for (key, _) in keys.iter().filter(|(_, present)| *present) {
        section.conflict(key, "has no effect without listen");
    }
}

fn fuse(mut section: Section<'_>, run_dir: &Path) -> FuseConfig {
    let dir = section.or("dir", run_dir.join("dev"));
    if dir == run_dir.join("fuse") {
        section.conflict("dir", "is where the agent mounts; name another directory");
    }
    let unmount_wait = section.or("unmount_wait", Duration::from_secs(30));
    if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&unmount_wait) {
        section.conflict("unmount_wait", "must be from 1s to 1h");
    }
    section.finish();
    FuseConfig { dir, unmount_wait }
}

fn nbd_device(mut section: Section<'_>) -> NbdDeviceConfig {
    let config = NbdDeviceConfig {
        dead_timeout: section.or("dead_timeout", Duration::from_secs(300)),
        resend_after: section.or("resend_after", Duration::from_secs(10)),
    };
    // A day: what waits longer is forgotten by everybody but the kernel.
    let fits = |duration: Duration| duration.subsec_nanos() == 0 && (1..=86_400).contains(&duration.as_secs());
    for (key, value) in [("dead_timeout", config.dead_timeout), ("resend_after", config.resend_after)] {
        if !fits(value) {
            section.conflict(key, "must be whole seconds, from 1s to 24h");
        }
    }
    section.finish();
    config
}

/// `insecure` and `[tls]` of a listener: exactly one of the two.
fn security(section: &mut Section<'_>) -> Option<Security> {
    let insecure = section.or("insecure", false);
    let tls = section.optional_section("tls").map(tls_files);
    match (insecure, tls) {
        (false, Some(files)) => files.map(Security::Mutual),
        (true, None) => Some(Security::Insecure),
        (false, None) => {
            section.missing("tls", "a section with cert, key and ca, or the explicit insecure = true");
            None
        }
        (true, Some(_)) => {
            section.conflict("insecure", "true contradicts the section tls: remove one of the two");
            None
        }
    }
}

fn tls_files(mut section: Section<'_>) -> Option<TlsFiles> {
    let (cert, key, ca) = (section.need("cert"), section.need("key"), section.need("ca"));
    section.finish();
    Some(TlsFiles { cert: cert?, key: key?, ca: ca? })
}

fn metrics(mut section: Section<'_>) -> Option<SocketAddr> {
    let Listen(listen) = section.or("listen", Listen(Some(SocketAddr::from(([127, 0, 0, 1], 9750)))));
    section.finish();
    listen
}

fn shards(mut section: Section<'_>, host: &Host) -> ShardsConfig {
    let max = (host.cpus / 2).clamp(1, MAX_SHARDS) as u32;
    let count = section.bounded("count", 1, 1, max) as u16;
    let poll = Duration::from_micros(section.bounded("poll_us", 100, 0, 1000).into());
    section.finish();
    ShardsConfig { count, poll }
}

fn defaults(mut section: Section<'_>) -> Defaults {
    let core = Policy::default();
    let ms = Duration::from_millis;
    let Size(log_bytes) = section.or("log_size", Size(core.log_bytes));
    let defaults = Defaults {
        log_bytes,
        retention: section.or("retention", ms(core.retention_ms)),
        rpo_target: section.or("rpo_target", ms(core.rpo_target_ms)),
        disk_timeout: section.or("disk_timeout", ms(core.disk_timeout_ms)),
    };
    section.finish();
    defaults
}

fn log(mut section: Section<'_>) -> LogConfig {
    let format = section.or("format", LogFormat::Text);
    let LogLevel(level) = section.or("level", LogLevel("info".to_owned()));
    section.finish();
    LogConfig { format, level }
}

fn limits(mut section: Section<'_>) -> Limits {
    let limits = Limits {
        volumes: section.bounded("volumes", 256, 1, 4096),
        peers: section.bounded("peers", 16, 1, 256),
        nbd_connections: section.bounded("nbd_connections", 256, 1, 65_536),
        stop_timeout: section.or("stop_timeout", Duration::from_secs(60)),
        verb_timeout: section.or("verb_timeout", Duration::from_secs(600)),
        branch_retention: section.or("branch_retention", 7 * DAY),
    };
    if !(Duration::from_secs(1)..=3650 * DAY).contains(&limits.branch_retention) {
        section.conflict("branch_retention", "must be from 1s to 3650d");
    }
    section.finish();
    limits
}
