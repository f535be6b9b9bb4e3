//! Configurations that are good, and a table of those that are not.

use super::*;

const MINIMAL: &str = "[site]\nname = \"a\"\n[[pool]]\nname = \"main\"\npath = \"/srv/tidemark\"\n";

fn host() -> Host {
    Host { hostname: "Node-1".to_owned(), cpus: 8 }
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("agent.toml"), text, &host())
}

/// The smallest good configuration with `top` before its sections and `more` after them.
pub(super) fn minimal(top: &str, more: &str) -> Config {
    parse(&format!("{top}{MINIMAL}{more}")).unwrap()
}

fn problems(more: &str) -> String {
    parse(&format!("{MINIMAL}{more}")).unwrap_err().to_string()
}

#[test]
fn the_smallest_file_has_safe_defaults() {
    let config = minimal("", "");
    assert_eq!(config.node.name.as_str(), "node-1");
    assert_eq!(config.peer, None);
    assert_eq!(config.admin.socket, Path::new("/run/tidemark/admin.sock"));
    assert_eq!((config.admin.socket_mode, config.admin.tcp.is_none()), (0o600, true));
    assert_eq!(config.nbd.tcp, None);
    assert_eq!(config.metrics, Some(SocketAddr::from(([127, 0, 0, 1], 9750))));
    assert_eq!((config.shards.count, config.shards.poll), (1, Duration::from_micros(100)));
    assert_eq!(config.log, LogConfig { format: LogFormat::Text, level: "info".to_owned() });
    assert_eq!(config.limits.stop_timeout, Duration::from_secs(60));
}

#[test]
fn the_sample_file_is_a_good_configuration() {
    let text = include_str!("../../../deploy/agent.toml");
    let config = parse(text).unwrap();
    assert_eq!(config.peers.len(), 1);
    // What the sample shows as comments has to be right, too.
    let uncommented: String =
        text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n").collect();
    assert_ne!(uncommented, text);
    parse(&uncommented).unwrap();
}

#[test]
fn other_nodes_of_the_site_are_named_by_id_and_address_once_and_never_this_one() {
    let site = "\n[peer]\nlisten = \"127.0.0.1:9740\"\ninsecure = true\n";
    let id = |n: u8| format!("00000000-0000-4000-8000-0000000000{n:02}");
    let node = |n: u8| format!("[[site.nodes]]\nid = \"{}\"\naddress = \"n{n}:9740\"\n", id(n));
    let file = |nodes: &str, more: &str| {
        let head = format!("[site]\nname = \"a\"\nid = \"{}\"\n{nodes}[node]\nid = \"{}\"\n", id(1), id(2));
        parse(&format!("{head}[[pool]]\nname = \"main\"\npath = \"/srv/tidemark\"\n{more}"))
    };
    let good = file(&(node(3) + &node(4)), site).unwrap();
    assert_eq!(good.site.nodes.iter().map(|node| node.address.as_str()).collect::<Vec<_>>(), ["n3:9740", "n4:9740"]);
    let wrong = |nodes: &str, more: &str| file(nodes, more).unwrap_err().to_string();
    assert!(wrong(&node(2), site).contains("is this node itself"));
    assert!(wrong(&(node(3) + &node(3)), site).contains("used twice"));
    assert!(wrong(&node(3), "").contains("a section [peer]"));
    assert!(wrong(&(3..19).map(node).collect::<String>(), site).contains("more than 15"));
}

#[test]
fn a_witness_is_etcd_an_object_store_or_a_directory_with_the_keys_of_just_that() {
    let etcd = "[witness]\nbackend = \"etcd\"\nendpoints = [\"w1:2379\", \"[fd00::1]:2379\"]\ninsecure = true\n";
    let Some(WitnessConfig { backend: WitnessBackend::Etcd(read), timeout, lease, calm }) = minimal("", etcd).witness
    else {
        panic!("no etcd")
    };
    assert_eq!((read.endpoints.len(), read.prefix.as_str(), read.security), (2, "/tidemark/", Security::Insecure));
    assert_eq!((timeout, lease), (Duration::from_secs(3), Duration::from_secs(10)));
    assert_eq!(calm, Calm::default());
    let file = minimal("", "[witness]\nbackend = \"file\"\npath = \"/w\"\n").witness;
    assert_eq!(file.map(|witness| witness.backend), Some(WitnessBackend::File { path: "/w".into() }));
    let s3 = "[witness]\nbackend = \"s3\"\nendpoint = \"https://s:7070\"\nbucket = \"w\"\n";
    let Some(WitnessConfig { backend: WitnessBackend::S3(s3), .. }) = minimal("", s3).witness else { panic!("no s3") };
    assert_eq!((s3.bucket.as_str(), s3.prefix.as_str(), s3.region.as_str()), ("w", "/tidemark/", "us-east-1"));
    assert!(s3.path_style && s3.credentials.is_none() && s3.ca.is_none());
    let at_amazon = minimal("", "[witness]\nbackend = \"s3\"\nbucket = \"w\"\n").witness.unwrap().backend;
    assert!(matches!(at_amazon, WitnessBackend::S3(S3Witness { endpoint: None, path_style: false, .. })));
    assert_eq!(minimal("", "").witness, None);
    for (more, wanted) in [
        ("path = \"/w\"", "witness.backend is missing"),
        ("backend = \"zookeeper\"", "allowed is \"etcd\", \"s3\" or \"file\""),
        ("backend = \"file\"\npath = \"w\"", "allowed is an absolute path"),
        ("backend = \"file\"\npath = \"/w\"\nprefix = \"/x\"", "unknown key witness.prefix"),
        ("backend = \"etcd\"\ninsecure = true", "witness.endpoints is missing"),
        ("backend = \"etcd\"\nendpoints = []\ninsecure = true", "each once"),
        ("backend = \"etcd\"\nendpoints = [\"w:1\", \"w:1\"]\ninsecure = true", "each once"),
        ("backend = \"etcd\"\nendpoints = [\"http://w:1\"]\ninsecure = true", "host:port"),
        ("backend = \"etcd\"\nendpoints = [\"w:1\"]", "witness.tls is missing"),
        ("backend = \"etcd\"\nendpoint = [\"w:1\"]\ninsecure = true", "did you mean witness.endpoints?"),
        ("backend = \"etcd\"\nendpoints = [\"w:1\"]\ninsecure = true\nprefix = \"a b\"", "letters, digits"),
        ("backend = \"s3\"", "witness.bucket is missing"),
        ("backend = \"s3\"\nbucket = \"w\"\nendpoint = \"s:1\"", "https://host:port"),
        ("backend = \"s3\"\nbucket = \"w\"\nendpoint = \"http://s:1\"", "needs the explicit insecure = true"),
        ("backend = \"s3\"\nbucket = \"w\"\ninsecure = true", "contradicts an endpoint with TLS"),
        ("backend = \"s3\"\nbucket = \"w\"\nsecret_key = \"x\"", "unknown key witness.secret_key"),
        ("backend = \"file\"\npath = \"/w\"\ntimeout = \"1ms\"", "must be from 100ms to 1m"),
        ("backend = \"file\"\npath = \"/w\"\nlease = \"900ms\"", "witness.lease: must be from 1s to 10m"),
        ("backend = \"file\"\npath = \"/w\"\nlease = \"11m\"", "witness.lease: must be from 1s to 10m"),
        ("backend = \"file\"\npath = \"/w\"\nlease = \"8s\"", "at least 3 times the timeout of 3000 ms"),
        ("backend = \"file\"\npath = \"/w\"\nflap_rest = \"0s\"", "witness.flap_rest: must be from 1s to 24h"),
    ] {
        let found = problems(&format!("[witness]\n{more}\n"));
        assert!(found.contains(wanted), "{more}: {found}");
    }
}

#[test]
fn a_full_file_is_read_as_written() {
    let config = minimal(
        "state_dir = \"/s\"\nrun_dir = \"/r\"\n",
        r#"
        [[pool]]
        name = "fast"
        path = "/fast"
        log_path = "/nvme/log"
        [peer]
        listen = "10.0.0.1:9740"
        tls = { cert = "/c", key = "/k", ca = "/ca" }
        [[peers]]
        name = "b"
        site_id = "00000000-0000-4000-8000-00000000000b"
        address = "b.example:9740"
        [admin]
        socket_mode = "0660"
        allow_uids = [1000]
        listen = "10.0.0.1:9760"
        allow = ["spiffe://tidemark/site/a/admin/ann"]
        tls = { cert = "/c", key = "/k", ca = "/ca" }
        [nbd]
        listen = "127.0.0.1:10809"
        insecure = true
        [metrics]
        listen = "off"
        [shards]
        count = 4
        poll_us = 0
        [defaults]
        log_size = "512Mi"
        retention = "1h"
        [log]
        format = "json"
        level = "info,tidemark_agent::peer=debug"
        [limits]
        stop_timeout = "2m"
        "#,
    );
    let tls = TlsFiles { cert: "/c".into(), key: "/k".into(), ca: "/ca".into() };
    assert_eq!(config.pools[1].log_path.as_deref(), Some(Path::new("/nvme/log")));
    assert_eq!(config.peer.unwrap().security, Security::Mutual(tls.clone()));
    assert_eq!(config.peers[0].address.as_str(), "b.example:9740");
    assert_eq!(config.admin.tcp.unwrap().tls, tls);
    assert_eq!(config.nbd.tcp.unwrap().security, Security::Insecure);
    assert_eq!(config.nbd.unix_dir, Path::new("/r/nbd"));
    assert_eq!((config.metrics, config.shards.count, config.shards.poll), (None, 4, Duration::ZERO));
    assert_eq!(config.limits.stop_timeout, Duration::from_secs(120));
    let policy = config.defaults.policy();
    assert_eq!((policy.log_bytes, policy.retention_ms), (512 << 20, 3_600_000));
    assert_eq!(policy.disk_timeout_ms, Policy::default().disk_timeout_ms);
}

/// What the file adds to the smallest one, and what the message has to say.
const WRONG: &[(&str, &[&str])] = &[
    ("[nbd]\nlisen = \"x\"\n", &["agent.toml: unknown key nbd.lisen: did you mean nbd.listen?"]),
    ("[fuse]\nunmount_wait = \"0s\"\n", &["fuse.unmount_wait: must be from 1s to 1h"]),
    ("[nbd_device]\ndead_timeout = \"0s\"\n", &["nbd_device.dead_timeout: must be whole seconds, from 1s to 24h"]),
    ("[nbd_device]\nresend_after = \"1500ms\"\n", &["nbd_device.resend_after: must be whole seconds, from 1s to 24h"]),
    (
        "[witness]\nbackend = \"file\"\npath = \"/w\"\nlease = \"1m\"\n[limits]\nverb_timeout = \"1m\"\n",
        &["limits.verb_timeout: must be at least 73 s"],
    ),
    ("[limits]\nbranch_retention = \"0s\"\n", &["limits.branch_retention: must be from 1s to 3650d"]),
    ("[colour]\n", &["unknown key colour: allowed here are admin, defaults, fuse, limits"]),
    ("[[pool]]\nname = \"b\"\npath = \"/b\"\nsize = 1\n", &["unknown key pool[1].size", "log_path, name, path"]),
    ("[[pool]]\nname = \"b\"\n", &["pool[1].path is missing: needed is an absolute path"]),
    ("[[pool]]\nname = \"main\"\npath = \"/b\"\n", &["pool.name: \"main\" is used twice"]),
    ("[[pool]]\nname = \"b\"\npath = \"/srv/tidemark\"\n", &["pool.path: \"/srv/tidemark\" is used twice"]),
    ("[[pool]]\nname = \"b\"\npath = \"rel\"\n", &["pool[1].path = \"rel\": allowed is an absolute path"]),
    ("[[pool]]\nname = \"../b\"\npath = \"/b\"\n", &["pool[1].name = \"../b\": allowed is a name of 1 to 63"]),
    ("[node]\nid = \"xyz\"\n", &["node.id = \"xyz\": allowed is a UUID"]),
    ("[node]\nid = \"00000000000000000000000000000000\"\n", &["allowed is a UUID that is not nil"]),
    ("[peer]\nlisten = \"0.0.0.0:9740\"\n", &["peer.tls is missing", "insecure = true"]),
    ("[peer]\ninsecure = true\n", &["peer.listen is missing: needed is address:port"]),
    ("[peer]\nlisten = \"somewhere\"\ninsecure = true\n", &["peer.listen = \"somewhere\": allowed is address:port"]),
    ("[peer]\nlisten = \"0.0.0.0:65535\"\ninsecure = true\n", &["peer.listen: allowed is a port from 1 to 65534"]),
    ("[peer]\nlisten = \"0.0.0.0:0\"\ninsecure = true\n", &["peer.listen: allowed is a port from 1"]),
    (
        "[peer]\nlisten = \"0.0.0.0:1\"\ninsecure = true\n[peer.tls]\ncert = \"/c\"\nkey = \"/k\"\nca = \"/ca\"\n",
        &["peer.insecure: true contradicts the section tls"],
    ),
    ("[peer]\nlisten = \"0.0.0.0:1\"\n[peer.tls]\ncert = \"/c\"\nkey = \"/k\"\n", &["peer.tls.ca is missing"]),
    ("[[peers]]\nname = \"b\"\naddress = \"b:1\"\n", &["peer is missing: needed is a section [peer]"]),
    ("[[peers]]\nname = \"b\"\naddress = \"b\"\n", &["peers[0].address = \"b\": allowed is host:port"]),
    ("[admin]\nlisten = \"0.0.0.0:1\"\n", &["admin.tls is missing"]),
    ("[admin]\nallow = [\"x\"]\n", &["admin.allow: has no effect without listen"]),
    ("[admin]\nsocket_mode = \"0999\"\n", &["admin.socket_mode = \"0999\": allowed is octal mode bits"]),
    ("[admin]\nsocket_mode = 600\n", &["admin.socket_mode = 600: allowed is octal mode bits as a text"]),
    ("[nbd]\ninsecure = true\n", &["nbd.insecure: has no effect without listen"]),
    ("[nbd]\nlisten = \"0.0.0.0:10809\"\n", &["nbd.tls is missing"]),
    (
        "[nbd]\nlisten = \"127.0.0.1:9750\"\ninsecure = true\n",
        &["metrics.listen: 127.0.0.1:9750 is taken by nbd.listen"],
    ),
    (
        "[peer]\nlisten = \"127.0.0.1:9749\"\ninsecure = true\n",
        &["metrics.listen: 127.0.0.1:9750 is taken by peer.listen of a shard"],
    ),
    ("[metrics]\nlisten = false\n", &["metrics.listen = false: allowed is address:port", "\"off\""]),
    ("[shards]\ncount = 5\n", &["shards.count = 5: allowed is a whole number from 1 to 4"]),
    ("[shards]\npoll_us = 1001\n", &["shards.poll_us = 1001: allowed is a whole number from 0 to 1000"]),
    ("[shards]\ncount = 0\n", &["shards.count = 0: allowed is a whole number from 1 to 4"]),
    ("[log]\nformat = \"xml\"\n", &["log.format = \"xml\": allowed is \"text\" or \"json\""]),
    ("[log]\nlevel = \"loud\"\n", &["log.level = \"loud\": allowed is error, warn, info, debug, trace"]),
    ("[log]\nlevel = \"info,a::b=loud\"\n", &["log.level = \"info,a::b=loud\": allowed is"]),
    ("[defaults]\nlog_size = \"10 apples\"\n", &["defaults.log_size = \"10 apples\": allowed is bytes such as"]),
    ("[defaults]\ndisk_timeout = \"1ms\"\n", &["defaults.disk_timeout: is 1: allowed are 1000 to 600000 milliseconds"]),
    ("[defaults]\nlog_size = \"4Ki\"\n", &["defaults.log_size: is 4096: allowed are 1048576 to"]),
    ("[[pool]]\nname = \"b\"\npath = \"/b\"\nlog_path = \"/b\"\n", &["pool.path: \"/b\" is used twice"]),
    ("[limits]\nstop_timeout = 30\n", &["limits.stop_timeout = 30: allowed is a duration such as"]),
    ("[limits]\nvolumes = -1\n", &["limits.volumes = -1: allowed is a whole number from 1 to 4096"]),
    ("[[admin]]\n", &["admin = [{}]: allowed is a section [admin]"]),
    ("[peers]\nname = \"b\"\n", &["peers = {..}: allowed is sections [[peers]]"]),
    ("[nbd\n", &["agent.toml: TOML parse error at line 6"]),
    ("[site]\nname = \"b\"\n", &["agent.toml: TOML parse error", "duplicate key"]),
];

#[test]
fn every_mistake_is_named_with_file_key_and_what_is_allowed() {
    for (more, wanted) in WRONG {
        let message = problems(more);
        assert!(message.starts_with("agent.toml: "), "{message}");
        for part in *wanted {
            assert!(message.contains(part), "{more}\ngives\n{message}\nwithout\n{part}");
        }
    }
}

#[test]
fn one_run_lists_all_mistakes() {
    let message = problems("[nbd]\nlisen = 1\n[log]\nformat = \"xml\"\n[shards]\ncount = 99\n");
    assert_eq!(message.lines().count(), 3, "{message}");
}

#[test]
fn an_empty_file_says_what_is_needed() {
    let message = parse("").unwrap_err().to_string();
    assert!(message.contains("site.name is missing"), "{message}");
}

#[test]
fn a_host_without_a_usable_name_needs_one_in_the_file() {
    let host = Host { hostname: "my_host".to_owned(), cpus: 1 };
    let message = Config::parse(Path::new("agent.toml"), MINIMAL, &host).unwrap_err().to_string();
    assert!(message.contains("node.name is missing"), "{message}");
}

#[test]
fn a_missing_file_is_named() {
    let message = Config::load(Path::new("/nonexistent/agent.toml")).unwrap_err().to_string();
    assert!(message.starts_with("/nonexistent/agent.toml: cannot be read"), "{message}");
}
