//! The volatile disk through the kernel. All of it needs root and `/dev/fuse`.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::unistd::{Whence, lseek64};

use super::*;
use crate::dice::Dice;

const SECTOR: usize = 512;

/// A mounted disk in a directory of its own.
struct Setup {
    disk: VolatileDisk,
    dir: tempfile::TempDir,
}

impl Setup {
    fn new(names: Names) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let disk = VolatileDisk::mount(&dir.path().join("medium"), &dir.path().join("mnt"), names).expect("mounted");
        Self { disk, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    fn medium(&self) -> PathBuf {
        self.dir.path().join("medium")
    }

    fn open(&self, name: &str) -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.path(name)).expect("opened")
    }

    fn sync_dir(&self, name: &str) {
        File::open(self.path(name)).expect("directory").sync_all().expect("synced");
    }
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn is_unprivileged() -> bool {
    let unprivileged = !nix::unistd::geteuid().is_root();
    if unprivileged {
        eprintln!("skipped: needs root");
    }
    unprivileged
}

/// The versions a sector may have; the last one is what reads see.
type Versions = Vec<u8>;

/// Random writes and syncs on a file, and what each sector may be after a cut.
struct Model {
    name: String,
    sectors: Vec<Versions>,
}

impl Model {
    const SECTORS: usize = 24;

    fn new(setup: &Setup, name: String) -> Self {
        let file = setup.open(&name);
        file.set_len((Self::SECTORS * SECTOR) as u64).expect("sized");
        file.sync_all().expect("synced");
        Self { name, sectors: vec![vec![0]; Self::SECTORS] }
    }

    fn step(&mut self, file: &File, dice: &mut Dice, value: u8) {
        if dice.happens(0.15) {
            file.sync_data().expect("synced");
            self.sectors.iter_mut().for_each(|versions| *versions = versions.last().copied().into_iter().collect());
            return;
        }
        let first = dice.below(Self::SECTORS as u64) as usize;
        let count = 1 + dice.below((Self::SECTORS - first) as u64) as usize;
        file.write_all_at(&vec![value; count * SECTOR], (first * SECTOR) as u64).expect("written");
        self.sectors[first..first + count].iter_mut().for_each(|versions| versions.push(value));
    }

    /// Checks what survived, and goes on from there.
    fn check(&mut self, file: &File, seed: u64) {
        let mut content = vec![0; Self::SECTORS * SECTOR];
        file.read_exact_at(&mut content, 0).expect("read");
        for (index, (versions, sector)) in self.sectors.iter_mut().zip(content.chunks(SECTOR)).enumerate() {
            let value = sector[0];
            let place = format!("seed {seed}, {} sector {index}", self.name);
            assert!(sector.iter().all(|byte| *byte == value), "{place} is torn");
            assert!(versions.contains(&value), "{place} holds {value}, not one of {versions:?}");
            *versions = vec![value];
        }
    }
}

#[test]
fn after_each_cut_every_sector_holds_a_version_it_had_since_its_last_sync() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Strict);
    let mut models: Vec<_> = (0..3).map(|index| Model::new(&setup, format!("file{index}"))).collect();
    setup.sync_dir("");
    let mut dice = Dice::new(1);
    for seed in 0..60 {
        let files: Vec<_> = models.iter().map(|model| setup.open(&model.name)).collect();
        for value in 1..30 {
            let which = dice.below(3) as usize;
            models[which].step(&files[which], &mut dice, value);
        }
        setup.disk.cut(seed).expect("cut");
        assert_eq!(errno(files[0].read_at(&mut [0; SECTOR], 0)), Some(libc::EIO), "open files do not outlive a cut");
        for model in &mut models {
            model.check(&setup.open(&model.name), seed);
        }
    }
    let stats = setup.disk.stats();
    assert_eq!(stats.cuts, 60);
    assert!(stats.lost_sectors > 500 && stats.lost_sectors < stats.endangered_sectors, "{stats:?}");
}

/// Does `change` and a cut with many seeds on fresh disks; the outcomes that `observe` saw.
fn outcomes<T: Ord>(change: impl Fn(&Setup), observe: impl Fn(&Setup) -> T) -> BTreeSet<T> {
    let outcome = |seed| {
        let setup = Setup::new(Names::Strict);
        change(&setup);
        setup.disk.cut(seed).expect("cut");
        observe(&setup)
    };
    (0..24).map(outcome).collect()
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("directory")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn write_synced(setup: &Setup, name: &str, content: &[u8]) {
    let file = setup.open(name);
    file.write_all_at(content, 0).expect("written");
    file.sync_all().expect("synced");
}

#[test]
fn a_synced_file_can_lose_its_name_until_its_directory_is_synced() {
    if is_unprivileged() {
        return;
    }
    let seen = outcomes(|setup| write_synced(setup, "file", b"x"), |setup| fs::read(setup.path("file")).ok());
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [None, Some(b"x".to_vec())]);
    let synced = |setup: &Setup| {
        write_synced(setup, "file", b"x");
        setup.sync_dir("");
    };
    let seen = outcomes(synced, |setup| fs::read(setup.path("file")).ok());
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [Some(b"x".to_vec())]);
}

#[test]
fn a_replacing_rename_leaves_the_old_or_the_new_content_whole() {
    if is_unprivileged() {
        return;
    }
    let replace = |setup: &Setup| {
        write_synced(setup, "file", b"old");
        setup.sync_dir("");
        write_synced(setup, "file.new", b"new");
        fs::rename(setup.path("file.new"), setup.path("file")).expect("renamed");
    };
    let seen = outcomes(replace, |setup| fs::read(setup.path("file")).expect("never missing"));
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [b"new".to_vec(), b"old".to_vec()]);
}

#[test]
fn a_removal_can_be_undone_by_a_cut_until_it_is_synced() {
    if is_unprivileged() {
        return;
    }
    let remove = |setup: &Setup| {
        write_synced(setup, "file", b"x");
        setup.sync_dir("");
        fs::remove_file(setup.path("file")).expect("removed");
        assert!(!setup.path("file").exists());
    };
    assert_eq!(outcomes(remove, |setup| setup.path("file").exists()).len(), 2);
    let synced = |setup: &Setup| {
        remove(setup);
        setup.sync_dir("");
    };
    assert_eq!(outcomes(synced, |setup| setup.path("file").exists()).into_iter().collect::<Vec<_>>(), [false]);
}

#[test]
fn a_directory_made_aside_and_renamed_into_place_appears_whole_or_not_at_all() {
    if is_unprivileged() {
        return;
    }
    let make = |setup: &Setup| {
        fs::create_dir(setup.path("aside")).expect("made");
        write_synced(setup, "aside/one", b"1");
        write_synced(setup, "aside/two", b"2");
        setup.sync_dir("aside");
        fs::rename(setup.path("aside"), setup.path("final")).expect("renamed");
    };
    let seen = outcomes(make, |setup| setup.path("final").exists().then(|| listing(&setup.path("final"))));
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [None, Some(vec!["one".to_owned(), "two".to_owned()])]);
    let synced = |setup: &Setup| {
        make(setup);
        setup.sync_dir("");
    };
    let seen = outcomes(synced, |setup| (listing(&setup.path("")), fs::read(setup.path("final/two")).expect("there")));
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(vec!["final".to_owned()], b"2".to_vec())]);
}

#[test]
fn a_symbolic_link_is_lost_or_whole() {
    if is_unprivileged() {
        return;
    }
    let link = |setup: &Setup| std::os::unix::fs::symlink("/dev/null", setup.path("link")).expect("linked");
    let seen = outcomes(link, |setup| fs::read_link(setup.path("link")).ok());
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [None, Some(PathBuf::from("/dev/null"))]);
}

#[test]
fn durable_names_are_never_lost() {
    if is_unprivileged() {
        return;
    }
    for seed in 0..12 {
        let setup = Setup::new(Names::Durable);
        fs::create_dir(setup.path("dir")).expect("made");
        write_synced(&setup, "dir/a", b"a");
        fs::rename(setup.path("dir/a"), setup.path("dir/b")).expect("renamed");
        setup.disk.cut(seed).expect("cut");
        assert_eq!(listing(&setup.path("dir")), ["b"]);
    }
}

#[test]
fn the_medium_holds_what_is_durable_and_an_orderly_end_makes_everything_so() {
    if is_unprivileged() {
        return;
    }
    let Setup { disk, dir } = Setup::new(Names::Strict);
    fs::create_dir(disk.path().join("dir")).expect("made");
    fs::write(disk.path().join("dir/file"), b"content").expect("written");
    assert!(!dir.path().join("medium/dir").exists());
    disk.unmount().expect("unmounted");
    assert_eq!(fs::read(dir.path().join("medium/dir/file")).expect("on the medium"), b"content");
    assert_eq!(listing(&dir.path().join("medium")), ["dir"]);
}

#[test]
fn a_disk_that_dies_without_a_word_keeps_only_what_was_synced() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Durable);
    write_synced(&setup, "file", b"first");
    setup.open("file").write_all_at(b"other", 0).expect("written");
    let (medium, Setup { disk, dir: _dir }) = (setup.medium(), setup);
    drop(disk);
    assert_eq!(fs::read(medium.join("file")).expect("on the medium"), b"first");
}

#[test]
fn fallocate_and_holes_work() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Strict);
    let file = setup.open("file");
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).expect("reserved");
    assert_eq!(file.metadata().expect("metadata").len(), 1 << 20);
    file.write_all_at(&[7; 64 << 10], 0).expect("written");
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, 4096, 8192).expect("punched");
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE | keep, 32768, 512).expect("zeroed");
    assert_eq!(lseek64(&file, 0, Whence::SeekHole), Ok(4096));
    assert_eq!(lseek64(&file, 4096, Whence::SeekData), Ok(12288));
    let check = |file: &File| {
        let mut content = vec![1; 64 << 10];
        file.read_exact_at(&mut content, 0).expect("read");
        let is_zero = |at: usize| (4096..12288).contains(&at) || (32768..33280).contains(&at);
        assert!(content.iter().enumerate().all(|(at, byte)| *byte == if is_zero(at) { 0 } else { 7 }));
    };
    check(&file);
    file.sync_all().expect("synced");
    setup.sync_dir("");
    setup.disk.cut(1).expect("cut");
    check(&setup.open("file"));
}

#[test]
fn locks_are_those_of_the_kernel() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Strict);
    let lock =
        Flock::lock(setup.open("lock"), FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).expect("locked");
    let second = Flock::lock(setup.open("lock"), FlockArg::LockExclusiveNonblock);
    assert_eq!(second.map_err(|(_, errno)| errno).err(), Some(nix::errno::Errno::EWOULDBLOCK));
    drop(lock);
    assert!(Flock::lock(setup.open("lock"), FlockArg::LockExclusiveNonblock).is_ok());
}

#[test]
fn a_slow_sync_covers_what_was_written_before_it_and_not_what_came_meanwhile() {
    if is_unprivileged() {
        return;
    }
    let seen = outcomes(
        |setup| {
            let file = setup.open("file");
            setup.sync_dir("");
            setup.disk.set_faults(|faults| faults.sync_delay = std::time::Duration::from_millis(100));
            file.write_all_at(&[1; SECTOR], 0).expect("written");
            std::thread::scope(|scope| {
                let sync = scope.spawn(|| file.sync_data());
                std::thread::sleep(std::time::Duration::from_millis(40));
                file.write_all_at(&[2; SECTOR], SECTOR as u64).expect("written");
                sync.join().expect("no panic").expect("synced");
            });
        },
        |setup| fs::read(setup.path("file")).expect("there"),
    );
    assert!(seen.iter().all(|content| content[..SECTOR] == [1; SECTOR]), "what was written before is durable");
    assert!(seen.iter().any(|content| content.len() == SECTOR), "what came meanwhile can be lost");
}

#[test]
fn injected_errors_hit_writes_and_syncs() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Durable);
    let file = setup.open("file");
    file.write_all_at(&[1; SECTOR], 0).expect("written");
    file.sync_all().expect("synced");
    file.write_all_at(&[2; SECTOR], 0).expect("written");
    setup.disk.set_faults(|faults| (faults.failing_writes, faults.failing_syncs) = (true, true));
    assert_eq!(errno(file.write_all_at(&[3; SECTOR], 0)), Some(libc::EIO));
    assert_eq!(errno(file.sync_all()), Some(libc::EIO));
    setup.disk.set_faults(|faults| *faults = Faults::default());
    file.sync_all().expect("a later sync succeeds without the data that the failed one gave up");
    assert_eq!(fs::read(setup.medium().join("file")).expect("medium"), [1; SECTOR]);
    assert_eq!(setup.disk.stats().injected, 2);
}

#[test]
fn a_full_disk_refuses_growth_and_takes_what_has_its_place() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Durable);
    let file = setup.open("file");
    file.write_all_at(&[1; 8192], 0).expect("written");
    setup.disk.set_faults(|faults| faults.space = Some(12288));
    file.write_all_at(&[2; 8192], 0).expect("overwritten");
    file.write_all_at(&[2; 4096], 8192).expect("the last block");
    assert_eq!(errno(file.write_all_at(&[2; 1], 12288)), Some(libc::ENOSPC));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).err(), Some(nix::errno::Errno::ENOSPC));
    assert_eq!(nix::sys::statvfs::statvfs(setup.disk.path()).expect("statvfs").blocks_available(), 0);
    file.set_len(4096).expect("shortened");
    setup.open("other").write_all_at(&[3; 8192], 0).expect("there is space again");
}

#[test]
fn a_hung_disk_holds_requests_until_it_goes_on() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Durable);
    let file = setup.open("file");
    setup.disk.hang(true);
    let writer = std::thread::spawn(move || file.write_all_at(&[1; SECTOR], 0));
    while setup.disk.stats().held_requests == 0 {
        std::thread::yield_now();
    }
    assert!(!writer.is_finished());
    assert_eq!(fs::metadata(setup.path("file")).expect("attributes come from memory").len(), 0);
    setup.disk.hang(false);
    writer.join().expect("no panic").expect("written");
    assert_eq!(fs::metadata(setup.path("file")).expect("metadata").len(), SECTOR as u64);
}

#[test]
fn requests_that_hang_at_a_cut_fail() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Durable);
    let file = setup.open("file");
    file.write_all_at(&[1; SECTOR], 0).expect("written");
    setup.disk.hang(true);
    let syncer = std::thread::spawn(move || file.sync_all());
    while setup.disk.stats().held_requests == 0 {
        std::thread::yield_now();
    }
    setup.disk.cut(0).expect("cut");
    assert_eq!(errno(syncer.join().expect("no panic")), Some(libc::EIO));
}

#[test]
fn a_write_with_dsync_is_durable_when_it_completes() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Durable);
    let file = OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_DSYNC).open(setup.path("file"));
    file.expect("opened").write_all_at(&[5; SECTOR], 0).expect("written");
    assert_eq!(fs::read(setup.medium().join("file")).expect("medium"), [5; SECTOR]);
}

/// The agents' own way to the disk: `io_uring` with `O_DIRECT`, many requests in flight, syncs in between.
#[test]
fn direct_io_uring_works_verified_and_fast_enough() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Strict);
    let report = setup.dir.path().join("report");
    let file = format!("--filename={}", setup.path("file").display());
    let output = format!("--output={}", report.display());
    let mut fio = Command::new("fio");
    fio.args([
        "--name=job",
        "--ioengine=io_uring",
        "--direct=1",
        "--rw=randwrite",
        "--bs=4k",
        "--size=32m",
        "--iodepth=16",
    ]);
    fio.args([
        "--fsync=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--output-format=json",
        &file,
        &output,
    ]);
    let status = match fio.status() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return eprintln!("skipped: needs fio"),
        status => status.expect("fio"),
    };
    let text = fs::read_to_string(&report).unwrap_or_default();
    assert!(status.success(), "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).expect("json");
    let iops = report["jobs"][0]["write"]["iops"].as_f64().expect("iops");
    println!("{iops:.0} writes/s");
    assert!(setup.disk.stats().syncs >= 8192 / 32 - 1);
}

#[test]
fn commands_over_the_socket_do_what_the_library_does() {
    if is_unprivileged() {
        return;
    }
    let setup = Setup::new(Names::Durable);
    let socket = setup.dir.path().join("control");
    let server = setup.disk.serve_control(socket.clone()).expect("listening");
    write_synced(&setup, "file", b"x");
    let send = |command: &str| control::request(&socket, command);
    let stats: disk::Stats = serde_json::from_str(&send("stats").expect("stats")).expect("json");
    assert_eq!((stats.writes, stats.syncs), (1, 1));
    send("enospc on").expect("full");
    assert_eq!(errno(setup.open("other").write_all_at(&[1; 10], 0)), Some(libc::ENOSPC));
    send("enospc off").expect("not full");
    send("eio write").expect("failing");
    assert_eq!(errno(setup.open("other").write_all_at(&[1; 10], 0)), Some(libc::EIO));
    send("eio off").expect("not failing");
    send("cut 3").expect("cut");
    assert_eq!(fs::read(setup.path("file")).expect("survived"), b"x");
    let refused = send("explode").expect_err("no such command");
    assert!(refused.to_string().contains("no command"), "{refused}");
    send("quit").expect("quit");
    server.wait_for_quit();
}
