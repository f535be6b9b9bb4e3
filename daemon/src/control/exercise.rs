//! Drives the validation of admin requests over arbitrary bytes: what the fuzz target, its corpus and the tests run.
//!
//! The first byte chooses the request, the rest is its encoding. Checked on the way: what is let through is what the engine may
//! rely on without looking again.

use std::path::{Component, Path};

use prost::Message;
use tidemark_core::config::Policy;
use tidemark_core::types::{SECTOR, WallMs};
use tidemark_core::verb::{Assertion, Verb};
use tidemark_proto::admin as wire;

use super::engine::{NewVolume, Origin};
use super::invalid::Invalid;
use super::{policy, request};

/// Kinds of requests.
const KINDS: u8 = 10;

/// Runs one input: true when the request is let through. Panics when something is let through that must not be.
pub fn exercise(input: &[u8]) -> bool {
    let Some((&kind, bytes)) = input.split_first() else { return false };
    match kind % KINDS {
        0 => checked(bytes, |r: wire::CreateVolumeRequest| request::create(&r), check_volume),
        1 => checked(bytes, |r: wire::AdoptVolumeRequest| request::adopt(&r), check_volume),
        2 => checked(bytes, |r: wire::PromoteRequest| request::promote(&r, WallMs(1)), check_verb),
        3 => checked(bytes, |r: wire::DropPeerRequest| request::drop_peer(&r, WallMs(1)), check_verb),
        4 => checked(
            bytes,
            |r: wire::AddPeerRequest| request::new_peer(&r),
            |peer| {
                assert!(peer.site.is_none_or(|site| !site.is_nil()));
                assert!(peer.ca_pem.is_none_or(|pem| pem.contains("CERTIFICATE")));
            },
        ),
        5 => checked(
            bytes,
            |r: wire::Policy| policy::patch(&r),
            |patch| check_policy(patch.applied_to(Policy::default())),
        ),
        6 => checked(bytes, |r: wire::ResizeVolumeRequest| request::size(r.size_bytes), check_size),
        7 => checked(bytes, |r: wire::DeleteVolumeRequest| request::disposal(r.disposal), drop),
        9 => checked(
            bytes,
            |r: wire::DropBranchRequest| request::drop_branch(&r, WallMs(1)),
            |(number, word)| {
                assert!(number > 0);
                check_verb(Verb::DropPeer(word));
            },
        ),
        _ => {
            let text = String::from_utf8_lossy(bytes);
            let texts: Vec<String> = text.split('\0').map(str::to_owned).collect();
            let _ = (request::volumes(&texts), request::peer(&text), request::peer_choice(&text));
            policy::frontend(i32::from(bytes.first().copied().unwrap_or_default())).is_ok()
        }
    }
}

/// Decodes, validates, and looks at what was let through.
fn checked<R: Message + Default, V>(
    bytes: &[u8],
    validate: impl Fn(R) -> Result<V, Invalid>,
    check: impl Fn(V),
) -> bool {
    let Ok(request) = R::decode(bytes) else { return false };
    validate(request).map(check).is_ok()
}

fn check_size(bytes: u64) {
    assert!(bytes > 0 && bytes.is_multiple_of(SECTOR as u64) && i64::try_from(bytes).is_ok(), "{bytes} bytes");
}

fn check_path(path: &Path) {
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    assert!(path.is_absolute() && is_plain, "{}", path.display());
}

fn check_volume(volume: NewVolume) {
    let name = volume.name.as_str();
    assert!(!name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.'), "{name:?}");
    match &volume.origin {
        Origin::Empty { size, base } => {
            check_size(*size);
            base.iter().for_each(|path| check_path(path));
        }
        Origin::Adopt { path } => check_path(path),
    }
    check_policy(volume.policy.applied_to(Policy::default()));
}

fn check_policy(policy: Policy) {
    assert!(policy.log_bytes >= 1 << 20 && policy.index_ranges >= 1 << 10, "{policy:?}");
    assert!(policy.rpo_target_ms > 0 && policy.disk_timeout_ms >= 1000, "{policy:?}");
}

fn check_verb(verb: Verb) {
    let assertion = match verb {
        Verb::Promote { assert_peer_fenced: Some(assertion), .. } | Verb::DropPeer(assertion) => assertion,
        _ => return,
    };
    let Assertion { who, why, .. } = assertion;
    assert!(!who.is_empty() && !why.is_empty() && who.len() + why.len() <= 2048, "{who:?} {why:?}");
}

/// Inputs to begin with: a good request of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let policy = wire::Policy {
        mode: Some(wire::Mode::Sync.into()),
        log_size_bytes: Some(1 << 30),
        retention_ms: Some(1000),
        ..Default::default()
    };
    let with_peer = wire::Policy { peer_site: Some("b".into()), pool: Some("main".into()), ..policy.clone() };
    let name = || "pg".to_owned();
    let words = || ("ann".to_owned(), "fire".to_owned());
    let create = wire::CreateVolumeRequest {
        name: name(),
        size_bytes: 1 << 30,
        base_path: Some("/dev/sdz".into()),
        policy: Some(with_peer.clone()),
        ..Default::default()
    };
    let adopt = wire::AdoptVolumeRequest {
        name: name(),
        path: "/dev/sdz".into(),
        policy: Some(with_peer),
        ..Default::default()
    };
    let (who, reason) = words();
    let promote = wire::PromoteRequest { volume: name(), assert_peer_fenced: true, who, reason, ..Default::default() };
    let (who, why) = words();
    let assertion = Some(wire::Assertion { who, why, ..Default::default() });
    let drop_branch =
        wire::DropBranchRequest { volume: name(), number: 1, assertion: assertion.clone(), ..Default::default() };
    let drop_peer = wire::DropPeerRequest { volume: name(), assertion };
    let site_id = "00000000-0000-4000-8000-00000000000b".to_owned();
    let add = wire::AddPeerRequest { name: "b".into(), site_id, address: "b:9740".into(), ..Default::default() };
    let resize = wire::ResizeVolumeRequest { volume: name(), size_bytes: 1 << 31 };
    let delete = wire::DeleteVolumeRequest { volume: name(), ..Default::default() };
    let encoded = [
        create.encode_to_vec(),
        adopt.encode_to_vec(),
        promote.encode_to_vec(),
        drop_peer.encode_to_vec(),
        add.encode_to_vec(),
        policy.encode_to_vec(),
        resize.encode_to_vec(),
        delete.encode_to_vec(),
        b"\x01pg\x0000000000-0000-4000-8000-00000000000b".to_vec(),
        drop_branch.encode_to_vec(),
    ];
    (0..).zip(encoded).map(|(kind, bytes)| [&[kind], bytes.as_slice()].concat()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    #[test]
    fn every_kind_of_request_is_let_through_when_it_is_good() {
        assert_eq!(seeds().len(), usize::from(KINDS));
        for seed in seeds() {
            assert!(exercise(&seed), "{seed:?}");
        }
    }

    #[test]
    fn bad_requests_are_not_let_through() {
        let bad = wire::CreateVolumeRequest { name: "../x".into(), size_bytes: 512, ..Default::default() };
        assert!(!exercise(&[&[0], bad.encode_to_vec().as_slice()].concat()));
        assert!(!exercise(&[6, 8, 1]), "one byte is no size");
        assert!(!exercise(&[]));
    }

    proptest! {
        #[test]
        fn good_requests_with_changes_do_no_harm(
            which in any::<Index>(),
            changes in vec((any::<Index>(), any::<u8>()), 0..6),
            tail in vec(any::<u8>(), 0..16),
        ) {
            let mut input = which.get(&seeds()).clone();
            input.extend(tail);
            for (at, byte) in changes {
                let at = at.index(input.len());
                input[at] = byte;
            }
            exercise(&input);
        }
    }
}
