//! The binary against an agent on a real socket: exit codes, what is asked, what is printed.

mod fake;

use std::time::Instant;

use fake::{Behaviour, FakeAgent, PATIENCE, SITE_A, SITE_B, code, stderr, stdout, tidemark};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn every_refusal_of_the_agent_has_its_exit_code() {
    for (refusal, exit) in [
        (Code::FailedPrecondition, 3),
        (Code::NotFound, 4),
        (Code::InvalidArgument, 2),
        (Code::Unavailable, 5),
        (Code::Internal, 1),
        (Code::Unimplemented, 1),
    ] {
        let agent = FakeAgent::behaving(Behaviour::Refuse(Status::new(refusal, "the reason")));
        let output = agent.run("promote db");
        assert_eq!(code(&output), exit, "{refusal:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("the reason"), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_refusal_in_json_carries_its_reason() {
    let mut status = Status::failed_precondition("site b cannot be reached");
    status.metadata_mut().insert("tidemark-reason", MetadataValue::from_static("peer-unproven"));
    let agent = FakeAgent::behaving(Behaviour::Refuse(status));
    let output = agent.run("promote db -o json");
    let error = json(&stderr(&output));
    assert_eq!(error["error"]["code"], "refused");
    assert_eq!(error["error"]["exitCode"], 3);
    assert_eq!(error["error"]["reason"], "peer-unproven");
    assert_eq!(error["error"]["message"], "site b cannot be reached");
}

#[test]
fn an_agent_that_is_not_there_is_unreachable() {
    let output = tidemark("--agent unix:///nonexistent/admin.sock volume list");
    assert_eq!(code(&output), 5, "{}", stderr(&output));
    assert!(stderr(&output).contains("is tidemark-agent running there?"), "{}", stderr(&output));
    let output = tidemark("--agent https://127.0.0.1:1 volume list");
    assert_eq!(code(&output), 2, "no certificate: {}", stderr(&output));
}

#[test]
fn an_agent_that_hangs_ends_at_the_deadline() {
    let agent = FakeAgent::behaving(Behaviour::Hang);
    for line in ["--timeout 300ms volume list", "--timeout 300ms verify db", "--timeout 300ms status --watch"] {
        let start = Instant::now();
        let output = agent.run(line);
        assert_eq!(code(&output), 5, "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains("--timeout"), "{}", stderr(&output));
        assert!(start.elapsed() < PATIENCE);
    }
}

#[test]
fn a_wrong_command_line_is_a_usage_error_in_both_forms() {
    let output = tidemark("volume create");
    assert_eq!(code(&output), 2);
    let output = tidemark("volume create --size nonsense -o json x");
    assert_eq!(code(&output), 2);
    assert_eq!(json(&stderr(&output))["error"]["code"], "usage");
    assert_eq!(code(&tidemark("volume set db")), 5, "the default socket is not there");
    assert_eq!(code(&FakeAgent::answering().run("volume set db")), 2, "nothing to change");
    assert_eq!(code(&tidemark("promote db --assert-peer-fenced")), 2, "an assertion needs a reason");
}

#[test]
fn create_asks_for_what_was_typed_and_nothing_else() {
    let agent = FakeAgent::answering();
    let output = agent.run(
        "volume create db --size 10Gi --mode sync --ack-on write --peer-site munich --pool main --log-size 2Gi \
         --retention 1h --frontend fuse -o json",
    );
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let seen = agent.seen().join("\n");
    for part in [
        "create_volume",
        "name: \"db\"",
        "size_bytes: 10737418240",
        "mode: Some(Sync)",
        "ack_on: Some(Write)",
        "peer_site: Some(\"munich\")",
        "pool: Some(\"main\")",
        "log_size_bytes: Some(2147483648)",
        "retention_ms: Some(3600000)",
        "frontend: Some(Fuse)",
        "rpo_target_ms: None",
        "base_path: None",
    ] {
        assert!(seen.contains(part), "{part} is not in {seen}");
    }
    let volume = json(&stdout(&output));
    assert_eq!(volume["sizeBytes"], 10u64 << 30);
    assert_eq!(volume["policy"]["mode"], "sync");
    assert_eq!(volume["status"]["config"]["epoch"]["major"], 2);
    assert_eq!(volume["status"]["protection"]["normal"], false);
}

#[test]
fn set_names_the_peer_first_and_forgets_it_last() {
    let agent = FakeAgent::answering();
    assert_eq!(code(&agent.run("volume set db --peer-site munich --mode sync")), 0);
    assert_eq!(code(&agent.run("volume set db --no-peer-site --mode async")), 0);
    let calls: Vec<_> = agent.seen().iter().map(|call| call.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(calls, ["set_peer", "set_policy", "set_policy", "set_peer"]);
}

#[test]
fn a_destructive_verb_without_a_terminal_needs_yes() {
    let agent = FakeAgent::answering();
    for line in ["volume delete db", "volume release db", "drop-peer db --reason x", "abort-io db", "reseed db"] {
        assert_eq!(code(&agent.run(line)), 2, "{line}");
        assert!(agent.seen().is_empty(), "{line} was sent");
    }
    for line in ["volume delete db --yes", "volume release db -y", "drop-peer db --reason x -y", "abort-io db -y"] {
        assert_eq!(code(&agent.run(line)), 0, "{line}");
    }
    assert_eq!(agent.seen().len(), 4);
    assert_eq!(code(&agent.run("promote db --assert-peer-fenced --reason fire --who me")), 0, "the flag is the answer");
    assert!(agent.seen().concat().contains("reason: \"fire\", who: \"me\""));
}

#[test]
fn a_plan_asks_nothing_changes_nothing_and_ends_with_three_when_it_would_be_refused() {
    let agent = FakeAgent::answering();
    for line in [
        "reseed db --plan",
        "volume delete db --plan",
        "group delete db --plan",
        "promote db --plan",
        "switchover db --to munich --plan",
        "pause db --ship --plan",
        "resume db --plan",
        "volume set db --mode async --plan",
    ] {
        let done = agent.run(line);
        assert_eq!(code(&done), 3, "{line}");
        assert!(stdout(&done).contains("refused: it serves; lifted by: demote it"), "{}", stdout(&done));
    }
    assert!(agent.seen().iter().all(|call| call.starts_with("plan ")), "{:?}", agent.seen());
    let report = json(&stdout(&agent.run("demote db --plan -o json")));
    assert_eq!(report["refusal"]["liftedBy"], "demote it");
    assert_eq!(code(&agent.run("volume set db --peer-site b --mode sync --plan")), 2, "one after the other");
}

#[test]
fn a_switchover_says_who_serves_and_how_long_nobody_did() {
    let agent = FakeAgent::answering();
    let text = stdout(&agent.run("switchover db --to munich --detach"));
    assert_eq!(text, format!("site {SITE_B} is the primary; nobody served for 321ms\n"));
    assert!(agent.seen().concat().contains("to: \"munich\", detach: true, force: false"), "{:?}", agent.seen());
    let report = json(&stdout(&agent.run("switchover db --to munich -o json")));
    assert_eq!((&report["pauseMs"], &report["primarySiteId"]), (&serde_json::json!(321), &serde_json::json!(SITE_B)));
    for line in ["switchover db", "switchover db --to b --detach --force"] {
        assert_eq!(code(&agent.run(line)), 2, "{line}");
    }
}

#[test]
fn a_pause_names_what_and_a_resumption_need_not() {
    let agent = FakeAgent::answering();
    assert_eq!(code(&agent.run("pause db")), 2);
    for line in ["pause db --ship --floor", "pause db --floor", "resume db", "resume db --ship"] {
        assert_eq!(code(&agent.run(line)), 0, "{line}");
    }
    let seen = agent.seen();
    assert!(seen[0].contains("ship: true, floor: true") && seen[3].contains("ship: true, floor: false"), "{seen:?}");
}

#[test]
fn an_explanation_tells_of_every_verb_whether_it_goes() {
    let agent = FakeAgent::answering();
    let text = stdout(&agent.run("explain db"));
    for part in ["link: down", "drain   goes     it is drained", "reseed  refused  it serves; lifted by: demote it"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let report = json(&stdout(&agent.run("explain db -o json")));
    assert_eq!(report["verbs"][0]["steps"][0], "it is drained");
}

#[test]
fn status_names_sites_and_explains_what_is_not_normal() {
    let agent = FakeAgent::answering();
    let text = stdout(&agent.run("status"));
    let row = text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(row, "db primary current disconnected sync berlin,munich 2.1 1.5s / 8Ki no lossy");
    assert!(text.contains("db: protection: not-protected (the link is down)"), "{text}");
    assert!(!text.contains("\x1b["), "colours in a pipe");

    let report = json(&stdout(&agent.run("status db -o json")));
    assert_eq!(report["volumes"][0]["status"]["config"]["sites"], serde_json::json!([SITE_A, SITE_B]));
    let yaml = stdout(&agent.run("status db -o yaml"));
    assert!(yaml.contains("rpoMs: 1500"), "{yaml}");
}

#[test]
fn watching_in_a_pipe_streams_lines_and_json_documents() {
    let agent = FakeAgent::answering();
    let text = stdout(&agent.run("status --watch"));
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.starts_with("1970-01-01T00:00:01Z db role=primary"), "{text}");
    let text = stdout(&agent.run("status -w -o json"));
    let moments: Vec<_> = text.lines().map(|line| json(line)["atMs"].clone()).collect();
    assert_eq!(moments, [1000, 2000]);
    assert!(agent.seen().concat().contains("interval_ms: 1000"));
}

#[test]
fn verify_ends_with_one_when_the_copies_differ() {
    let output = FakeAgent::answering().run("verify db");
    assert_eq!((code(&output), stdout(&output).as_str()), (0, "equal: 2 blocks compared at lsn 9\n"));
    let output = FakeAgent::differing().run("volume verify db -o json");
    assert_eq!(code(&output), 1);
    assert_eq!(json(&stdout(&output))["differing"][0]["offset"], 8192);
}

#[test]
fn attach_prints_the_place_alone() {
    let agent = FakeAgent::answering();
    assert_eq!(stdout(&agent.run("volume attach db")), "nbd+unix:///db?socket=/run/tidemark/nbd.sock\n");
    assert_eq!(json(&stdout(&agent.run("volume attach db -o json")))["frontend"], "nbd");
}

#[test]
fn promote_says_what_was_lost() {
    let agent = FakeAgent::answering();
    let output = agent.run("promote db --max-loss-bytes 1Mi");
    assert_eq!(
        stdout(&output),
        "primary from lsn 7 on; lost: 4Ki as the other site last reported, and what it wrote in the 250ms since\n"
    );
    assert!(agent.seen().concat().contains("max_loss_bytes: Some(1048576)"));
    let report = json(&stdout(&agent.run("promote db -o json")));
    assert_eq!((&report["promotionClass"], &report["lostMs"]), (&"lossy".into(), &250.into()));
}

#[test]
fn an_unknown_peer_is_not_found() {
    let agent = FakeAgent::answering();
    assert_eq!(code(&agent.run("peer show munich")), 0);
    assert_eq!(code(&agent.run(&format!("peer show {SITE_B}"))), 0);
    assert_eq!(code(&agent.run("peer show hamburg")), 4);
    assert!(stdout(&agent.run("agent show")).contains("berlin"));
}

#[test]
fn a_witness_check_prints_where_it_is_and_how_long_it_takes() {
    let agent = FakeAgent::answering();
    let shown = stdout(&agent.run("witness check"));
    for part in ["etcd at w1.example:2379", "1.50ms", "2.75ms", "42"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let report = json(&stdout(&agent.run("witness check -o json")));
    assert_eq!(
        (&report["backend"], &report["casUs"], &report["revision"]),
        (&"etcd".into(), &2_750.into(), &"42".into())
    );
}

#[test]
fn completions_and_manual_cover_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&tidemark(&format!("completions {shell}"))).contains("promote"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(code(&tidemark(&format!("man --dir {}", dir.path().display()))), 0);
    for page in ["tidemark.1", "tidemark-volume-create.1", "tidemark-pki-renew.1", "tidemark-promote.1"] {
        let text = std::fs::read_to_string(dir.path().join(page)).unwrap_or_else(|_| panic!("no {page}"));
        assert!(text.len() > 500, "{page} says little");
    }
    assert!(stdout(&tidemark("--version")).starts_with("tidemark "));
}

#[test]
fn pki_ends_with_the_codes_of_the_help() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display();
    assert_eq!(code(&tidemark(&format!("pki init-ca --dir {dir}/ca --site-name berlin"))), 0);
    assert_eq!(code(&tidemark(&format!("pki init-ca --dir {dir}/ca --site-name berlin"))), 1, "nothing is overwritten");
    let issue = format!("pki issue --ca {dir}/ca --node-name n1 --out {dir}/n1 --ip 127.0.0.1");
    assert_eq!(code(&tidemark(&issue)), 0);
    assert_eq!(code(&tidemark(&format!("pki verify {dir}/n1/node.crt --host 127.0.0.1"))), 0);
    let renew = format!("pki renew {dir}/n1/node.crt --ca {dir}/ca --if-within 30d -o json");
    assert_eq!(json(&stdout(&tidemark(&renew)))["renewed"], false);
    assert_eq!(code(&tidemark(&format!("pki show {dir}/none.crt"))), 4);
    let expired = format!("{issue} --force --not-before 2020-01-01T00:00:00Z --days 1 -o json");
    let report = json(&stdout(&tidemark(&expired)));
    assert_eq!(report["state"], "expired");
    let output = tidemark(&format!("pki verify {dir}/n1/node.crt"));
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("it is expired"), "{}", stderr(&output));
}

#[test]
fn an_agent_over_tls_wants_both_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().display();
    for site in ["berlin", "munich"] {
        assert_eq!(code(&tidemark(&format!("pki init-ca --dir {dir}/{site} --site-name {site}"))), 0);
        let issue = format!("pki issue-client --ca {dir}/{site} --name alice --out {dir}/{site}-alice");
        assert_eq!(code(&tidemark(&issue)), 0);
    }
    assert_eq!(code(&tidemark(&format!("pki issue --ca {dir}/berlin --node-name n --out {dir}/n --ip 127.0.0.1"))), 0);
    let agent = FakeAgent::over_tls(std::path::Path::new(&format!("{dir}/n")));
    let with = |ca: &str, who: &str| {
        agent.run(&format!(
            "--ca {dir}/{ca}/ca.crt --cert {dir}/{who}/alice.crt --key {dir}/{who}/alice.key --timeout 10s volume list"
        ))
    };
    let output = with("berlin", "berlin-alice");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for (ca, who) in [("munich", "berlin-alice"), ("berlin", "munich-alice")] {
        let output = with(ca, who);
        assert_eq!(code(&output), 5, "{}", stderr(&output));
        assert!(stderr(&output).contains("pki verify"), "{}", stderr(&output));
    }
    assert_eq!(agent.seen().len(), 1);
}
