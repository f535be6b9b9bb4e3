use proptest::prelude::*;

use super::*;

/// A change of a group, by the number of one of its volumes.
#[derive(Clone, Debug)]
enum Change {
    Add { sectors: u64 },
    Grow { which: usize, sectors: u64 },
    Remove { which: usize },
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (1..40u64).prop_map(|sectors| Change::Add { sectors }),
        (any::<usize>(), 0..40u64).prop_map(|(which, sectors)| Change::Grow { which, sectors }),
        any::<usize>().prop_map(|which| Change::Remove { which }),
    ]
}

fn id(n: u8) -> VolumeId {
    VolumeId([n; 16])
}

/// Every layout that a group went through, the newest last.
fn lived(first: u64, changes: &[Change]) -> Vec<Layout> {
    let mut all = vec![Layout::one(id(1), first * 512)];
    for (n, change) in changes.iter().enumerate() {
        let now = all.last().unwrap();
        let volumes = now.volumes();
        let next = match change {
            Change::Add { sectors } => now.added(id(n as u8 + 2), sectors * 512),
            Change::Grow { which, sectors } => {
                let volume = volumes[which % volumes.len()];
                now.grown(volume, now.volume_size(volume).unwrap() + sectors * 512)
            }
            Change::Remove { which } if volumes.len() > 1 => now.without(volumes[which % volumes.len()]),
            Change::Remove { .. } => continue,
        };
        all.push(next.unwrap());
    }
    all
}

fn encoded(layout: &Layout) -> Vec<u8> {
    let mut w = Writer::default();
    layout.encode(&mut w);
    w.buf
}

fn decoded(bytes: &[u8]) -> Result<Layout, FormatError> {
    Layout::decode(&mut Reader::new("layout", bytes))
}

/// Whose each sector of the group's space is: the volume and the sector's number in it.
fn owners(layout: &Layout) -> Vec<Option<(VolumeId, u64)>> {
    (0..layout.blocks() * 8).map(|s| layout.locate(s * 512).map(|at| (at.volume, at.offset / 512))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_lies_somewhere_stays_there_until_its_volume_is_removed_and_then_is_nobodys(
        first in 1..40u64,
        changes in proptest::collection::vec(change(), 0..24),
    ) {
        let all = lived(first, &changes);
        for (n, older) in all.iter().enumerate() {
            let before = owners(older);
            for newer in &all[n..] {
                prop_assert!(newer.extends(older));
                prop_assert!(older == newer || !older.extends(newer), "{older:?} {newer:?}");
                let after = owners(newer);
                for (was, is) in before.iter().zip(&after).filter(|(was, _)| was.is_some()) {
                    let kept = newer.has(was.unwrap().0);
                    prop_assert_eq!(*is, if kept { *was } else { None });
                }
            }
        }
    }

    #[test]
    fn the_pieces_of_a_volume_are_its_bytes_in_order_and_nobody_elses(
        first in 1..40u64,
        changes in proptest::collection::vec(change(), 0..24),
        cut in (0..1000u64, 0..1000u64),
    ) {
        let layout = lived(first, &changes).pop().unwrap();
        for volume in layout.volumes() {
            let sectors = layout.volume_size(volume).unwrap() / 512;
            let from = cut.0 % sectors;
            let count = 1 + cut.1 % (sectors - from);
            let pieces = layout.pieces(volume, ByteRange::new(from * 512, count * 512)).unwrap();
            let mut next = from;
            for piece in &pieces {
                prop_assert!(layout.holds(*piece));
                let at = layout.locate(piece.offset).unwrap();
                prop_assert_eq!((at.volume, at.offset), (volume, next * 512));
                next += piece.len / 512;
            }
            prop_assert_eq!(next, from + count);
            prop_assert!(layout.pieces(volume, ByteRange::new(from * 512, (sectors - from) * 512 + 512)).is_none());
        }
    }

    #[test]
    fn a_layout_survives_its_encoding_and_half_of_it_is_an_error(
        first in 1..40u64,
        changes in proptest::collection::vec(change(), 0..24),
    ) {
        let layout = lived(first, &changes).pop().unwrap();
        let bytes = encoded(&layout);
        prop_assert_eq!(decoded(&bytes).unwrap(), layout);
        for len in 0..bytes.len() {
            prop_assert!(decoded(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn bytes_of_all_kinds_are_a_layout_of_a_group_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(layout) = decoded(&bytes) {
            prop_assert!(layout.check().is_ok());
        }
    }

    #[test]
    fn the_base_of_an_older_layout_keeps_what_was_removed_since(
        first in 1..40u64,
        changes in proptest::collection::vec(change(), 0..24),
    ) {
        let all = lived(first, &changes);
        let newer = all.last().unwrap();
        for older in &all {
            let base = newer.with_removed_of(older);
            let (was, is, both) = (owners(older), owners(newer), owners(&base));
            prop_assert_eq!(base.blocks(), newer.blocks());
            for (at, owner) in both.iter().enumerate() {
                let expected = is[at].or(was.get(at).copied().flatten());
                prop_assert_eq!(*owner, expected);
            }
            let removed = newer.removed_since(older);
            let gone = |block: u64| removed.iter().any(|r| r.start() <= block && block < r.end());
            for block in 0..older.blocks() {
                let lost = was[block as usize * 8].is_some() && is[block as usize * 8].is_none();
                prop_assert_eq!(gone(block), lost);
            }
        }
    }
}

#[test]
fn a_volume_with_a_short_end_grows_into_its_last_block_first() {
    let layout = Layout::new([(id(1), 512), (id(2), 8192)]).unwrap();
    assert_eq!(layout.extents()[1].start, 4096);
    let grown = layout.grown(id(1), 1024).unwrap();
    assert_eq!(grown.extents().len(), 2);
    let grown = grown.grown(id(1), 4096 + 512).unwrap();
    assert_eq!(grown.extents()[2], Extent { volume: id(1), start: 12288, len: 512 });
    assert_eq!(grown.pieces(id(1), ByteRange::new(3584, 1024)).unwrap().len(), 2);
    assert!(!grown.holds(ByteRange::new(3584, 1024)));
    assert!(grown.ends_at(12288 + 512) && !grown.ends_at(12288 + 1024));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let layout = Layout::one(id(1), 4096);
    assert_eq!(layout.added(id(1), 512), Err(LayoutError::Exists(id(1))));
    assert_eq!(layout.added(id(2), 513), Err(LayoutError::Size));
    assert_eq!(layout.added(id(2), u64::MAX / 512 * 512), Err(LayoutError::TooLarge));
    assert_eq!(layout.added(VolumeId::NIL, 512), Err(LayoutError::Malformed));
    assert_eq!(layout.without(id(1)), Err(LayoutError::Last(id(1))));
    assert_eq!(layout.without(id(2)), Err(LayoutError::Unknown(id(2))));
    assert_eq!(layout.grown(id(1), 512), Err(LayoutError::Shrinks(4096)));
    assert_eq!(layout.grown(id(2), 512), Err(LayoutError::Unknown(id(2))));
    let full = Layout::new((1..=64).map(|n| (id(n), 512))).unwrap();
    assert_eq!(full.added(id(65), 512), Err(LayoutError::TooManyVolumes));
    let torn = Layout::new((0..512u32).map(|n| (id(1 + (n % 2) as u8), 4096))).unwrap();
    assert_eq!(torn.grown(id(1), 1 << 30), Err(LayoutError::TooManyExtents));
    assert!(encoded(&full).len() <= MAX_ENCODED && encoded(&torn).len() <= MAX_ENCODED);
    assert_eq!(Layout::new([(VolumeId::NIL, 4096)]), Err(LayoutError::Malformed));
    assert_eq!(Layout::new([(id(1), 512), (id(1), 512)]), Err(LayoutError::Malformed));
}

#[test]
fn groups_that_parted_do_not_extend_each_other() {
    let common = Layout::one(id(1), 8192);
    let (one, other) = (common.added(id(2), 4096).unwrap(), common.added(id(3), 4096).unwrap());
    assert!(one.extends(&common) && other.extends(&common));
    assert!(!one.extends(&other) && !other.extends(&one));
    assert_eq!(one.with_removed_of(&other), one);
    // The same space, taken apart in another way.
    assert!(!Layout::new([(id(1), 4096), (id(1), 4096)]).unwrap().extends(&common));
}
