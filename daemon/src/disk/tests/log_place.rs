//! A log on another device is that volume's log or the volume is refused.

use std::fs;
use std::path::PathBuf;

use tidemark_core::types::VolumeId;

use super::*;
use crate::disk::files::{release_volume, remove_volume, volumes_in};

/// A pool, its logs, and one volume with its log among them.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempdir() };
        fs::create_dir(world.dir.path().join("pool")).unwrap();
        fs::create_dir(world.logs()).unwrap();
        world
    }

    fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs().join(name)
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.dir.path().join("pool").join(name)
    }

    fn create(&self, name: &str) -> Result<VolumeFiles, Error> {
        let log = NewLog { path: self.log(name), identity: format!("log of {name}\n") };
        let new = NewFiles { log: Some(log), ..new_files() };
        VolumeFiles::create(&self.volume(name), &image(BASE_BYTES), &new, ANYWHERE)
    }

    fn left(&self) -> (usize, usize) {
        let count = |dir: PathBuf| fs::read_dir(dir).unwrap().count();
        (count(self.dir.path().join("pool")), count(self.logs()))
    }
}

fn refused(opened: Result<VolumeFiles, Error>) -> String {
    opened.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn slots_and_footers_lie_where_the_logs_are_and_base_and_branches_do_not() {
    let world = World::new();
    let files = world.create("v").unwrap();
    let mut shard = Shard::new(RingOptions::default());
    shard.done(&files, DiskOp::Prepare { slot: Slot(1), len: 4096 });
    shard.write(&files, FileRef::Log(Slot(1)), 0, pattern(1, 4096));
    shard.done(&files, DiskOp::Replace { file: FileRef::Footer(1), data: vec![pattern(2, 100)] });
    shard.done(&files, DiskOp::Replace { file: FileRef::Branch(1), data: vec![pattern(3, 100)] });
    assert!(world.log("v").join("slot-000001.seg").is_file() && world.log("v").join("footer-000001").is_file());
    assert!(world.volume("v").join("branch/branch-0001").is_file());
    files.close();
    let files = VolumeFiles::open(&world.volume("v"), ANYWHERE).unwrap();
    assert_eq!(files.slots().unwrap(), [(Slot(1), 4096)]);
    assert_eq!(shard.read(&files, FileRef::Log(Slot(1)), 0, 4096), pattern(1, 4096));
}

#[test]
fn a_missing_log_and_an_empty_or_foreign_one_in_its_place_are_refused_by_name_and_left_alone() {
    let world = World::new();
    for name in ["v", "w"] {
        world.create(name).unwrap().close();
    }
    let away = world.dir.path().join("away");
    fs::rename(world.log("v"), &away).unwrap();
    let missing = refused(VolumeFiles::open(&world.volume("v"), ANYWHERE));
    assert!(missing.contains("logs/v is not there; is its device mounted?"), "{missing}");
    fs::create_dir(world.log("v")).unwrap();
    let foreign = "logs/v is not this volume's log";
    let empty = refused(VolumeFiles::open(&world.volume("v"), ANYWHERE));
    assert!(empty.contains(foreign), "{empty}");
    assert_eq!(fs::read_dir(world.log("v")).unwrap().count(), 0, "nothing was put there");
    fs::remove_dir(world.log("v")).unwrap();
    fs::rename(world.log("w"), world.log("v")).unwrap();
    for opened in [VolumeFiles::open(&world.volume("v"), ANYWHERE), VolumeFiles::inspect(&world.volume("v"), ANYWHERE)]
    {
        let others = refused(opened);
        assert!(others.contains(foreign), "{others}");
    }
    // Whoever moves a log may change the link.
    let link = world.volume("v").join("log");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&away, &link).unwrap();
    VolumeFiles::open(&world.volume("v"), ANYWHERE).unwrap();
    // A directory instead of the link is no log either.
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    let plain = refused(VolumeFiles::open(&world.volume("v"), ANYWHERE));
    assert!(plain.contains("is not this volume's log"), "{plain}");
}

#[test]
fn a_log_serves_one_opener() {
    let world = World::new();
    let files = world.create("v").unwrap();
    // Such as a copy of the volume's directory.
    let twin = world.volume("twin");
    fs::create_dir(&twin).unwrap();
    for entry in ["superblock", "config", "base.img", "log-identity"] {
        fs::copy(world.volume("v").join(entry), twin.join(entry)).unwrap();
    }
    fs::create_dir(twin.join("branch")).unwrap();
    std::os::unix::fs::symlink(world.log("v"), twin.join("log")).unwrap();
    assert!(matches!(VolumeFiles::open(&twin, ANYWHERE), Err(Error::InUse { .. })));
    files.close();
    VolumeFiles::open(&twin, ANYWHERE).unwrap();
}

#[test]
fn a_log_goes_with_its_volume_and_another_in_its_place_stays() {
    let world = World::new();
    for name in ["v", "w", "x"] {
        world.create(name).unwrap().close();
    }
    remove_volume(&world.volume("v")).unwrap();
    release_volume(&world.volume("w"), &world.volume("w.img")).unwrap();
    assert_eq!(world.left(), (2, 1), "an image, and a volume with its log");
    fs::write(world.log("x").join("identity"), "somebody's").unwrap();
    remove_volume(&world.volume("x")).unwrap();
    assert_eq!(world.left(), (1, 1), "what is not ours stays");
    // One whose log is away can be forgotten.
    world.create("y").unwrap().close();
    fs::remove_dir_all(world.log("y")).unwrap();
    remove_volume(&world.volume("y")).unwrap();
    assert_eq!(world.left(), (1, 1));
}

#[test]
fn what_a_crash_left_of_a_volume_goes_with_its_log() {
    let world = World::new();
    let id = VolumeId([3; 16]).to_string();
    for suffix in ["new", "gone"] {
        world.create(&id).unwrap().close();
        fs::rename(world.volume(&id), world.volume(&format!("{id}.{suffix}"))).unwrap();
        assert_eq!(volumes_in(&world.dir.path().join("pool")).unwrap(), []);
        assert_eq!(world.left(), (0, 0), "{suffix}");
    }
    // Before the log had its identity.
    world.create(&id).unwrap().close();
    fs::rename(world.volume(&id), world.volume(&format!("{id}.new"))).unwrap();
    fs::rename(world.log(&id).join("identity"), world.log(&id).join("identity.new")).unwrap();
    volumes_in(&world.dir.path().join("pool")).unwrap();
    assert_eq!(world.left(), (0, 0));
}

#[test]
fn a_place_for_logs_that_is_not_there_is_named_and_nothing_is_made() {
    let world = World::new();
    fs::remove_dir(world.logs()).unwrap();
    let said = refused(world.create("v"));
    assert!(said.contains("logs is not there") && said.contains("log_path"), "{said}");
    fs::create_dir(world.logs()).unwrap();
    assert_eq!(world.left(), (0, 0));
    fs::create_dir(world.log("v")).unwrap();
    fs::write(world.log("v").join("data"), "somebody's").unwrap();
    assert!(world.create("v").is_err(), "taken");
    assert_eq!(world.left(), (0, 1));
    assert!(world.log("v").join("data").exists(), "and left alone");
}
