//! The superblock of a volume copy: what it is, where its floor stands, what its base looked like.

use crate::config::{AckOn, OnPeerLoss, Paused, Policy};
use crate::format::codec::{FormatError, Reader, Writer};
use crate::format::config::{mode_code, mode_of};
use crate::format::twin::TwinKind;
use crate::layout::Layout;
use crate::ship::{ChainEntry, Remembered};
use crate::site::Membership;
use crate::types::{
    BootId, Boundary, Epoch, GenId, GroupId, Incarnation, Lsn, NodeId, Nonce, Position, Secret, SiteId, VolumeId,
    WallMs,
};
use crate::verb::Assertion;

/// Bytes of one of the two slots.
pub const SLOT_BYTES: usize = 32 * 1024;
/// The `superblock` file. Version 3 has a list of members at its end, version 2 a layout; version 1 is of a group of one volume.
pub const FILE: TwinKind =
    TwinKind { name: "superblock", magic: u32::from_le_bytes(*b"TMSB"), version: 3, slot_bytes: SLOT_BYTES };

/// Entries of history kept; older ones below the floor are pruned.
pub const MAX_HISTORY: usize = 256;
/// Human decisions kept, newest last.
pub const MAX_ASSERTIONS: usize = 16;
/// Samples of the base of a group of one volume: 31 over the first MiB and the last 49 extents written.
pub const BASE_SAMPLES: usize = 80;
/// Samples of the base kept.
pub const MAX_SAMPLES: usize = BASE_SAMPLES + VOLUME_SAMPLES * (crate::layout::MAX_VOLUMES - 1);
/// Samples of the beginning of each volume but the first.
pub const VOLUME_SAMPLES: usize = 3;
const TEXT: usize = 256;

/// What the copy is good for, as far as it must survive a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyFlag {
    /// A prefix of the history: floor plus log.
    Complete,
    /// Being seeded; never opened. The nonce names the seeding.
    Seeding(Nonce),
    /// Found damaged or regressed; opened only after repair from the peer.
    Suspect,
    /// A device error ended it.
    Failed,
    /// Given back: the base is the volume.
    Released,
    /// Has a suffix of its own that could not be sealed as unacknowledged.
    Diverged,
}

/// A hash of a piece of the base, to notice that somebody else wrote to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sample {
    /// First byte.
    pub offset: u64,
    /// Bytes, at most 64 KiB.
    pub len: u32,
    /// First 16 bytes of blake3 of the content.
    pub hash: [u8; 16],
}

/// Where the log was cut: what a segment older than `sequence` holds beyond `at` was sealed, and is no part of the log. The cut
/// stays true for as long as such a segment may be found, and segments get numbers from `sequence` on whatever is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cut {
    /// The last record that stayed: the end of a frame.
    pub at: Position,
    /// The first segment that may hold what comes after it.
    pub sequence: u64,
}

/// The superblock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The first volume of the group: it names the log, also when it was removed.
    pub volume: VolumeId,
    /// The group.
    pub group: GroupId,
    /// The site of this copy.
    pub site: SiteId,
    /// The node of this copy.
    pub node: NodeId,
    /// The peer site, if any.
    pub peer: Option<SiteId>,
    /// Keys the chain.
    pub secret: Secret,
    /// The volumes of the group at the floor.
    pub layout: Layout,
    /// Bytes of a log slot.
    pub slot_bytes: u64,
    /// The base held data before (adopted).
    pub adopted: bool,
    /// What the copy is good for.
    pub flag: CopyFlag,
    /// While being seeded: only by what changed since the floor. The base holds that, apart from what was written already.
    pub is_difference: bool,
    /// The base holds exactly this.
    pub floor: Boundary,
    /// While an advance runs: the base may hold any mixture of `floor..=target`.
    pub floor_target: Lsn,
    /// The copy is complete only when it holds everything up to here (end of a seeding); zero otherwise.
    pub visible_at: Lsn,
    /// Known durable when this was written: recovery that finds less has found damage.
    pub durable: Lsn,
    /// Written at a clean close: `durable` is the exact tail, unless more was appended after the next opening, before the
    /// superblock was written anew.
    pub clean: bool,
    /// Boot that wrote this.
    pub boot: BootId,
    /// History up to the tail when this was written, oldest first.
    pub history: Vec<ChainEntry>,
    /// Highest durable position that the peer acknowledged.
    pub remembered: Option<Remembered>,
    /// Epoch of a newer K that was seen to name another primary; zero when none was. Until a K at least as new is persisted
    /// here this copy does not serve, restarts or not.
    pub fenced: Epoch,
    /// The last cut of the log, if any since it last started over.
    pub cut: Option<Cut>,
    /// Sealed suffixes so far (files `branch-N`).
    pub branches: u32,
    /// The floor stays at or below this, where sealed suffixes begin that can be opened; none: no suffix can (any more). What no
    /// longer stands here was given up before the base was written beyond it.
    pub branch_at: Option<Lsn>,
    /// Policy.
    pub policy: Policy,
    /// What an operator has paused here.
    pub paused: Paused,
    /// Human decisions.
    pub forced: Vec<Assertion>,
    /// Samples of the base.
    pub samples: Vec<Sample>,
    /// Which member of the group it is; `None`: the only one of its site.
    pub members: Option<Membership>,
}

fn flag_code(flag: CopyFlag) -> (u8, Nonce) {
    match flag {
        CopyFlag::Complete => (1, Nonce::NIL),
        CopyFlag::Seeding(nonce) => (2, nonce),
        CopyFlag::Suspect => (3, Nonce::NIL),
        CopyFlag::Failed => (4, Nonce::NIL),
        CopyFlag::Released => (5, Nonce::NIL),
        CopyFlag::Diverged => (6, Nonce::NIL),
    }
}

fn flag_of(code: u8, nonce: Nonce) -> Option<CopyFlag> {
    Some(match code {
        1 => CopyFlag::Complete,
        2 => CopyFlag::Seeding(nonce),
        3 => CopyFlag::Suspect,
        4 => CopyFlag::Failed,
        5 => CopyFlag::Released,
        6 => CopyFlag::Diverged,
        _ => return None,
    })
}

fn encode_policy(p: &Policy, w: &mut Writer) {
    w.u8(mode_code(p.mode));
    w.u8(match p.ack_on {
        AckOn::Flush => 1,
        AckOn::Write => 2,
    });
    w.u8(match p.on_peer_loss {
        OnPeerLoss::Suspend => 1,
        OnPeerLoss::Witness => 2,
    });
    w.u8(u8::from(p.auto_failover));
    w.u32(p.index_ranges);
    for v in [p.rpo_target_ms, p.retention_ms, p.log_bytes, p.disk_timeout_ms, p.bandwidth, p.peer_loss_ms] {
        w.u64(v);
    }
    w.zeros(56);
}

fn decode_policy(r: &mut Reader<'_>) -> Result<Policy, FormatError> {
    let mode = mode_of(r.u8()?).ok_or_else(|| r.field("mode"))?;
    let ack_on = match r.u8()? {
        1 => AckOn::Flush,
        2 => AckOn::Write,
        _ => return Err(r.field("ack_on")),
    };
    let on_peer_loss = match r.u8()? {
        // 0: written before there was a choice.
        0 | 1 => OnPeerLoss::Suspend,
        2 => OnPeerLoss::Witness,
        _ => return Err(r.field("on_peer_loss")),
    };
    let auto_failover = r.u8()? != 0;
    let index_ranges = r.u32()?;
    let policy = Policy {
        mode,
        ack_on,
        index_ranges,
        rpo_target_ms: r.u64()?,
        retention_ms: r.u64()?,
        log_bytes: r.u64()?,
        disk_timeout_ms: r.u64()?,
        bandwidth: r.u64()?,
        on_peer_loss,
        auto_failover,
        peer_loss_ms: match r.u64()? {
            0 => Policy::default().peer_loss_ms,
            ms => ms,
        },
    };
    r.skip(56)?;
    Ok(policy)
}

impl Superblock {
    /// How it is written: as versions that know nothing of groups read it, where they can.
    pub fn kind(&self) -> TwinKind {
        FILE.written_as(match (&self.members, self.layout.is_one(self.volume)) {
            (Some(_), _) => 3,
            (None, false) => 2,
            (None, true) => 1,
        })
    }

    /// The content of a slot of the `superblock` file, in the order of the fields above; see `docs/formats.md`.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(4096);
        w.bytes(&self.volume.0);
        w.bytes(&self.group.0);
        w.bytes(&self.site.0);
        w.bytes(&self.node.0);
        w.bytes(&self.peer.unwrap_or_default().0);
        w.bytes(&self.secret.0);
        w.u64(self.layout.size());
        w.u64(self.slot_bytes);
        let (code, nonce) = flag_code(self.flag);
        w.u8(code);
        w.u8(u8::from(self.adopted));
        w.u8(u8::from(self.clean));
        w.u8(u8::from(self.is_difference));
        w.bytes(&nonce.0);
        w.boundary(self.floor);
        w.u64(self.floor_target.0);
        w.u64(self.visible_at.0);
        w.u64(self.durable.0);
        w.bytes(&self.boot.0);
        w.u32(self.branches);
        w.u8(u8::from(self.remembered.is_some()));
        let remembered = self.remembered.unwrap_or(Remembered { position: Default::default(), boot: BootId::NIL });
        w.position(remembered.position);
        w.bytes(&remembered.boot.0);
        encode_policy(&self.policy, &mut w);
        w.u32(self.fenced.major);
        w.u32(self.fenced.minor);
        let cut = self.cut.unwrap_or(Cut { at: Position::default(), sequence: 0 });
        w.position(cut.at);
        w.u64(cut.sequence);
        let is_one = self.layout.is_one(self.volume);
        w.u8(u8::from(!is_one) | u8::from(self.members.is_some()) << 1);
        w.u64(self.branch_at.map_or(0, |at| at.0 + 1));
        w.u8(u8::from(self.paused.ship) | u8::from(self.paused.floor) << 1);
        w.zeros(10);
        self.encode_lists(&mut w);
        if !is_one {
            self.layout.encode(&mut w);
        }
        if let Some(members) = &self.members {
            encode_members(members, &mut w);
        }
        w.buf
    }

    fn encode_lists(&self, w: &mut Writer) {
        let history = &self.history[self.history.len().saturating_sub(MAX_HISTORY)..];
        w.u32(history.len() as u32);
        for entry in history {
            w.bytes(&entry.generation.0);
            w.u32(entry.incarnation.0);
            w.u64(entry.fork.0);
        }
        let forced = &self.forced[self.forced.len().saturating_sub(MAX_ASSERTIONS)..];
        w.u32(forced.len() as u32);
        for a in forced {
            w.text(&a.who, TEXT);
            w.text(&a.why, TEXT);
            w.u64(a.at.0);
        }
        w.u32(self.samples.len() as u32);
        for s in &self.samples {
            w.u64(s.offset);
            w.u32(s.len);
            w.bytes(&s.hash);
        }
    }

    /// Reads the content of a slot.
    pub fn decode(content: &[u8]) -> Result<Self, FormatError> {
        let mut r = Reader::new("superblock", content);
        let volume = VolumeId(r.array()?);
        let group = GroupId(r.array()?);
        let site = SiteId(r.array()?);
        let node = NodeId(r.array()?);
        let peer = SiteId(r.array()?);
        let secret = Secret(r.array()?);
        let size = r.u64()?;
        let slot_bytes = r.u64()?;
        let code = r.u8()?;
        let adopted = r.u8()? & 1 != 0;
        let clean = r.u8()? & 1 != 0;
        let is_difference = r.u8()? & 1 != 0;
        let flag = flag_of(code, Nonce(r.array()?)).ok_or_else(|| r.field("flag"))?;
        let floor = r.boundary()?;
        let floor_target = Lsn(r.u64()?);
        let visible_at = Lsn(r.u64()?);
        let durable = Lsn(r.u64()?);
        let boot = BootId(r.array()?);
        let branches = r.u32()?;
        let has_remembered = r.u8()? & 1 != 0;
        let remembered = Remembered { position: r.position()?, boot: BootId(r.array()?) };
        let policy = decode_policy(&mut r)?;
        let fenced = Epoch { major: r.u32()?, minor: r.u32()? };
        let cut = Cut { at: r.position()?, sequence: r.u64()? };
        let has = r.u8()?;
        let branch_at = r.u64()?.checked_sub(1).map(Lsn);
        let paused = r.u8()?;
        let paused = Paused { ship: paused & 1 != 0, floor: paused & 2 != 0 };
        r.skip(10)?;
        let (history, forced, samples) = decode_lists(&mut r)?;
        let layout = if has & 1 != 0 { Layout::decode(&mut r)? } else { Layout::one(volume, size) };
        let members = (has & 2 != 0).then(|| decode_members(&mut r)).transpose()?;
        Ok(Self {
            volume,
            group,
            site,
            node,
            peer: (!peer.is_nil()).then_some(peer),
            secret,
            layout,
            slot_bytes,
            adopted,
            flag,
            is_difference,
            floor,
            floor_target,
            visible_at,
            durable,
            clean,
            boot,
            history,
            remembered: has_remembered.then_some(remembered),
            fenced,
            cut: (cut.sequence != 0).then_some(cut),
            branches,
            branch_at,
            policy,
            paused,
            forced,
            samples,
            members,
        })
    }
}

fn encode_members(members: &Membership, w: &mut Writer) {
    w.u8(members.me as u8);
    for list in [&members.nodes, &members.peers] {
        w.u8(list.len() as u8);
        list.iter().for_each(|node| w.bytes(&node.0));
    }
}

fn decode_members(r: &mut Reader<'_>) -> Result<Membership, FormatError> {
    let me = usize::from(r.u8()?);
    let mut list = || (0..r.u8()?).map(|_| Ok(NodeId(r.array()?))).collect::<Result<Vec<_>, FormatError>>();
    let members = Membership { me, nodes: list()?, peers: list()? };
    match members.fault() {
        None => Ok(members),
        Some(_) => Err(r.field("members")),
    }
}

type Lists = (Vec<ChainEntry>, Vec<Assertion>, Vec<Sample>);

fn decode_lists(r: &mut Reader<'_>) -> Result<Lists, FormatError> {
    let mut history = Vec::new();
    for _ in 0..r.count("history", MAX_HISTORY)? {
        history.push(ChainEntry {
            generation: GenId(r.array()?),
            incarnation: Incarnation(r.u32()?),
            fork: Lsn(r.u64()?),
        });
    }
    let mut forced = Vec::new();
    for _ in 0..r.count("assertions", MAX_ASSERTIONS)? {
        forced.push(Assertion { who: r.text(TEXT)?, why: r.text(TEXT)?, at: WallMs(r.u64()?) });
    }
    let mut samples = Vec::new();
    for _ in 0..r.count("samples", MAX_SAMPLES)? {
        samples.push(Sample { offset: r.u64()?, len: r.u32()?, hash: r.array()? });
    }
    Ok((history, forced, samples))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Chain;

    fn superblock() -> Superblock {
        Superblock {
            volume: VolumeId([1; 16]),
            group: GroupId([2; 16]),
            site: SiteId([3; 16]),
            node: NodeId([4; 16]),
            peer: Some(SiteId([5; 16])),
            secret: Secret([6; 32]),
            layout: Layout::one(VolumeId([1; 16]), 1 << 30),
            slot_bytes: 32 << 20,
            adopted: true,
            flag: CopyFlag::Seeding(Nonce([7; 16])),
            is_difference: false,
            floor: Boundary { position: Position::default(), chain: Chain([8; 32]) },
            floor_target: Lsn(9),
            visible_at: Lsn(10),
            durable: Lsn(11),
            clean: true,
            boot: BootId([12; 16]),
            history: vec![ChainEntry { generation: GenId([13; 16]), incarnation: Incarnation(1), fork: Lsn(0) }],
            remembered: Some(Remembered { position: Position::default(), boot: BootId([1; 16]) }),
            fenced: Epoch { major: 3, minor: 1 },
            cut: Some(Cut { at: Position { lsn: Lsn(8), ..Position::default() }, sequence: 4 }),
            branches: 2,
            branch_at: None,
            policy: Policy::default(),
            forced: vec![Assertion { who: "op".into(), why: "site burnt down".into(), at: WallMs(5) }],
            paused: Paused::default(),
            samples: vec![Sample { offset: 4096, len: 4096, hash: [1; 16] }],
            members: None,
        }
    }

    fn membership(count: u8) -> Membership {
        let nodes = |from: u8| (from..from + count).map(|n| NodeId([n; 16])).collect();
        Membership { me: usize::from(count) - 1, nodes: nodes(1), peers: nodes(101) }
    }

    #[test]
    fn a_superblock_survives_its_encoding() {
        assert_eq!(Superblock::decode(&superblock().encode()).unwrap(), superblock());
        let paused = Superblock { paused: Paused { ship: false, floor: true }, ..superblock() };
        assert_eq!(Superblock::decode(&paused.encode()).unwrap(), paused);
        let behind = Superblock { is_difference: true, ..superblock() };
        assert_eq!(Superblock::decode(&behind.encode()).unwrap(), behind);
        let with_branch = Superblock { branch_at: Some(Lsn::ZERO), ..superblock() };
        assert_eq!(Superblock::decode(&with_branch.encode()).unwrap(), with_branch);
    }

    #[test]
    fn what_a_version_without_groups_wrote_is_read_and_written_the_same_to_the_byte() {
        let bytes = superblock().encode();
        assert_eq!(blake3::hash(&bytes).to_hex()[..16], *"451d94d0e78f735c");
        let old = FILE.written_as(1).file(1, &bytes);
        assert_eq!(superblock().kind().file(1, &bytes), old);
        assert_eq!(Superblock::decode(FILE.decode(&old).unwrap().content).unwrap(), superblock());
    }

    #[test]
    fn a_version_without_groups_refuses_a_superblock_of_several_volumes() {
        let mut sb = superblock();
        sb.layout = sb.layout.added(VolumeId([2; 16]), 4608).unwrap();
        let file = sb.kind().file(1, &sb.encode());
        assert!(matches!(FILE.written_as(1).decode(&file), Err(FormatError::Version { found: 2, known: 1, .. })));
        assert_eq!(Superblock::decode(FILE.decode(&file).unwrap().content).unwrap(), sb);
    }

    #[test]
    fn a_version_without_members_refuses_the_superblock_of_one_of_several() {
        let sb = Superblock { members: Some(membership(2)), ..superblock() };
        let file = sb.kind().file(1, &sb.encode());
        assert!(matches!(FILE.written_as(2).decode(&file), Err(FormatError::Version { found: 3, known: 2, .. })));
        assert_eq!(Superblock::decode(FILE.decode(&file).unwrap().content).unwrap(), sb);
    }

    #[test]
    fn a_list_of_members_that_cannot_be_is_no_superblock() {
        let good = membership(2);
        let table = [
            Membership { me: 2, ..good.clone() },
            Membership { nodes: vec![good.nodes[0]], me: 0, ..good.clone() },
            Membership { nodes: vec![good.nodes[0]; 2], ..good.clone() },
            Membership { peers: vec![good.peers[0]], ..good.clone() },
            Membership { peers: good.nodes.clone(), ..good.clone() },
            Membership { nodes: vec![good.nodes[0], NodeId::NIL], ..good.clone() },
            membership(17),
        ];
        for members in table {
            let sb = Superblock { members: Some(members.clone()), ..superblock() };
            assert!(Superblock::decode(&sb.encode()).is_err(), "{members:?}");
        }
        assert_eq!(Membership { peers: Vec::new(), ..good }.fault(), None, "a group without another site");
    }

    #[test]
    fn a_policy_from_before_a_lost_peer_was_a_choice_reads_as_it_acted() {
        let mut w = Writer::default();
        encode_policy(&Policy { on_peer_loss: OnPeerLoss::Witness, auto_failover: true, ..Policy::default() }, &mut w);
        let mut old = w.buf;
        old[2..4].fill(0);
        old[48..56].fill(0);
        assert_eq!(decode_policy(&mut Reader::new("policy", &old)).unwrap(), Policy::default());
    }

    #[test]
    fn the_fullest_superblock_fits_its_slot() {
        let mut sb = superblock();
        sb.history = vec![sb.history[0]; MAX_HISTORY + 5];
        sb.forced = vec![Assertion { who: "w".repeat(900), why: "y".repeat(900), at: WallMs(1) }; MAX_ASSERTIONS + 3];
        sb.samples = vec![sb.samples[0]; MAX_SAMPLES];
        let ids = |n: usize| VolumeId([n as u8 % 64 + 1; 16]);
        sb.layout = Layout::new((0..crate::layout::MAX_EXTENTS).map(|n| (ids(n), 4096))).unwrap();
        sb.members = Some(membership(16));
        FILE.encode(1, &sb.encode());
        let back = Superblock::decode(&sb.encode()).unwrap();
        assert_eq!((back.history.len(), back.forced.len()), (MAX_HISTORY, MAX_ASSERTIONS));
        assert_eq!(back.layout, sb.layout);
    }

    #[test]
    fn truncated_content_is_an_error_at_every_length() {
        let mut group = superblock();
        group.layout = group.layout.added(VolumeId([2; 16]), 4096).unwrap();
        let member = Superblock { members: Some(membership(3)), ..superblock() };
        for sb in [superblock(), group, member] {
            let bytes = sb.encode();
            for len in 0..bytes.len() {
                assert!(Superblock::decode(&bytes[..len]).is_err(), "length {len}");
            }
        }
    }
}
