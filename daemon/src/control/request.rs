//! From requests on the wire to plain values, every field checked.

use std::path::PathBuf;

use tidemark_core::config::Paused;
use tidemark_core::group::members::MAX_MEMBERS;
use tidemark_core::types::{NodeId, SECTOR, SiteId, VolumeId, WallMs};
use tidemark_core::verb::{Assertion, Verb};
use tidemark_proto::admin as wire;

use super::branches::Seen;
use super::engine::{Disposal, MemberNodes, NewPeer, NewVolume, Origin, PeerKey, Scope, Switchover, VolumeKey};
use super::invalid::{Invalid, field};
use super::policy::{self, Wishes};
use crate::config::{HostPort, Name};

/// The largest volume: what fits a signed 64-bit file offset.
const MAX_SIZE: u64 = i64::MAX as u64 / SECTOR as u64 * SECTOR as u64;
/// The longest `who` and `reason` that are recorded for good.
const MAX_WORDS_BYTES: usize = 1024;
/// Volumes named in one watch; more than an agent can have.
const MAX_WATCHED: usize = 4096;
/// The longest path.
const MAX_PATH_BYTES: usize = 4095;
/// The largest PEM file of authorities.
const MAX_PEM_BYTES: usize = 256 * 1024;

pub(super) fn volume(text: &str) -> Result<VolumeKey, Invalid> {
    VolumeKey::parse(text).ok_or_else(|| field("volume", "is neither a volume's name nor an id"))
}

/// The volumes of one watch; none means all.
pub(super) fn volumes(texts: &[String]) -> Result<Vec<VolumeKey>, Invalid> {
    if texts.len() > MAX_WATCHED {
        return Err(field("volumes", format!("allowed are at most {MAX_WATCHED}")));
    }
    texts.iter().map(|text| volume(text)).collect()
}

/// What a view of a volume shows.
pub(super) fn seen(number: Option<u32>) -> Result<Seen, Invalid> {
    match number {
        Some(0) => Err(field("number", "branches are numbered from 1; none means what the copy holds now")),
        Some(number) => Ok(Seen::Branch(number)),
        None => Ok(Seen::Present),
    }
}

pub(super) fn peer(text: &str) -> Result<PeerKey, Invalid> {
    PeerKey::parse(text).ok_or_else(|| field("peer", "is neither a peer's name nor a site id"))
}

pub(super) fn create(request: &wire::CreateVolumeRequest) -> Result<NewVolume, Invalid> {
    let name = volume_name(&request.name)?;
    let size = size(request.size_bytes)?;
    let base = request.base_path.as_deref().filter(|path| !path.is_empty());
    let base = base.map(|path| absolute("basePath", path)).transpose()?;
    let new = new_volume(name, &request.group, Origin::Empty { size, base }, request.policy.as_ref())?;
    let members = members(&request.members, &request.peer_members)?;
    if members.is_some() && new.group.is_none() {
        return Err(field("group", "is named where a group has members on several nodes: the same name at each"));
    }
    Ok(NewVolume { members, ..new })
}

pub(super) fn adopt(request: &wire::AdoptVolumeRequest) -> Result<NewVolume, Invalid> {
    let name = volume_name(&request.name)?;
    new_volume(name, &request.group, Origin::Adopt { path: absolute("path", &request.path)? }, request.policy.as_ref())
}

fn new_volume(name: Name, group: &str, origin: Origin, policy: Option<&wire::Policy>) -> Result<NewVolume, Invalid> {
    let group = (!group.is_empty()).then(|| group_name(group)).transpose()?;
    let Wishes { patch, peer, pool } = policy.map(policy::wishes).transpose()?.unwrap_or_default();
    Ok(NewVolume { name, group, origin, policy: patch, peer, pool, members: None })
}

/// What the lists mean is judged by the agent, which knows its own node.
fn members(here: &[String], peers: &[String]) -> Result<Option<MemberNodes>, Invalid> {
    if here.is_empty() && peers.is_empty() {
        return Ok(None);
    }
    let nodes = |key: &'static str, texts: &[String]| {
        if texts.len() > MAX_MEMBERS {
            return Err(field(key, format!("allowed are at most {MAX_MEMBERS}")));
        }
        let node =
            |text: &String| NodeId::parse(text).ok_or_else(|| field(key, format!("{text:?} is no id of a node")));
        texts.iter().map(node).collect::<Result<Vec<_>, _>>()
    };
    Ok(Some(MemberNodes { here: nodes("members", here)?, peers: nodes("peerMembers", peers)? }))
}

fn volume_name(text: &str) -> Result<Name, Invalid> {
    name("name", text)
}

fn group_name(text: &str) -> Result<Name, Invalid> {
    name("group", text)
}

/// A name that can never be taken for an id.
fn name(key: &'static str, text: &str) -> Result<Name, Invalid> {
    let name = Name::parse(text).map_err(|error| field(key, error))?;
    match VolumeId::parse(text) {
        None => Ok(name),
        Some(_) => Err(field(key, "reads as an id: choose another")),
    }
}

pub(super) fn scope(whole_group: bool) -> Scope {
    if whole_group { Scope::Group } else { Scope::Volume }
}

/// A size that a volume may have.
pub(super) fn size(bytes: u64) -> Result<u64, Invalid> {
    let fits = bytes > 0 && bytes <= MAX_SIZE && bytes.is_multiple_of(SECTOR as u64);
    fits.then_some(bytes)
        .ok_or_else(|| field("size", format!("is {bytes}: allowed are multiples of {SECTOR} up to {MAX_SIZE}")))
}

fn absolute(name: &'static str, text: &str) -> Result<PathBuf, Invalid> {
    let path = PathBuf::from(text);
    let plain = path.components().all(|part| part != std::path::Component::ParentDir);
    let fine = path.is_absolute() && plain && text.len() <= MAX_PATH_BYTES && !text.contains('\0');
    fine.then_some(path).ok_or_else(|| field(name, "allowed is an absolute path without '..'"))
}

pub(super) fn disposal(value: i32) -> Result<Disposal, Invalid> {
    match wire::Disposal::try_from(value) {
        Ok(wire::Disposal::Unspecified | wire::Disposal::Trash) => Ok(Disposal::Trash),
        Ok(wire::Disposal::Purge) => Ok(Disposal::Purge),
        Err(_) => Err(field("disposal", "allowed are trash, purge")),
    }
}

pub(super) fn peer_choice(text: &str) -> Result<Option<PeerKey>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    PeerKey::parse(text).map(Some).ok_or_else(|| field("peerSite", "is neither a peer's name nor a site id"))
}

pub(super) fn promote(request: &wire::PromoteRequest, now: WallMs) -> Result<Verb, Invalid> {
    let assert_peer_fenced = match request.assert_peer_fenced {
        true => Some(assertion(&request.who, &request.reason, now)?),
        false => None,
    };
    Ok(Verb::Promote {
        assert_peer_fenced,
        max_loss_bytes: request.max_loss_bytes,
        max_loss_seconds: request.max_loss_seconds,
        allow_unproven: request.allow_unproven,
    })
}

pub(super) fn switchover(request: &wire::SwitchoverRequest) -> Result<Switchover, Invalid> {
    let to = PeerKey::parse(&request.to).ok_or_else(|| field("to", "is neither a site's name nor an id"))?;
    Ok(Switchover { to, detach: request.detach, force: request.force })
}

pub(super) fn pause(request: &wire::PauseRequest) -> Result<Verb, Invalid> {
    let parts = Paused { ship: request.ship, floor: request.floor };
    match parts.is_none() {
        true => Err(field("ship", "name what to pause: ship, floor, or both")),
        false => Ok(Verb::Pause(parts)),
    }
}

/// Without a part: all of them.
pub(super) fn resume(request: &wire::ResumeRequest) -> Verb {
    let parts = Paused { ship: request.ship, floor: request.floor };
    Verb::Resume(if parts.is_none() { Paused::ALL } else { parts })
}

pub(super) fn drop_peer(request: &wire::DropPeerRequest, now: WallMs) -> Result<Verb, Invalid> {
    let given = request.assertion.as_ref().ok_or_else(|| field("assertion", "needs who and why"))?;
    assertion(&given.who, &given.why, now).map(Verb::DropPeer)
}

/// The branch that is dropped, and who says so.
pub(super) fn drop_branch(request: &wire::DropBranchRequest, now: WallMs) -> Result<(u32, Assertion), Invalid> {
    let given = request.assertion.as_ref().ok_or_else(|| field("assertion", "needs who and why"))?;
    match request.number {
        0 => Err(field("number", "branches are numbered from 1")),
        number => Ok((number, assertion(&given.who, &given.why, now)?)),
    }
}

fn assertion(who: &str, why: &str, now: WallMs) -> Result<Assertion, Invalid> {
    let words = |name, text: &str| match text.trim() {
        "" => Err(field(name, "is recorded with a human decision and must not be empty")),
        text if text.len() > MAX_WORDS_BYTES => Err(field(name, format!("allowed are {MAX_WORDS_BYTES} bytes"))),
        text => Ok(text.to_owned()),
    };
    Ok(Assertion { who: words("who", who)?, why: words("reason", why)?, at: now })
}

pub(super) fn new_peer(request: &wire::AddPeerRequest) -> Result<NewPeer, Invalid> {
    let name = Name::parse(&request.name).map_err(|error| field("name", error))?;
    if SiteId::parse(&request.name).is_some() {
        return Err(field("name", "reads as an id: choose another"));
    }
    let address = HostPort::parse(&request.address)
        .ok_or_else(|| field("address", format!("is {:?}: allowed is {}", request.address, HostPort::SYNTAX)))?;
    Ok(NewPeer { name, site: site_id(&request.site_id)?, address, ca_pem: pem(&request.ca_pem)? })
}

fn site_id(text: &str) -> Result<Option<SiteId>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let id = SiteId::parse(text).filter(|id| !id.is_nil());
    id.map(Some).ok_or_else(|| field("siteId", "allowed is a UUID that is not nil"))
}

fn pem(text: &str) -> Result<Option<String>, Invalid> {
    use rustls_pki_types::{CertificateDer, pem::PemObject};
    if text.trim().is_empty() {
        return Ok(None);
    }
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(list) if !list.is_empty() && text.len() <= MAX_PEM_BYTES => Ok(Some(text.to_owned())),
        _ => Err(field("caPem", format!("allowed are certificates in PEM, at most {MAX_PEM_BYTES} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_positive_multiples_of_a_sector() {
        assert!(size(512).is_ok() && size(10 << 40).is_ok());
        for bytes in [0, 1, 511, 4097, u64::MAX, 1 << 63] {
            assert_eq!(size(bytes).unwrap_err().field, "size", "{bytes}");
        }
    }

    #[test]
    fn a_volume_is_never_named_by_a_path_or_an_id() {
        for name in ["../etc", "/dev/sda", "A", "", "00000000-0000-4000-8000-00000000000b"] {
            let request = wire::CreateVolumeRequest { name: name.to_owned(), size_bytes: 512, ..Default::default() };
            assert_eq!(create(&request).unwrap_err().field, "name", "{name:?}");
            let request = wire::CreateVolumeRequest { name: "v".to_owned(), group: name.to_owned(), ..request };
            let group = create(&request).map(|new| new.group);
            assert_eq!(group.map_err(|wrong| wrong.field), if name.is_empty() { Ok(None) } else { Err("group") });
        }
    }

    #[test]
    fn adopted_paths_are_absolute_and_plain() {
        for path in ["", "x", "/a/../b", "/a\0b"] {
            let request = wire::AdoptVolumeRequest { name: "v".into(), path: path.into(), ..Default::default() };
            assert_eq!(adopt(&request).unwrap_err().field, "path", "{path:?}");
        }
    }

    #[test]
    fn a_human_decision_needs_who_and_why() {
        let request = wire::PromoteRequest { assert_peer_fenced: true, who: "ann".into(), ..Default::default() };
        assert_eq!(promote(&request, WallMs(7)).unwrap_err().field, "reason");
        let request = wire::PromoteRequest { reason: " fire ".into(), ..request };
        let Ok(Verb::Promote { assert_peer_fenced: Some(assertion), .. }) = promote(&request, WallMs(7)) else {
            panic!("refused");
        };
        assert_eq!(assertion, Assertion { who: "ann".into(), why: "fire".into(), at: WallMs(7) });
        assert_eq!(drop_peer(&wire::DropPeerRequest::default(), WallMs(7)).unwrap_err().field, "assertion");
    }

    #[test]
    fn a_pause_names_what_and_a_resumption_without_a_part_means_all() {
        assert_eq!(pause(&wire::PauseRequest::default()).unwrap_err().field, "ship");
        let ship = Paused { ship: true, floor: false };
        let request = wire::PauseRequest { ship: true, ..Default::default() };
        assert_eq!(pause(&request), Ok(Verb::Pause(ship)));
        assert_eq!(resume(&wire::ResumeRequest::default()), Verb::Resume(Paused::ALL));
        let request = wire::ResumeRequest { ship: true, ..Default::default() };
        assert_eq!(resume(&request), Verb::Resume(ship));
    }

    #[test]
    fn a_switchover_names_a_site() {
        let request = wire::SwitchoverRequest { to: "b".into(), detach: true, ..Default::default() };
        let wanted = Switchover { to: PeerKey::parse("b").unwrap(), detach: true, force: false };
        assert_eq!(switchover(&request), Ok(wanted));
        for to in ["", "/b"] {
            let request = wire::SwitchoverRequest { to: to.into(), ..Default::default() };
            assert_eq!(switchover(&request).unwrap_err().field, "to", "{to:?}");
        }
    }

    #[test]
    fn a_peer_needs_a_name_an_address_and_real_certificates() {
        let good = wire::AddPeerRequest { name: "b".into(), address: "b:9740".into(), ..Default::default() };
        assert!(new_peer(&good).is_ok());
        let table = [
            (wire::AddPeerRequest { name: "/b".into(), ..good.clone() }, "name"),
            (wire::AddPeerRequest { address: "b".into(), ..good.clone() }, "address"),
            (wire::AddPeerRequest { site_id: "b".into(), ..good.clone() }, "siteId"),
            (wire::AddPeerRequest { ca_pem: "hello".into(), ..good.clone() }, "caPem"),
        ];
        for (request, name) in table {
            assert_eq!(new_peer(&request).unwrap_err().field, name);
        }
    }
}
