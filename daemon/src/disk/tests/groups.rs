//! The bases of several volumes as one space.

use std::os::unix::fs::MetadataExt;

use tidemark_core::layout::Layout;
use tidemark_core::types::ByteRange;

use super::*;
use crate::disk::files::{base_path_of, lay_ready};

const A: VolumeId = VolumeId([1; 16]);
const B: VolumeId = VolumeId([2; 16]);
const C: VolumeId = VolumeId([3; 16]);
/// Of the first volume: it ends inside a block.
const A_BYTES: u64 = (1 << 20) + 512;
const B_BYTES: u64 = 256 << 10;
/// Where the second volume begins.
const B_AT: u64 = (1 << 20) + 4096;

fn two() -> Layout {
    Layout::one(A, A_BYTES).added(B, B_BYTES).unwrap()
}

/// A copy of one volume that a second one was added to.
fn two_volumes(pool: &Path) -> VolumeFiles {
    let files = one_volume(pool);
    files.make_room(&two()).unwrap();
    files.compose(&two()).unwrap();
    assert_eq!(files.base_size(), B_AT + B_BYTES);
    files
}

fn one_volume(pool: &Path) -> VolumeFiles {
    VolumeFiles::create(&pool.join(A.to_string()), &image(A_BYTES), &new_files(), ANYWHERE).unwrap()
}

fn bytes_of(path: PathBuf, offset: u64, len: usize) -> Vec<u8> {
    std::fs::read(path).unwrap()[offset as usize..][..len].to_vec()
}

#[test]
fn a_write_over_the_end_of_a_volume_lands_in_both_bases_and_is_read_as_one() {
    let dir = tempdir();
    let files = two_volumes(dir.path());
    let mut shard = Shard::new(RingOptions::default());
    // The last two blocks of the first volume, the second one short, and the first two of the other.
    let (from, data) = (B_AT - 8192, pattern(5, 16384));
    shard.write(&files, FileRef::Base, from, data.clone());
    shard.done(&files, DiskOp::Sync { files: vec![FileRef::Base] });
    let mut there = data.to_vec();
    there[4096 + 512..8192].fill(0);
    assert_eq!(shard.read(&files, FileRef::Base, from, 16384), there, "what lies behind the first volume is nobody's");
    let (a, b) = (files.dir().join("base.img"), base_path_of(files.dir(), B));
    assert_eq!(std::fs::metadata(&a).unwrap().len(), A_BYTES);
    assert_eq!(bytes_of(a, from, 4608), data[..4608]);
    assert_eq!(bytes_of(b, 0, 8192), data[8192..]);
    // Inside one volume it is one operation, wherever that is.
    shard.write(&files, FileRef::Base, B_AT + 4096, pattern(6, 4096));
    assert_eq!(shard.read(&files, FileRef::Base, B_AT + 4096, 4096), pattern(6, 4096));
    assert_eq!(files.read_at(FileRef::Base, from, 8192).unwrap(), there[..8192]);
}

#[test]
fn many_writes_over_the_end_of_a_volume_all_end_and_none_is_torn() {
    let dir = tempdir();
    let files = two_volumes(dir.path());
    let mut shard = Shard::new(RingOptions::default());
    for round in 0..64 {
        let bufs = vec![placed(&pattern(round, 5000), 8), pattern(round + 1, 7288)];
        shard.queue(&files, DiskOp::Write { file: FileRef::Base, offset: B_AT - 4096, bufs, durable: false });
        shard.settle();
        let read = shard.read(&files, FileRef::Base, B_AT - 4096, 12288);
        let wanted = [&pattern(round, 5000)[..], &pattern(round + 1, 7288)].concat();
        assert_eq!((&read[..512], &read[4096..]), (&wanted[..512], &wanted[4096..]));
    }
}

#[test]
fn zeroing_and_mapping_reach_over_volumes() {
    let dir = tempdir();
    let files = two_volumes(dir.path());
    let mut shard = Shard::new(RingOptions::default());
    shard.write(&files, FileRef::Base, 0, pattern(1, 1 << 20));
    shard.write(&files, FileRef::Base, B_AT, pattern(2, 128 << 10));
    let whole = ByteRange::new(0, files.base_size());
    let mapped = files.data_ranges(whole).unwrap();
    assert!(mapped.iter().all(|range| range.end() <= A_BYTES || range.offset >= B_AT), "{mapped:?}");
    assert!(mapped.iter().any(|range| range.offset <= B_AT && B_AT < range.end()), "{mapped:?}");
    let (offset, len) = (B_AT - 8192, 8192 + 65536);
    shard.done(&files, DiskOp::Zero { file: FileRef::Base, offset, len, deallocate: true });
    assert_eq!(shard.read(&files, FileRef::Base, offset, len as u32), vec![0; len as usize]);
    assert_eq!(
        shard.read(&files, FileRef::Base, offset - 4096, 4096),
        pattern(1, 1 << 20)[offset as usize - 4096..][..4096]
    );
    assert_eq!(shard.read(&files, FileRef::Base, B_AT + 65536, 4096), pattern(2, 128 << 10)[65536..][..4096]);
    let past = DiskOp::Zero { file: FileRef::Base, offset: B_AT, len: B_BYTES + 8192, deallocate: false };
    assert!(shard.run(&files, past).is_err(), "there is nothing behind the last volume");
}

#[test]
fn a_volume_that_is_not_the_last_one_grows_within_its_own_base_and_is_found_after_a_reopen() {
    let dir = tempdir();
    let files = two_volumes(dir.path());
    let mut shard = Shard::new(RingOptions::default());
    let (grown, second) = (two().grown(A, A_BYTES + 65536).unwrap(), B_AT + B_BYTES);
    assert!(files.compose(&grown).is_err(), "there is no room for it yet");
    assert!(shard.run(&files, DiskOp::Read { file: FileRef::Base, offset: 0, len: 4096 }).is_err());
    shard.done(&files, DiskOp::Grow { layout: grown.clone() });
    files.compose(&grown).unwrap();
    shard.write(&files, FileRef::Base, second, pattern(7, 8192));
    let path = files.dir().to_owned();
    files.close();
    let files = VolumeFiles::open(&path, ANYWHERE).unwrap();
    assert_eq!(files.bases(), [(A, A_BYTES + 65536), (B, B_BYTES)]);
    files.compose(&grown).unwrap();
    assert_eq!(shard.read(&files, FileRef::Base, second, 8192), pattern(7, 8192));
    assert_eq!(bytes_of(path.join("base.img"), B_AT, 8192), pattern(7, 8192));
}

#[test]
fn each_base_is_claimed_and_recognised_by_itself() {
    let dir = tempdir();
    let files = two_volumes(dir.path());
    let path = files.dir().to_owned();
    let before: Vec<_> = files.base_infos().into_iter().map(|info| info.identity).collect();
    let second = base_path_of(&path, B);
    let thief = VolumeFiles::create(
        &dir.path().join("other"),
        &NewBase::Adopt { path: second.clone() },
        &new_files(),
        ANYWHERE,
    );
    assert!(matches!(thief, Err(Error::InUse { .. })));
    files.close();
    std::fs::copy(&second, path.join("copy")).unwrap();
    std::fs::rename(path.join("copy"), &second).unwrap();
    let files = VolumeFiles::open(&path, ANYWHERE).unwrap();
    let after: Vec<_> = files.base_infos().into_iter().map(|info| info.identity).collect();
    assert!(before[0] == after[0] && before[1] != after[1]);
    files.close();
    std::fs::remove_file(&second).unwrap();
    let files = VolumeFiles::open(&path, ANYWHERE).unwrap();
    assert!(matches!(files.compose(&two()), Err(Error::NoBase { volume: B })));
}

#[test]
fn the_base_of_a_removed_volume_goes_only_when_nothing_is_composed_of_it() {
    let dir = tempdir();
    let files = two_volumes(dir.path());
    let mut shard = Shard::new(RingOptions::default());
    shard.write(&files, FileRef::Base, B_AT, pattern(1, 4096));
    assert!(!files.remove_base(A).unwrap());
    let later = two().without(A).unwrap().added(C, 65536).unwrap();
    files.make_room(&later).unwrap();
    files.compose(&later).unwrap();
    assert!(files.remove_base(A).unwrap());
    let path = files.dir().to_owned();
    assert!(!path.join("base.img").exists());
    assert_eq!(shard.read(&files, FileRef::Base, 0, 4096), vec![0; 4096]);
    shard.write(&files, FileRef::Base, 4096, pattern(1, 4096));
    assert_eq!(shard.read(&files, FileRef::Base, B_AT, 4096), pattern(1, 4096));
    files.close();
    let files = VolumeFiles::open(&path, ANYWHERE).unwrap();
    assert_eq!(files.bases(), [(B, B_BYTES), (C, 65536)]);
}

#[test]
fn a_base_that_was_laid_ready_is_taken() {
    let dir = tempdir();
    let files = one_volume(dir.path());
    let path = files.dir().to_owned();
    let disk = dir.path().join("disk.img");
    std::fs::write(&disk, vec![0; B_BYTES as usize]).unwrap();
    lay_ready(&path, B, &image(4096)).unwrap();
    lay_ready(&path, B, &NewBase::Adopt { path: disk.clone() }).unwrap();
    files.make_room(&two()).unwrap();
    files.compose(&two()).unwrap();
    Shard::new(RingOptions::default()).write(&files, FileRef::Base, B_AT, pattern(3, 4096));
    assert_eq!(std::fs::read(&disk).unwrap()[..4096], pattern(3, 4096));
    files.compose(&Layout::one(A, A_BYTES)).unwrap();
    assert!(files.remove_base(B).unwrap() && disk.exists());
}

#[test]
fn a_copy_of_several_volumes_is_made_with_an_image_for_each() {
    let dir = tempdir();
    for own in [A, B] {
        let layout = two().added(C, 8192).unwrap().without(B).unwrap();
        let base = NewBase::Images { own, layout: layout.clone() };
        let files = VolumeFiles::create(&dir.path().join(own.to_string()), &base, &new_files(), ANYWHERE).unwrap();
        files.compose(&layout).unwrap();
        assert_eq!(files.bases(), [(A, A_BYTES), (C, 8192)]);
        assert_eq!(files.dir().join("base.img").exists(), own == A);
        assert_eq!(std::fs::metadata(base_path_of(files.dir(), C)).unwrap().len(), 8192);
    }
}

#[test]
fn a_base_that_is_open_is_not_laid_ready_anew_and_one_that_was_replaced_is_not_taken() {
    let dir = tempdir();
    let files = one_volume(dir.path());
    lay_ready(files.dir(), B, &image(B_BYTES)).unwrap();
    files.make_room(&two()).unwrap();
    let named = base_path_of(files.dir(), B);
    let before = std::fs::metadata(&named).unwrap().ino();
    assert!(matches!(lay_ready(files.dir(), B, &image(B_BYTES)), Err(Error::InUse { .. })));
    assert_eq!(std::fs::metadata(&named).unwrap().ino(), before);
    files.make_room(&two()).unwrap();
    std::fs::rename(&named, dir.path().join("elsewhere")).unwrap();
    assert!(matches!(files.make_room(&two()), Err(Error::Replaced { .. })), "it is gone");
    std::fs::write(&named, vec![0; B_BYTES as usize]).unwrap();
    assert!(matches!(files.make_room(&two()), Err(Error::Replaced { .. })), "it is another one");
    // Let go of, it can be made anew.
    assert!(files.remove_base(B).unwrap());
    lay_ready(files.dir(), B, &image(B_BYTES)).unwrap();
    files.make_room(&two()).unwrap();
}

#[test]
fn of_a_space_that_cannot_be_composed_nothing_succeeds_until_one_can() {
    let dir = tempdir();
    let files = two_volumes(dir.path());
    let mut shard = Shard::new(RingOptions::default());
    shard.write(&files, FileRef::Base, 0, pattern(1, 4096));
    let operations = || {
        [
            DiskOp::Sync { files: vec![FileRef::Base] },
            DiskOp::Read { file: FileRef::Base, offset: 0, len: 4096 },
            DiskOp::Write { file: FileRef::Base, offset: 0, bufs: vec![pattern(2, 4096)], durable: false },
            DiskOp::Zero { file: FileRef::Base, offset: 0, len: 4096, deallocate: false },
            DiskOp::Map { range: ByteRange::new(0, 4096) },
            DiskOp::Prepare { slot: Slot(3), len: 65536 },
        ]
    };
    assert!(matches!(files.compose(&two().added(C, 8192).unwrap()), Err(Error::NoBase { volume: C })));
    for op in operations() {
        let told = format!("{op:?}");
        assert!(shard.run(&files, op).is_err(), "{told}");
    }
    assert!(matches!(files.data_ranges(ByteRange::new(0, 4096)), Err(Error::NotComposed { .. })));
    files.compose(&two()).unwrap();
    assert_eq!(shard.read(&files, FileRef::Base, 0, 4096), pattern(1, 4096));
    for op in operations() {
        let told = format!("{op:?}");
        assert!(shard.run(&files, op).is_ok(), "{told}");
    }
}
