//! The copies that an exercise begins with, made once by two copies that speak with each other, and what they said.

use std::sync::OnceLock;

use bytes::Bytes;
use tidemark_core::config::{Mode, Policy};
use tidemark_core::event::{ConnId, FileRef, Input, Request, RequestId};
use tidemark_core::layout::Layout;
use tidemark_core::node::{CreateKind, CreateParams, NewVolume, Node};
use tidemark_core::ship::{Hello, Message};
use tidemark_core::types::{ByteRange, GenId, GroupId, NodeId, Nonce, Secret, SiteId, VolumeId};

use super::copy::{Copy, Disk, LOG_BYTES};

/// The volume.
pub(super) const VOLUME: VolumeId = VolumeId([1; 16]);
/// Its secret.
pub(super) const SECRET: Secret = Secret([2; 32]);
/// Bytes of a log slot, the fewest.
pub(super) const SLOT_BYTES: u64 = 64 << 10;
/// Size of the volume, with a short last block.
const SIZE: u64 = (1 << 20) + 512;
/// The primary, which has the lower site id.
const A: (SiteId, NodeId) = (SiteId([3; 16]), NodeId([4; 16]));
const B: (SiteId, NodeId) = (SiteId([5; 16]), NodeId([6; 16]));
/// Written in each conversation: enough to meet everything, few enough that a fuzzer can change them.
const REQUESTS: u64 = 16;
/// Bounds what two copies say to each other until they are silent.
const MAX_MESSAGES: usize = 10_000;

/// A copy and what its peer says first.
#[derive(Clone, Debug)]
pub(super) struct Golden {
    disk: Disk,
    who: (SiteId, NodeId),
    /// The peer's first message.
    pub greeting: Hello,
}

/// All of it.
struct World {
    goldens: Vec<Golden>,
    /// What each copy hears, in order.
    heard: Vec<Vec<Message>>,
}

impl Golden {
    /// | which | copy |
    /// |---|---|
    /// | 0 | the primary, with a peer that has everything |
    /// | 1 | the secondary, with all that its primary has |
    /// | 2 | a replica that has never been seeded |
    /// | 3 | the primary before its peer had anything |
    pub fn of(which: u8) -> &'static Self {
        &world().goldens[usize::from(which & 3)]
    }

    /// Opens the copy on a disk of its own.
    pub fn open(&self, is_late: bool) -> Copy {
        Copy::open(self.disk.clone(), self.who, is_late)
    }
}

/// What each kind of copy truly hears after its peer's greeting.
pub(super) fn conversations() -> Vec<(u8, Vec<Message>)> {
    world().heard.iter().enumerate().map(|(which, heard)| (which as u8, heard.clone())).collect()
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(make)
}

fn make() -> World {
    let policy = Policy { mode: Mode::Sync, log_bytes: LOG_BYTES, index_ranges: 1 << 10, ..Policy::default() };
    let params = |who: (SiteId, NodeId), peer: (SiteId, NodeId), kind| CreateParams {
        volume: VOLUME,
        group: GroupId([7; 16]),
        site: who.0,
        node: who.1,
        secret: SECRET,
        layout: Layout::one(VOLUME, SIZE),
        slot_bytes: SLOT_BYTES,
        policy,
        peer: Some(peer.0),
        kind,
        adopted: false,
        members: None,
    };
    let kind = CreateKind::Primary { generation: GenId([8; 16]), nonce: Nonce([9; 16]) };
    let primary = Copy::open(disk_of(Node::create(&params(A, B, kind))), A, false);
    let kind = CreateKind::Replica { config: primary.status().config };
    let replica = Copy::open(disk_of(Node::create(&params(B, A, kind))), B, false);
    let young = [primary.disk().clone(), replica.disk().clone()];
    let first = talk(primary, replica);
    let [a, b] = first.copies;
    assert!(a.status().protected, "both copies are equal: {:?}", a.status());
    let old = [a.disk().clone(), b.disk().clone()];
    let second = talk(a.reopened(), b.reopened());
    let [hello_a, hello_b] = second.greetings;
    let [young_hello_a, young_hello_b] = first.greetings;
    let golden = |disk: &Disk, who, greeting| Golden { disk: disk.clone(), who, greeting };
    let goldens = vec![
        golden(&old[0], A, hello_b),
        golden(&old[1], B, hello_a),
        golden(&young[1], B, young_hello_a),
        golden(&young[0], A, young_hello_b),
    ];
    let ([old_a, old_b], [young_a, young_b]) = (second.heard, first.heard);
    World { goldens, heard: vec![old_a, old_b, young_b, young_a] }
}

fn disk_of(new: NewVolume) -> Disk {
    let files = [
        (FileRef::Superblock, new.superblock.to_vec()),
        (FileRef::Config, new.config.to_vec()),
        (FileRef::Base, vec![0; SIZE as usize]),
    ];
    Disk(files.into())
}

struct Talk {
    copies: [Copy; 2],
    /// What each says first.
    greetings: [Hello; 2],
    /// What each hears after the greeting.
    heard: [Vec<Message>; 2],
}

/// Connects A and B, lets A write, and carries their messages until they are silent.
fn talk(a: Copy, b: Copy) -> Talk {
    let mut copies = [a, b];
    let mut heard = [Vec::new(), Vec::new()];
    for (copy, peer) in copies.iter_mut().zip([B, A]) {
        copy.outbox = Some(Vec::new());
        copy.handle(Input::PeerUp { conn: ConnId(1), site: peer.0 });
    }
    carry(&mut copies, &mut heard);
    for number in 0..REQUESTS {
        let range = ByteRange::new(number * 9 * 4096, 1024);
        let data = Bytes::from(vec![number as u8; range.len as usize]);
        let request = match number % 8 {
            5 => Request::Flush,
            6 => Request::Zero { range, discard: true, fua: false },
            _ => Request::Write { range, data, fua: number % 8 == 7 },
        };
        copies[0].handle(Input::Request(RequestId(number), request));
        carry(&mut copies, &mut heard);
        copies.iter_mut().for_each(|copy| copy.pass(300));
        carry(&mut copies, &mut heard);
    }
    copies.iter_mut().for_each(|copy| copy.outbox = None);
    let greetings = [1, 0].map(|hearer: usize| match heard[hearer].remove(0) {
        Message::Hello(hello) => *hello,
        other => panic!("the first message is no greeting: {other:?}"),
    });
    Talk { copies, greetings, heard }
}

fn carry(copies: &mut [Copy; 2], heard: &mut [Vec<Message>; 2]) {
    for _ in 0..MAX_MESSAGES {
        let sent: Vec<_> = copies.iter_mut().map(|copy| copy.outbox.replace(Vec::new()).unwrap_or_default()).collect();
        if sent.iter().all(Vec::is_empty) {
            return;
        }
        for (sender, messages) in sent.into_iter().enumerate() {
            for message in messages {
                heard[1 - sender].push(message.clone());
                copies[1 - sender].handle(Input::PeerMessage(ConnId(1), message));
            }
        }
    }
    panic!("two copies talk without end");
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::super::{Done, exercise, seeds};

    #[test]
    fn the_true_conversations_reach_every_kind_of_copy() {
        let done: Vec<Done> = seeds().iter().map(|seed| exercise(seed)).collect();
        for (which, done) in done.iter().enumerate().take(8) {
            assert!(done.malformed == 0 && done.understood > 10 && done.sent > 3, "{which}: {done:?}");
        }
        assert!(done[1].records > exercise(&[1]).records, "the secondary takes the frames: {done:?}");
        assert!(done[2].records > 0, "the replica is seeded: {done:?}");
    }

    #[test]
    fn a_frame_that_is_made_here_is_taken() {
        let write = [1, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        let unknown = [77, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        let (before, mut input) = (exercise(&[1]).records, vec![1]);
        super::super::push_step(&mut input, 1, &write);
        assert_eq!(exercise(&input).records, before + 1);
        super::super::push_step(&mut input, 1, &unknown);
        super::super::push_step(&mut input, 1, &write);
        assert_eq!(exercise(&input).records, before + 1, "what is not understood is not taken, nor what follows it");
    }

    /// A descriptor of a kind that is known or nearly so, near the ends of the volume or anywhere.
    fn descriptor() -> impl Strategy<Value = Vec<u8>> {
        let lba = prop_oneof![0u64..300, (0u64..3000).prop_map(|sectors| sectors * 512), any::<u64>()];
        let blocks = prop_oneof![0u32..20, any::<u32>()];
        (0u8..12, 0u8..2, blocks, lba).prop_map(|(kind, flags, blocks, lba)| {
            [&[kind, flags, 0, 0], blocks.to_le_bytes().as_slice(), lba.to_le_bytes().as_slice()].concat()
        })
    }

    proptest! {
        #[test]
        fn frames_with_the_right_hashes_do_no_harm_whatever_they_say(
            which in 0u8..8,
            frames in vec(vec(descriptor(), 1..4), 1..10),
            others in vec((2u8..8, vec(any::<u8>(), 0..8)), 0..10),
        ) {
            let mut input = vec![which];
            for (number, frame) in frames.iter().enumerate() {
                super::super::push_step(&mut input, 1, &frame.concat());
                if let Some((kind, bytes)) = others.get(number) {
                    super::super::push_step(&mut input, *kind, bytes);
                }
            }
            exercise(&input);
        }

        #[test]
        fn conversations_with_changes_do_no_harm(
            which in any::<Index>(),
            cut in any::<Index>(),
            changes in vec((any::<Index>(), any::<u8>()), 0..12),
            steps in vec((1u8..8, vec(any::<u8>(), 0..64)), 0..8),
        ) {
            let seeds = seeds();
            let mut input = which.get(&seeds).clone();
            input.truncate(1 + cut.index(input.len()));
            for (kind, bytes) in steps {
                super::super::push_step(&mut input, kind, &bytes);
            }
            for (at, byte) in changes {
                let at = at.index(input.len());
                input[at] = byte;
            }
            exercise(&input);
        }
    }
}
