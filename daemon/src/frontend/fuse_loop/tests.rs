//! The frontend against the real kernel: FUSE mounts, loop devices and file systems on them. All of it needs root.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tidemark_core::types::ByteRange;

use super::loop_device::LoopDevice;
use super::*;

const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;

/// What the volume saw.
#[derive(Default)]
struct Counts {
    writes: AtomicU64,
    flushes: AtomicU64,
    zeroed_bytes: AtomicU64,
    discarded_bytes: AtomicU64,
}

impl Counts {
    fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }
}

/// A volume in memory, on a thread of its own, that keeps only the pages that were written.
struct MemoryVolume {
    size: u64,
    pages: HashMap<u64, Box<[u8; PAGE]>>,
    counts: Arc<Counts>,
}

impl MemoryVolume {
    fn answer(&mut self, request: Request) -> Result<ReplyData, RequestError> {
        match request {
            Request::Read { range } => Ok(self.read(range)),
            Request::Write { range, data, .. } => {
                self.counts.writes.fetch_add(1, Ordering::SeqCst);
                self.write(range, &data)
            }
            Request::Zero { range, discard, .. } => {
                let counter = if discard { &self.counts.discarded_bytes } else { &self.counts.zeroed_bytes };
                counter.fetch_add(range.len, Ordering::SeqCst);
                self.zero(range)
            }
            Request::Flush => {
                self.counts.flushes.fetch_add(1, Ordering::SeqCst);
                Ok(Vec::new())
            }
        }
    }

    /// Two pieces where possible: the frontend has to join them.
    fn read(&self, range: ByteRange) -> ReplyData {
        let mut all = vec![0; range.len as usize];
        self.each_part(range, |page, start, at, len| {
            if let Some(page) = self.pages.get(&page) {
                all[at..at + len].copy_from_slice(&page[start..start + len]);
            }
        });
        let mut first = Bytes::from(all);
        let second = first.split_off(first.len() / 2);
        vec![first, second]
    }

    fn write(&mut self, range: ByteRange, data: &[u8]) -> Result<ReplyData, RequestError> {
        if range.end() > self.size || range.len != data.len() as u64 {
            return Err(RequestError::Invalid);
        }
        let mut parts = Vec::new();
        self.each_part(range, |page, start, at, len| parts.push((page, start, at, len)));
        for (page, start, at, len) in parts {
            let page = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            page[start..start + len].copy_from_slice(&data[at..at + len]);
        }
        Ok(Vec::new())
    }

    fn zero(&mut self, range: ByteRange) -> Result<ReplyData, RequestError> {
        let mut parts = Vec::new();
        self.each_part(range, |page, start, _, len| parts.push((page, start, len)));
        for (page, start, len) in parts {
            if len == PAGE {
                self.pages.remove(&page);
            } else if let Some(page) = self.pages.get_mut(&page) {
                page[start..start + len].fill(0);
            }
        }
        Ok(Vec::new())
    }

    fn each_part(&self, range: ByteRange, mut part: impl FnMut(u64, usize, usize, usize)) {
        let mut offset = range.offset;
        while offset < range.end() {
            let start = offset as usize % PAGE;
            let len = (PAGE - start).min((range.end() - offset) as usize);
            part(offset / PAGE as u64, start, (offset - range.offset) as usize, len);
            offset += len as u64;
        }
    }
}

struct MemoryRemote(Sender<(Request, RemoteCompletion)>);

impl MemoryRemote {
    fn start(size: u64) -> (Box<dyn Remote>, Arc<Counts>) {
        let (sender, receiver) = channel::<(Request, RemoteCompletion)>();
        let counts = Arc::new(Counts::default());
        let mut volume = MemoryVolume { size, pages: HashMap::new(), counts: Arc::clone(&counts) };
        thread::spawn(move || {
            while let Ok((request, done)) = receiver.recv() {
                done(volume.answer(request));
            }
        });
        (Box::new(Self(sender)), counts)
    }
}

impl Remote for MemoryRemote {
    fn submit(&self, request: Request, done: RemoteCompletion) {
        self.0.send((request, done)).expect("the volume runs");
    }
}

/// A volume that never answers.
struct SilentRemote(Mutex<Vec<RemoteCompletion>>);

impl Remote for SilentRemote {
    fn submit(&self, _: Request, done: RemoteCompletion) {
        self.0.lock().expect("lock").push(done);
    }
}

/// An attached volume and its directories. Whatever happens, mounts and devices go.
struct Site {
    device: FuseLoop,
    counts: Arc<Counts>,
    dir: tempfile::TempDir,
}

impl Site {
    fn attach(size: u64) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (remote, counts) = MemoryRemote::start(size);
        let device = FuseLoop::attach(params(dir.path(), size, remote)).expect("attached");
        Self { device, counts, dir }
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let device = self.device.device().to_str().expect("device path");
        run(program, &[arguments, &[device]].concat());
    }

    fn mount(&self, kind: &str) -> Mounted {
        let point = self.dir.path().join("mnt");
        fs::create_dir_all(&point).expect("mount point");
        mount(Some(self.device.device()), &point, Some(kind), MsFlags::empty(), None::<&str>).expect("mounted");
        Mounted(point)
    }

    fn open(&self, flags: i32) -> File {
        let device = self.device.device();
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(device).expect("device opens")
    }
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if umount2(&self.0, MntFlags::empty()).is_err() {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }
}

fn params(dir: &Path, size: u64, remote: Box<dyn Remote>) -> AttachParams {
    let (run_dir, dev_dir) = (dir.join("run"), dir.join("dev"));
    AttachParams { volume: "data".into(), size, read_only: false, run_dir, dev_dir, remote }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// True, with a word about it, where these tests cannot run.
fn is_unprivileged() -> bool {
    let unprivileged = !nix::unistd::geteuid().is_root();
    if unprivileged {
        eprintln!("skipped: needs root");
    }
    unprivileged
}

/// A buffer that direct I/O accepts, filled with `byte`.
fn direct_buffer(len: usize, byte: u8) -> Bytes {
    transfer::aligned_copy(&vec![byte; len])
}

fn file_system_works(kind: &str, size: u64, mkfs: &[&str]) {
    if is_unprivileged() {
        return;
    }
    let site = Site::attach(size);
    site.run(&format!("mkfs.{kind}"), mkfs);
    let content: Vec<u8> = (0..3 * MIB as u32 / 4).flat_map(u32::to_le_bytes).collect();
    {
        let mounted = site.mount(kind);
        fs::write(mounted.0.join("file"), &content).expect("written");
        let before = site.counts.flushes();
        File::open(mounted.0.join("file")).expect("opened").sync_all().expect("synced");
        assert!(site.counts.flushes() > before, "an fsync of the file system must reach the volume");
    }
    {
        let mounted = site.mount(kind);
        assert!(fs::read(mounted.0.join("file")).expect("read") == content, "the content survives the remount");
        fs::remove_file(mounted.0.join("file")).expect("removed");
        nix::unistd::syncfs(File::open(&mounted.0).expect("root")).expect("synced");
        let before = site.counts.discarded_bytes.load(Ordering::SeqCst);
        run("fstrim", &[mounted.0.to_str().expect("path")]);
        let discarded = site.counts.discarded_bytes.load(Ordering::SeqCst) - before;
        assert!(discarded >= 2 * MIB, "{discarded} bytes discarded");
    }
}

#[test]
fn ext4_lives_on_an_attached_volume() {
    file_system_works("ext4", 64 * MIB, &["-q", "-E", "nodiscard"]);
}

#[test]
fn xfs_lives_on_an_attached_volume() {
    file_system_works("xfs", 320 * MIB, &["-q", "-K"]);
}

#[test]
fn btrfs_lives_on_an_attached_volume() {
    file_system_works("btrfs", 256 * MIB, &["-q", "-K"]);
}

#[test]
fn single_sectors_are_written_and_read_back() {
    if is_unprivileged() {
        return;
    }
    let site = Site::attach(4 * MIB);
    let device = site.open(libc::O_DIRECT);
    for sector in [0_u64, 3, 8190] {
        device.write_all_at(&direct_buffer(512, sector as u8 + 1), sector * 512).expect("sector written");
    }
    for sector in [0_u64, 3, 8190] {
        let mut whole = direct_buffer(PAGE, 0).try_into_mut().expect("only owner");
        device.read_exact_at(&mut whole, sector / 8 * PAGE as u64).expect("block read");
        let at = (sector % 8) as usize * 512;
        assert_eq!(whole[at..at + 512], [sector as u8 + 1; 512]);
    }
    assert_eq!(site.counts.writes.load(Ordering::SeqCst), 3);
}

#[test]
fn the_file_itself_refuses_unaligned_and_foreign_calls() {
    if is_unprivileged() {
        return;
    }
    let site = Site::attach(4 * MIB);
    let file = OpenOptions::new().read(true).write(true).open(&site.device.file).expect("file opens");
    let errno = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    assert_eq!(errno(file.write_all_at(&[1; 100], 0)), Some(libc::EINVAL));
    assert_eq!(errno(file.write_all_at(&[1; 512], 7)), Some(libc::EINVAL));
    assert_eq!(errno(file.write_all_at(&[1; 512], 4 * MIB)), Some(libc::ENOSPC));
    assert_eq!(errno(file.set_len(MIB)), Some(libc::EPERM));
    assert_eq!(file.read_at(&mut [0; 512], 4 * MIB).expect("end of file"), 0);
}

#[test]
fn write_zeroes_and_discard_arrive_as_what_they_are() {
    if is_unprivileged() {
        return;
    }
    let site = Site::attach(4 * MIB);
    let device = site.open(libc::O_DIRECT);
    device.write_all_at(&direct_buffer(MIB as usize, 9), 0).expect("written");
    site.run("blkdiscard", &["--offset", "4096", "--length", "8192"]);
    assert_eq!(site.counts.discarded_bytes.load(Ordering::SeqCst), 8192);
    site.run("blkdiscard", &["--zeroout", "--offset", "65536", "--length", "4608"]);
    let mut read = direct_buffer(MIB as usize, 1).try_into_mut().expect("only owner");
    device.read_exact_at(&mut read, 0).expect("read");
    assert!(read[4096..12288].iter().chain(&read[65536..70144]).all(|byte| *byte == 0));
    assert!(read[..4096].iter().chain(&read[70144..]).all(|byte| *byte == 9));
}

#[test]
fn a_direct_fsync_of_the_device_is_a_flush_each_time() {
    if is_unprivileged() {
        return;
    }
    let site = Site::attach(4 * MIB);
    let device = site.open(libc::O_DIRECT);
    for round in 1..=3 {
        device.write_all_at(&direct_buffer(PAGE, round), 0).expect("written");
        let before = site.counts.flushes();
        device.sync_all().expect("synced");
        assert!(site.counts.flushes() > before, "round {round}");
    }
}

#[test]
fn a_buffered_loop_device_is_refused() {
    if is_unprivileged() {
        return;
    }
    // ramfs knows no direct I/O, so the driver falls back to the page cache without a word.
    let dir = tempfile::tempdir().expect("temporary directory");
    mount(Some("none"), dir.path(), Some("ramfs"), MsFlags::empty(), None::<&str>).expect("ramfs");
    let _mounted = Mounted(dir.path().to_owned());
    let path = dir.path().join("file");
    let backing = OpenOptions::new().create_new(true).read(true).write(true).open(&path).expect("file");
    backing.set_len(4 * MIB).expect("sized");
    let refused = LoopDevice::bind(&backing, "tidemark-test", false);
    assert!(matches!(refused, Err(LoopError::Buffered)), "{refused:?}");
    assert!(!bound_files().iter().any(|file| file.starts_with(dir.path())), "nothing stays bound");
}

#[test]
fn detach_is_refused_while_mounted_and_the_device_goes_on() {
    if is_unprivileged() {
        return;
    }
    let mut site = Site::attach(64 * MIB);
    site.run("mkfs.ext4", &["-q"]);
    {
        let mounted = site.mount("ext4");
        let refused = site.device.detach(false);
        assert!(matches!(refused, Err(DetachError::Loop(LoopError::Busy { .. }))), "{refused:?}");
        fs::write(mounted.0.join("file"), b"still works").expect("written");
        nix::unistd::syncfs(File::open(&mounted.0).expect("root")).expect("synced");
    }
    site.device.detach(false).expect("detached once unmounted");
    assert!(nothing_left(&site));
    site.device.detach(false).expect("a second detach finds nothing to do");
}

#[test]
fn detach_is_refused_while_a_process_has_the_device_open() {
    if is_unprivileged() {
        return;
    }
    let mut site = Site::attach(4 * MIB);
    let open = site.open(0);
    let refused = site.device.detach(false);
    assert!(matches!(refused, Err(DetachError::Loop(LoopError::Busy { .. }))), "{refused:?}");
    open.write_all_at(&[1; PAGE], 0).expect("still works");
    drop(open);
    assert!(site.device.device.is_bound(), "the last close must not release the device");
    let writes = site.counts.writes.load(Ordering::SeqCst);
    assert!(writes > 0, "the last close wrote the page out");
    site.device.detach(false).expect("detached once closed");
    assert!(nothing_left(&site));
}

#[test]
fn cached_writes_reach_the_volume_before_a_polite_detach() {
    if is_unprivileged() {
        return;
    }
    let mut site = Site::attach(4 * MIB);
    site.open(0).write_all_at(&[1; PAGE], 0).expect("cached write");
    site.device.detach(false).expect("detached");
    assert_eq!(site.counts.writes.load(Ordering::SeqCst), 1);
    assert!(site.counts.flushes() >= 1);
}

#[test]
fn a_forced_detach_ends_a_volume_that_does_not_answer() {
    if is_unprivileged() {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let silent = Box::new(SilentRemote(Mutex::new(Vec::new())));
    let mut device = FuseLoop::attach(params(dir.path(), 4 * MIB, silent)).expect("attached");
    let path = device.device().to_owned();
    let reader = thread::spawn(move || {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        file.read_exact_at(&mut direct_buffer(PAGE, 0).try_into_mut().expect("only owner"), 0)
    });
    while !reader.is_finished() && reads_in_flight(device.device()) == 0 {
        thread::yield_now();
    }
    device.detach(true).expect("forced");
    assert!(reader.join().expect("no panic").is_err(), "the read fails instead of waiting");
    assert!(!device.link().exists() && !device.mount.dir().exists());
}

/// Waits until `count` reads are there, then answers all of them, the last one first.
struct ReversingRemote {
    count: usize,
    held: Mutex<Vec<(ByteRange, RemoteCompletion)>>,
}

impl Remote for ReversingRemote {
    fn submit(&self, request: Request, done: RemoteCompletion) {
        let Request::Read { range } = request else { return done(Ok(Vec::new())) };
        let mut held = self.held.lock().expect("lock");
        held.push((range, done));
        if held.len() == self.count {
            while let Some((range, done)) = held.pop() {
                done(Ok(vec![vec![(range.offset / PAGE as u64) as u8; range.len as usize].into()]));
            }
        }
    }
}

#[test]
fn requests_are_in_flight_together_and_answered_in_any_order() {
    if is_unprivileged() {
        return;
    }
    const READERS: u64 = 8;
    let dir = tempfile::tempdir().expect("temporary directory");
    let remote = Box::new(ReversingRemote { count: READERS as usize, held: Mutex::default() });
    let device = FuseLoop::attach(params(dir.path(), 4 * MIB, remote)).expect("attached");
    let readers: Vec<_> = (1..=READERS)
        .map(|page| {
            let path = device.device().to_owned();
            thread::spawn(move || {
                let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("opens");
                let mut buffer = direct_buffer(PAGE, 0).try_into_mut().expect("only owner");
                file.read_exact_at(&mut buffer, page * PAGE as u64).expect("read");
                assert!(buffer.iter().all(|byte| *byte == page as u8));
            })
        })
        .collect();
    readers.into_iter().for_each(|reader| reader.join().expect("each reader got its own page"));
}

#[test]
fn a_volume_that_does_not_answer_can_be_attached() {
    if is_unprivileged() {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let silent = Box::new(SilentRemote(Mutex::new(Vec::new())));
    FuseLoop::attach(params(dir.path(), 4 * MIB, silent)).expect("attached").detach(true).expect("forced");
}

fn reads_in_flight(device: &Path) -> u64 {
    let path = Path::new("/sys/block").join(device.file_name().expect("name")).join("inflight");
    let text = fs::read_to_string(path).expect("inflight");
    text.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a number")
}

#[test]
fn a_resized_volume_is_a_resized_device() {
    if is_unprivileged() {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let (remote, _) = MemoryRemote::start(8 * MIB);
    let device = FuseLoop::attach(params(dir.path(), 4 * MIB, remote)).expect("attached");
    assert_eq!(sectors(device.device()), 8192);
    for mib in [8, 2] {
        device.resize(mib * MIB).expect("resized");
        assert_eq!(sectors(device.device()), mib * 2048);
    }
    assert!(matches!(device.resize(1000), Err(ResizeError::Size { size: 1000 })));
}

fn sectors(device: &Path) -> u64 {
    let size = Path::new("/sys/block").join(device.file_name().expect("name")).join("size");
    fs::read_to_string(size).expect("size").trim().parse().expect("a number")
}

#[test]
fn bad_names_and_sizes_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let attach = |volume: &str, size| {
        let (remote, _) = MemoryRemote::start(4 * MIB);
        FuseLoop::attach(AttachParams { volume: volume.into(), ..params(dir.path(), size, remote) })
    };
    for name in ["", ".", "..", "a/b", "nul\0", &"n".repeat(256)] {
        assert!(matches!(attach(name, 4 * MIB), Err(AttachError::Name { .. })), "{name:?}");
    }
    for size in [0, 511, 1000, u64::MAX - 511] {
        assert!(matches!(attach("data", size), Err(AttachError::Size { .. })), "{size}");
    }
    assert_eq!(fs::read_dir(dir.path()).expect("directory").count(), 0);
}

#[test]
fn remains_of_a_dead_agent_are_cleared() {
    if is_unprivileged() {
        return;
    }
    let site = Site::attach(64 * MIB);
    site.run("mkfs.ext4", &["-q"]);
    let mounted = site.mount("ext4");
    // What the death of the process does: the connection ends, everything else stays.
    site.device.mount.abort();
    let (run_dir, dev_dir) = (site.dir.path().join("run"), site.dir.path().join("dev"));
    let first = cleanup_stale(&run_dir, &dev_dir).expect("cleared");
    assert_eq!(first.lingering, [site.device.device()]);
    assert_eq!(first.unmounted, [site.device.mount.dir()]);
    assert_eq!(first.unlinked, [site.device.link()]);
    drop(mounted);
    assert!(!bound_files().iter().any(|file| file.starts_with(site.dir.path())));
    assert_eq!(cleanup_stale(&run_dir, &dev_dir).expect("nothing to do"), Cleanup::default());
    let (remote, _) = MemoryRemote::start(4 * MIB);
    FuseLoop::attach(params(site.dir.path(), 4 * MIB, remote))
        .expect("attached again")
        .detach(false)
        .expect("detached");
}

#[test]
fn an_unused_device_of_a_dead_agent_is_released_at_once() {
    if is_unprivileged() {
        return;
    }
    let site = Site::attach(4 * MIB);
    site.device.mount.abort();
    let done = cleanup_stale(&site.dir.path().join("run"), &site.dir.path().join("dev")).expect("cleared");
    assert_eq!((done.released.as_slice(), done.lingering.len()), ([site.device.device().to_owned()].as_slice(), 0));
    assert!(nothing_left(&site));
}

#[test]
fn other_agents_devices_are_left_alone() {
    if is_unprivileged() {
        return;
    }
    let (ours, theirs) = (Site::attach(4 * MIB), Site::attach(4 * MIB));
    cleanup_stale(&ours.dir.path().join("run"), &theirs.dir.path().join("dev")).expect("cleared");
    theirs.open(libc::O_DIRECT).write_all_at(&direct_buffer(512, 1), 0).expect("still works");
    assert!(theirs.device.link().exists());
}

fn nothing_left(site: &Site) -> bool {
    let bound = bound_files().iter().any(|file| file.starts_with(site.dir.path()));
    !bound && !site.device.link().exists() && !site.device.mount.dir().exists()
}

fn bound_files() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/block").expect("sysfs").flatten();
    let file = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).ok();
    entries.filter_map(file).map(|text| PathBuf::from(text.trim_end())).collect()
}
