//! Every operation, and the ring's own promises.

use tidemark_core::event::DiskError;
use tidemark_core::layout::Layout;
use tidemark_core::types::ByteRange;

use super::*;
use crate::disk::transfer::{Step, Transfer};

fn with_both_rings(test: impl Fn(&mut Shard, &VolumeFiles)) {
    for defer_taskrun in [false, true] {
        let dir = tempdir();
        let files = volume_at(dir.path());
        test(&mut Shard::new(RingOptions { defer_taskrun }), &files);
    }
}

#[test]
fn what_is_written_is_read_back() {
    with_both_rings(|shard, files| {
        let data = placed(&pattern(1, 16384), 0);
        shard.write(files, FileRef::Base, 8192, data.clone());
        shard.done(files, DiskOp::Sync { files: vec![FileRef::Base] });
        assert_eq!(shard.read(files, FileRef::Base, 8192, 16384), data);
        assert_eq!(shard.read(files, FileRef::Base, 0, 8192), vec![0; 8192], "nothing else changed");
    });
}

#[test]
fn the_odd_end_of_a_base_is_written_and_read() {
    with_both_rings(|shard, files| {
        let whole = BASE_BYTES / 4096 * 4096;
        let data = pattern(2, 4096 + 512);
        shard.write(files, FileRef::Base, whole - 4096, data.clone());
        assert_eq!(shard.read(files, FileRef::Base, whole - 4096, 4096 + 512), data);
        assert_eq!(shard.read(files, FileRef::Base, whole, 512), data.slice(4096..));
        let tail = pattern(3, 512);
        shard.write(files, FileRef::Base, whole, tail.clone());
        assert_eq!(shard.read(files, FileRef::Base, whole, 512), tail);
        shard.done(files, DiskOp::Sync { files: vec![FileRef::Base] });
        assert_eq!(files.read_at(FileRef::Base, whole, 512).unwrap(), tail);
    });
}

#[test]
fn reading_past_the_end_is_short() {
    with_both_rings(|shard, files| {
        let end = BASE_BYTES / 4096 * 4096;
        for (offset, len) in [(end, 4096), (end - 4096, 16384), (BASE_BYTES + (1 << 20), 4096)] {
            let read = DiskOp::Read { file: FileRef::Base, offset, len };
            assert_eq!(shard.run(files, read), Err(DiskError::Short), "{offset} {len}");
        }
    });
}

#[test]
fn unaligned_pieces_arrive_in_order() {
    with_both_rings(|shard, files| {
        let data = pattern(4, 65536);
        let mut bufs = Vec::new();
        let (mut at, mut step) = (0, 100);
        while at < data.len() {
            let end = (at + step).min(data.len());
            bufs.push(placed(&data[at..end], at % 7));
            at = end;
            step = step * 3 % 5000 + 1;
        }
        shard.done(files, DiskOp::Write { file: FileRef::Base, offset: 4096, bufs, durable: false });
        assert_eq!(shard.read(files, FileRef::Base, 4096, 65536), data);
    });
}

#[test]
fn more_pieces_than_one_call_takes_are_all_written() {
    with_both_rings(|shard, files| {
        shard.done(files, DiskOp::Prepare { slot: Slot(1), len: 16 << 20 });
        let data = placed(&pattern(5, 2500 * 4096), 0);
        let bufs = (0..2500).map(|i| data.slice(i * 4096..(i + 1) * 4096)).collect();
        shard.done(files, DiskOp::Write { file: SLOT, offset: 4096, bufs, durable: false });
        assert_eq!(shard.read(files, SLOT, 4096, 2500 * 4096), data);
    });
}

#[test]
fn writes_that_follow_each_other_end_one_by_one_with_all_their_bytes() {
    with_both_rings(|shard, files| {
        shard.done(files, DiskOp::Prepare { slot: Slot(1), len: 4 << 20 });
        let data = pattern(21, 2 << 20);
        let frames: Vec<_> = (0..256).map(|i| i * 8192..(i + 1) * 8192).collect();
        let tokens: Vec<_> = frames
            .iter()
            .enumerate()
            .map(|(i, range)| {
                // A header that is not aligned and a block that is, some of them durable.
                let bufs =
                    vec![placed(&data[range.start..][..4096], 8), placed(&data[range.start + 4096..range.end], 0)];
                let write = DiskOp::Write { file: SLOT, offset: range.start as u64, bufs, durable: i % 32 > 28 };
                shard.queue(files, write)
            })
            .collect();
        assert!(shard.ring.in_flight(VOLUME) < tokens.len() / 4, "most go with another");
        shard.settle();
        assert!(tokens.iter().all(|token| shard.results.remove(token) == Some(Ok(DiskDone::Done))));
        assert_eq!(shard.read(files, SLOT, 0, 2 << 20), data);
    });
}

#[test]
fn a_write_joins_only_what_it_continues() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    let (base, other) = (files.base_at(ByteRange::new(0, 512)).unwrap().0, files.file(FileRef::Superblock).unwrap());
    let write = Transfer::write(base.clone(), 4096, vec![pattern(1, 8192)], &Pool::new(), Vec::new());
    assert!(write.is_continued_by(&base, 12_288, 4096, false));
    assert!(!write.is_continued_by(&base, 16_384, 4096, false), "a gap");
    assert!(!write.is_continued_by(&base, 4096, 4096, false), "the same place again");
    assert!(!write.is_continued_by(&base, 12_288, 4096, true), "another promise");
    assert!(!write.is_continued_by(&base, 12_288, 1 << 20, false), "more than goes at once");
    assert!(!write.is_continued_by(&other, 12_288, 4096, false), "another file");
}

#[test]
fn a_write_or_read_of_nothing_is_done_at_once() {
    with_both_rings(|shard, files| {
        shard.done(files, DiskOp::Write { file: FileRef::Base, offset: 0, bufs: vec![], durable: false });
        shard.done(files, DiskOp::Write { file: FileRef::Base, offset: 0, bufs: vec![Bytes::new()], durable: false });
        shard.done(files, DiskOp::Sync { files: vec![] });
        assert_eq!(shard.read(files, FileRef::Base, 0, 0), Bytes::new());
    });
}

#[test]
fn a_prepared_slot_has_its_length_and_holds_zeros() {
    with_both_rings(|shard, files| {
        shard.done(files, DiskOp::Prepare { slot: Slot(1), len: (3 << 20) + 4096 });
        assert_eq!(files.slots().unwrap(), [(Slot(1), (3 << 20) + 4096)]);
        assert_eq!(shard.read(files, SLOT, 0, (3 << 20) + 4096), vec![0; (3 << 20) + 4096]);
    });
}

#[test]
fn preparing_a_slot_again_empties_it() {
    with_both_rings(|shard, files| {
        shard.done(files, DiskOp::Prepare { slot: Slot(1), len: 8192 });
        shard.write(files, SLOT, 0, pattern(6, 8192));
        shard.done(files, DiskOp::Prepare { slot: Slot(1), len: 4096 });
        assert_eq!(shard.read(files, SLOT, 0, 4096), vec![0; 4096], "not the old file behind an open descriptor");
    });
}

#[test]
fn a_removed_slot_is_missing_and_footers_stay() {
    with_both_rings(|shard, files| {
        shard.done(files, DiskOp::Prepare { slot: Slot(1), len: 8192 });
        shard.done(files, DiskOp::Replace { file: FileRef::Footer(1), data: vec![pattern(7, 4096)] });
        assert_eq!(files.footers().unwrap(), [(1, pattern(7, 4096))]);
        shard.read(files, SLOT, 0, 4096);
        shard.done(files, DiskOp::Remove { slot: Slot(1) });
        assert_eq!((files.slots().unwrap(), files.footers().unwrap().len()), (vec![], 1));
        let write = DiskOp::Write { file: SLOT, offset: 0, bufs: vec![pattern(8, 4096)], durable: false };
        assert_eq!(shard.run(files, write), Err(DiskError::Missing));
        shard.done(files, DiskOp::Remove { slot: Slot(1) });
    });
}

#[test]
fn a_replaced_file_shows_its_new_content() {
    with_both_rings(|shard, files| {
        let file = FileRef::Branch(3);
        for (seed, pieces) in [(9, vec![100, 5000]), (10, vec![777])] {
            let data: Vec<_> = pieces.iter().map(|len| pattern(seed, *len)).collect();
            let whole = Bytes::from(data.concat());
            shard.done(files, DiskOp::Replace { file, data });
            assert_eq!(shard.read(files, file, 0, whole.len() as u32), whole);
            assert_eq!(files.branches().unwrap(), [(3, whole.len() as u64)]);
        }
    });
}

#[test]
fn zeroed_ranges_read_as_zeros_and_nothing_else_does() {
    with_both_rings(|shard, files| {
        for deallocate in [false, true] {
            shard.write(files, FileRef::Base, 0, pattern(11, BASE_BYTES as usize));
            let end = BASE_BYTES / 4096 * 4096;
            for (offset, len) in [(8192, 65536), (end, 512)] {
                shard.done(files, DiskOp::Zero { file: FileRef::Base, offset, len, deallocate });
            }
            let mut expected = pattern(11, BASE_BYTES as usize).to_vec();
            expected[8192..8192 + 65536].fill(0);
            expected[end as usize..].fill(0);
            let found = shard.read(files, FileRef::Base, 0, BASE_BYTES as u32);
            assert!(found == expected, "deallocate: {deallocate}");
        }
        let outside = DiskOp::Zero { file: FileRef::Base, offset: BASE_BYTES - 512, len: 4096, deallocate: true };
        assert_eq!(shard.run(files, outside), Err(DiskError::Short), "the base does not grow");
    });
}

#[test]
fn a_map_covers_all_data_and_stays_within_the_range() {
    with_both_rings(|shard, files| {
        shard.write(files, FileRef::Base, 65536, pattern(12, 4096));
        shard.write(files, FileRef::Base, 524_288, pattern(13, 8192));
        let mut map = |offset, len| match shard.run(files, DiskOp::Map { range: ByteRange::new(offset, len) }) {
            Ok(DiskDone::Mapped(ranges)) => ranges,
            other => panic!("a map gave {other:?}"),
        };
        let covers = |ranges: &[ByteRange], at: u64| ranges.iter().any(|range| range.offset <= at && at < range.end());
        let all = map(0, BASE_BYTES);
        assert!(covers(&all, 65536) && covers(&all, 524_288) && covers(&all, 532_479));
        assert!(all.is_sorted_by(|a, b| a.end() <= b.offset) && all.iter().all(|range| range.end() <= BASE_BYTES));
        let part = map(526_000, 2000);
        assert_eq!(part, [ByteRange::new(526_000, 2000)]);
        assert_eq!(map(BASE_BYTES, 4096), []);
    });
}

#[test]
fn a_grown_base_reads_as_zeros_behind_its_old_end() {
    with_both_rings(|shard, files| {
        shard.done(files, DiskOp::Grow { layout: Layout::one(OWN, 2 * BASE_BYTES) });
        assert_eq!(files.base_size(), 2 * BASE_BYTES);
        assert_eq!(shard.read(files, FileRef::Base, BASE_BYTES, 4096), vec![0; 4096]);
        shard.done(files, DiskOp::Grow { layout: Layout::one(OWN, BASE_BYTES) });
        assert_eq!(files.base_size(), 2 * BASE_BYTES, "it holds that much already");
    });
}

#[test]
fn a_sync_of_a_missing_file_fails() {
    with_both_rings(|shard, files| {
        shard.done(files, DiskOp::Sync { files: vec![FileRef::Superblock, FileRef::Config, FileRef::Base] });
        let sync = DiskOp::Sync { files: vec![FileRef::Base, FileRef::Log(Slot(9))] };
        assert_eq!(shard.run(files, sync), Err(DiskError::Missing));
    });
}

#[test]
fn more_operations_than_the_ring_holds_all_end() {
    with_both_rings(|shard, files| {
        shard.done(files, DiskOp::Prepare { slot: Slot(1), len: 16 << 20 });
        let writes = 4 * IN_FLIGHT as u64;
        // No two of them follow each other: those would be one.
        let block = |i: u64| i * 7 % 4096;
        let tokens: Vec<_> = (0..writes)
            .map(|i| {
                let bufs = vec![placed(&pattern(i, 4096), (i % 2) as usize)];
                shard.queue(files, DiskOp::Write { file: SLOT, offset: block(i) * 4096, bufs, durable: false })
            })
            .collect();
        shard.settle();
        assert!(tokens.iter().all(|token| shard.results.remove(token) == Some(Ok(DiskDone::Done))));
        let reads: Vec<_> = (writes - 4096..writes)
            .map(|i| (i, shard.queue(files, DiskOp::Read { file: SLOT, offset: block(i) * 4096, len: 4096 })))
            .collect();
        shard.settle();
        for (i, token) in reads {
            let Some(Ok(DiskDone::Read(found))) = shard.results.remove(&token) else { panic!("read {i} failed") };
            assert!((0..writes).filter(|other| other % 4096 == i % 4096).any(|other| pattern(other, 4096) == found));
        }
    });
}

const IN_FLIGHT: u32 = crate::disk::uring::IN_FLIGHT_MAX;

#[test]
fn operations_of_all_kinds_run_side_by_side() {
    with_both_rings(|shard, files| {
        let mut tokens = Vec::new();
        for slot in 1..=5 {
            tokens.push(shard.queue(files, DiskOp::Prepare { slot: Slot(slot), len: 1 << 20 }));
            tokens
                .push(shard.queue(files, DiskOp::Replace { file: FileRef::Branch(slot), data: vec![pattern(1, 999)] }));
            let offset = u64::from(slot) * 65536;
            let bufs = vec![pattern(u64::from(slot), 65536)];
            tokens.push(shard.queue(files, DiskOp::Write { file: FileRef::Base, offset, bufs, durable: false }));
            tokens.push(shard.queue(files, DiskOp::Sync { files: vec![FileRef::Base, FileRef::Superblock] }));
        }
        assert_eq!(shard.ring.in_flight(VOLUME), 20);
        assert_eq!(shard.ring.in_flight(VolumeKey(8)), 0);
        shard.settle();
        assert!(tokens.iter().all(|token| shard.results[token] == Ok(DiskDone::Done)));
        for slot in 1..=5u32 {
            let found = shard.read(files, FileRef::Base, u64::from(slot) * 65536, 65536);
            assert_eq!(found, pattern(u64::from(slot), 65536));
        }
    });
}

#[test]
fn writes_to_the_base_beside_other_work_all_end() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    let mut shard = Shard::new(RingOptions::default());
    let data = pattern(5, 1 << 20);
    let writes: Vec<_> = (0..32u64)
        .map(|i| {
            shard.queue(&files, DiskOp::Read { file: FileRef::Base, offset: 0, len: 4096 });
            let (from, len) = (i as usize * 32_768, 32_768);
            let bufs = vec![data.slice(from..from + len)];
            shard.queue(&files, DiskOp::Write { file: FileRef::Base, offset: from as u64, bufs, durable: false })
        })
        .collect();
    shard.settle();
    assert!(writes.iter().all(|token| shard.results[token] == Ok(DiskDone::Done)));
    assert_eq!(files.read_at(FileRef::Base, 0, 1 << 20).unwrap(), data);
}

#[test]
fn a_closed_volume_stays_locked_until_its_operations_have_ended() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    let path = files.dir().to_owned();
    let mut shard = Shard::new(RingOptions::default());
    let token = shard.queue(
        &files,
        DiskOp::Write { file: FileRef::Base, offset: 0, bufs: vec![pattern(1, 1 << 20)], durable: false },
    );
    shard.ring.submit().unwrap();
    files.close();
    assert!(matches!(VolumeFiles::open(&path, ANYWHERE), Err(Error::InUse { .. })));
    shard.settle();
    assert_eq!(shard.results[&token], Ok(DiskDone::Done));
    let files = VolumeFiles::open(&path, ANYWHERE).unwrap();
    assert_eq!(files.read_at(FileRef::Base, 0, 1 << 20).unwrap(), pattern(1, 1 << 20));
}

#[test]
fn dropping_the_ring_waits_for_what_is_in_flight() {
    let dir = tempdir();
    let path = volume_at(dir.path()).dir().to_owned();
    for defer_taskrun in [false, true] {
        let mut shard = Shard::new(RingOptions { defer_taskrun });
        let files = VolumeFiles::open(&path, ANYWHERE);
        let files = files.unwrap_or_else(|_| panic!("the locks went with the last ring: {defer_taskrun}"));
        drop_in_flight(&mut shard, &files);
        files.close();
        drop(shard);
    }

    fn drop_in_flight(shard: &mut Shard, files: &VolumeFiles) {
        let data = placed(&pattern(3, 1 << 20), 0);
        for _ in 0..64 {
            shard.queue(
                files,
                DiskOp::Write { file: FileRef::Base, offset: 0, bufs: vec![data.clone()], durable: false },
            );
            shard.queue(files, DiskOp::Read { file: FileRef::Base, offset: 0, len: 1 << 20 });
        }
        shard.queue(files, DiskOp::Prepare { slot: Slot(1), len: 256 << 20 });
        shard.ring.submit().unwrap();
    }
}

#[test]
fn a_disk_that_does_not_answer_keeps_its_memory_and_its_locks() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    let path = files.dir().to_owned();
    let mut shard = Shard::new(RingOptions::default());
    shard.ring.drain = Duration::ZERO;
    let pool = shard.ring.pool().clone();
    for _ in 0..4 {
        shard.queue(&files, DiskOp::Read { file: FileRef::Base, offset: 0, len: 1 << 20 });
    }
    shard.ring.submit().unwrap();
    files.close();
    drop(shard);
    assert_eq!(pool.cached_blocks(), 0, "the kernel may still write to it");
    assert!(matches!(VolumeFiles::open(&path, ANYWHERE), Err(Error::InUse { .. })));
}

#[test]
fn an_offset_that_the_kernel_would_misread_is_refused() {
    with_both_rings(|shard, files| {
        for offset in [u64::MAX, i64::MAX as u64 - 4094] {
            let write = DiskOp::Write { file: FileRef::Base, offset, bufs: vec![pattern(1, 4096)], durable: false };
            assert_eq!(shard.run(files, write), Err(DiskError::Short));
            assert_eq!(
                shard.run(files, DiskOp::Read { file: FileRef::Base, offset, len: 4096 }),
                Err(DiskError::Short)
            );
        }
        assert_eq!(files.base_size(), BASE_BYTES);
    });
}

#[test]
fn a_transfer_goes_on_where_it_stopped_and_gives_up_in_the_end() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    let bufs = || vec![placed(&pattern(1, 4096), 0), placed(&pattern(2, 8192), 0)];
    let start =
        || Transfer::write(files.base_at(ByteRange::new(0, 512)).unwrap().0, 4096, bufs(), &Pool::new(), Vec::new());
    let lengths = |transfer: &Transfer| transfer.vectors().iter().map(|vector| vector.iov_len).collect::<Vec<_>>();

    let mut short = start();
    assert!(matches!(short.on_result(512), Step::Again));
    assert_eq!((short.offset(), lengths(&short)), (4608, vec![3584, 8192]));
    assert!(matches!(short.on_result(3584 + 4096), Step::Again));
    assert_eq!((short.offset(), lengths(&short)), (12288, vec![4096]));
    assert!(matches!(short.on_result(4096), Step::Ended(Ok(DiskDone::Done), 0)));

    let mut busy = start();
    let ended = (0..1000).find_map(|_| match busy.on_result(-libc::EAGAIN) {
        Step::Again => None,
        Step::Ended(result, errno) => Some((result, errno)),
    });
    assert_eq!(ended, Some((Err(DiskError::Io), libc::EAGAIN)));

    for (errno, told) in
        [(libc::ENOSPC, DiskError::NoSpace), (libc::EDQUOT, DiskError::NoSpace), (libc::EIO, DiskError::Io)]
    {
        assert!(matches!(start().on_result(-errno), Step::Ended(Err(error), _) if error == told));
    }
    assert!(
        matches!(start().on_result(0), Step::Ended(Err(DiskError::Io), libc::EIO)),
        "a write of nothing is a failure"
    );
}

#[test]
fn a_steady_load_recycles_its_memory() {
    with_both_rings(|shard, files| {
        for _ in 0..50 {
            drop(shard.read(files, FileRef::Base, 0, 65536));
        }
        assert_eq!(shard.ring.pool().cached_blocks(), 1);
    });
}
