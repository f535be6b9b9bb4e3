//! A volume's directory through its life.

use tidemark_core::layout::Layout;

use super::*;
use crate::disk::files::{OPEN_SLOTS_MAX, base_path, release_volume, remove_volume, volumes_in};

fn attempt(files: Result<VolumeFiles, Error>) -> String {
    files.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_new_volume_holds_what_it_was_given() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    assert_eq!(files.superblock().unwrap(), new_files().superblock);
    assert_eq!(files.config().unwrap(), new_files().config);
    assert_eq!(std::fs::read(files.dir().join("note")).unwrap(), b"a file of the caller's own");
    assert_eq!(files.base_size(), BASE_BYTES);
    assert!(!files.base_infos()[0].is_device);
    assert_eq!((files.slots().unwrap(), files.branches().unwrap()), (vec![], vec![]));
}

#[test]
fn a_second_opener_is_refused() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    let path = files.dir().to_owned();
    assert!(matches!(VolumeFiles::open(&path, ANYWHERE), Err(Error::InUse { .. })));
    assert!(matches!(VolumeFiles::inspect(&path, ANYWHERE), Err(Error::InUse { .. })));
    files.close();
    let first = VolumeFiles::inspect(&path, ANYWHERE).unwrap();
    let second = VolumeFiles::inspect(&path, ANYWHERE).unwrap();
    assert!(matches!(VolumeFiles::open(&path, ANYWHERE), Err(Error::InUse { .. })), "not while somebody looks");
    drop((first, second));
    VolumeFiles::open(&path, ANYWHERE).unwrap();
}

#[test]
fn one_base_serves_one_volume() {
    let dir = tempdir();
    let base = dir.path().join("disk.img");
    std::fs::write(&base, vec![5; 8192]).unwrap();
    let adopt = NewBase::Adopt { path: base.clone() };
    let first = VolumeFiles::create(&dir.path().join("one"), &adopt, &new_files(), ANYWHERE).unwrap();
    let second = VolumeFiles::create(&dir.path().join("two"), &adopt, &new_files(), ANYWHERE);
    assert!(matches!(second, Err(Error::InUse { .. })));
    assert!(!dir.path().join("two").exists() && !dir.path().join("two.new").exists(), "nothing is left behind");
    assert_eq!(first.read_at(FileRef::Base, 0, 8192).unwrap(), vec![5; 8192]);
    assert_eq!(first.base_paths()[0], base.canonicalize().unwrap());
}

#[test]
fn an_existing_directory_is_not_overwritten() {
    let dir = tempdir();
    let path = volume_at(dir.path()).dir().to_owned();
    let again = VolumeFiles::create(&path, &image(4096), &new_files(), ANYWHERE);
    assert!(matches!(again, Err(Error::Exists { .. })));
    assert_eq!(VolumeFiles::open(&path, ANYWHERE).unwrap().base_size(), BASE_BYTES);
}

#[test]
fn impossible_bases_are_refused_and_leave_nothing() {
    let dir = tempdir();
    let (odd, empty, fifo) = (dir.path().join("odd"), dir.path().join("empty"), dir.path().join("fifo"));
    std::fs::write(&odd, [0; 1000]).unwrap();
    std::fs::write(&empty, []).unwrap();
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let adopt = |path: &Path| NewBase::Adopt { path: path.to_owned() };
    let bases = [image(0), image(1000), adopt(&odd), adopt(&empty), adopt(&fifo), adopt(dir.path())];
    for base in bases.into_iter().chain([adopt(&dir.path().join("none"))]) {
        let path = dir.path().join("volume");
        let refused = VolumeFiles::create(&path, &base, &new_files(), ANYWHERE);
        assert!(refused.is_err() && !path.exists(), "{base:?}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempdir();
    assert!(attempt(VolumeFiles::open(&dir.path().join("none"), ANYWHERE)).contains("the directory is missing"));
    for (file, name) in [("base.img", "the base image"), ("config", "config"), ("superblock", "superblock")] {
        let path = volume_at(dir.path()).dir().to_owned();
        std::fs::remove_file(path.join(file)).unwrap();
        let said = attempt(VolumeFiles::open(&path, ANYWHERE));
        assert!(said.contains(&format!("{name} is missing")), "{said}");
        std::fs::remove_dir_all(path).unwrap();
    }
}

#[test]
fn the_identity_outlives_a_reopen_and_a_write_but_not_a_swap() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    let (path, before) = (files.dir().to_owned(), files.base_infos()[0].identity.clone());
    Shard::new(RingOptions::default()).write(&files, FileRef::Base, 0, pattern(1, 4096));
    files.close();
    let files = VolumeFiles::open(&path, ANYWHERE).unwrap();
    assert_eq!(files.base_infos()[0].identity, before);
    assert_eq!(probe_base(&files.base_paths()[0]).unwrap().identity, before);
    files.close();
    std::fs::copy(path.join("base.img"), path.join("copy")).unwrap();
    std::fs::rename(path.join("copy"), path.join("base.img")).unwrap();
    assert_ne!(VolumeFiles::open(&path, ANYWHERE).unwrap().base_infos()[0].identity, before);
}

#[test]
fn a_base_grows_and_never_shrinks() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    let room = |size| files.make_room(&Layout::one(OWN, size));
    for (size, there) in [(BASE_BYTES, BASE_BYTES), (2 * BASE_BYTES, 2 * BASE_BYTES), (BASE_BYTES, 2 * BASE_BYTES)] {
        room(size).unwrap();
        assert_eq!(files.base_size(), there);
    }
    assert!(matches!(room(3 * BASE_BYTES + 1), Err(Error::Size { .. })));
    let path = files.dir().to_owned();
    files.close();
    assert_eq!(VolumeFiles::open(&path, ANYWHERE).unwrap().base_size(), 2 * BASE_BYTES);
}

#[test]
fn what_a_crash_left_unfinished_is_swept() {
    let dir = tempdir();
    let path = volume_at(dir.path()).dir().to_owned();
    let leftovers = ["log/slot-000001.seg.new", "log/footer-000002.new", "branch/branch-0001.new"];
    for name in leftovers {
        std::fs::write(path.join(name), [1; 100]).unwrap();
    }
    let inspected = VolumeFiles::inspect(&path, ANYWHERE).unwrap();
    assert!(path.join(leftovers[0]).exists(), "inspection changes nothing");
    inspected.close();
    let files = VolumeFiles::open(&path, ANYWHERE).unwrap();
    assert!(leftovers.iter().all(|name| !path.join(name).exists()));
    assert_eq!(files.slots().unwrap(), []);
}

#[test]
fn a_pool_lists_its_volumes_and_sweeps_what_is_half_made() {
    let dir = tempdir();
    let ids = [VolumeId([1; 16]), VolumeId([2; 16])];
    for id in ids {
        VolumeFiles::create(&dir.path().join(id.to_string()), &image(4096), &new_files(), ANYWHERE).unwrap();
    }
    let half = [format!("{}.new", VolumeId([3; 16])), format!("{}.gone", VolumeId([4; 16]))];
    for name in half.iter().map(String::as_str).chain(["lost+found", "notes.new"]) {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join(VolumeId([5; 16]).to_string()), []).unwrap();
    let found: Vec<_> = volumes_in(dir.path()).unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(found, ids);
    assert!(half.iter().all(|name| !dir.path().join(name).exists()));
    assert!(dir.path().join("notes.new").exists(), "not ours");
}

#[test]
fn a_deleted_volume_is_gone_and_an_adopted_base_stays() {
    let dir = tempdir();
    let base = dir.path().join("disk.img");
    std::fs::write(&base, vec![5; 8192]).unwrap();
    for base in [image(4096), NewBase::Adopt { path: base.clone() }] {
        let path = dir.path().join("volume");
        let files = VolumeFiles::create(&path, &base, &new_files(), ANYWHERE).unwrap();
        assert!(matches!(remove_volume(&path), Err(Error::InUse { .. })), "not while somebody serves it");
        files.close();
        remove_volume(&path).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the adopted base");
    }
    assert_eq!(std::fs::read(&base).unwrap(), vec![5; 8192]);
}

#[test]
fn a_released_volume_leaves_its_base() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    Shard::new(RingOptions::default()).write(&files, FileRef::Base, 0, pattern(1, 4096));
    let (path, kept) = (files.dir().to_owned(), dir.path().join("volume.img"));
    assert!(matches!(release_volume(&path, &kept), Err(Error::InUse { .. })), "not while somebody serves it");
    files.close();
    assert_eq!(base_path(&path), path.join("base.img"));
    assert_eq!(release_volume(&path, &kept).unwrap(), kept);
    assert_eq!(std::fs::read(&kept).unwrap()[..4096], pattern(1, 4096));
    assert!(!path.exists());
    let own = volume_at(dir.path());
    own.close();
    assert!(
        matches!(release_volume(&path, &kept), Err(Error::Exists { .. })),
        "what was kept before is not overwritten"
    );
    remove_volume(&path).unwrap();
    VolumeFiles::create(&path, &NewBase::Adopt { path: kept.clone() }, &new_files(), ANYWHERE).unwrap().close();
    assert_eq!(release_volume(&path, &dir.path().join("other.img")).unwrap(), kept);
    assert!(kept.exists() && !path.exists());
}

#[test]
fn more_slots_than_open_descriptors_are_usable() {
    let dir = tempdir();
    let files = volume_at(dir.path());
    let mut shard = Shard::new(RingOptions::default());
    let slots = OPEN_SLOTS_MAX as u32 + 10;
    for slot in (1..=slots).map(Slot) {
        shard.done(&files, DiskOp::Prepare { slot, len: 4096 });
        shard.write(&files, FileRef::Log(slot), 0, pattern(u64::from(slot.0), 4096));
    }
    for slot in (1..=slots).map(Slot) {
        assert_eq!(shard.read(&files, FileRef::Log(slot), 0, 4096), pattern(u64::from(slot.0), 4096));
    }
    assert_eq!(files.slots().unwrap().len(), slots as usize);
}

#[test]
fn an_inspected_volume_cannot_be_written() {
    let dir = tempdir();
    let path = volume_at(dir.path()).dir().to_owned();
    let files = VolumeFiles::inspect(&path, ANYWHERE).unwrap();
    let write = DiskOp::Write { file: FileRef::Base, offset: 0, bufs: vec![pattern(1, 4096)], durable: false };
    assert!(Shard::new(RingOptions::default()).run(&files, write).is_err());
    assert_eq!(files.read_at(FileRef::Base, 0, 4096).unwrap(), vec![0; 4096]);
}
