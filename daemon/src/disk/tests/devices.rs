//! What needs a device or a file system of its own: full disks, loop devices, file systems without direct I/O. As root only.

use std::path::PathBuf;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tidemark_core::event::DiskError;
use tidemark_core::layout::Layout;
use tidemark_core::types::ByteRange;

use super::*;
use crate::disk::data_file::Channel;
use crate::disk::transfer::{Step, Transfer};

fn need_root() {
    assert!(nix::unistd::geteuid().is_root(), "this test mounts file systems and sets up loop devices: run it as root");
}

fn command(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A loop device over a file of `size` bytes.
struct Loop {
    device: PathBuf,
}

impl Loop {
    fn new(dir: &TempDir, size: u64, sector: u32) -> Self {
        need_root();
        let file = dir.path().join(format!("loop-{size}-{sector}"));
        std::fs::File::create(&file).unwrap().set_len(size).unwrap();
        let sector = sector.to_string();
        let device = command("losetup", &["--find", "--show", "--sector-size", &sector, file.to_str().unwrap()]);
        Self { device: device.into() }
    }

    fn base(&self) -> NewBase {
        NewBase::Adopt { path: self.device.clone() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// A mounted file system.
struct Mount {
    at: TempDir,
    _device: Option<Loop>,
}

impl Mount {
    fn tmpfs(size: &str) -> Self {
        need_root();
        let at = tempdir();
        mount(Some("tmpfs"), at.path(), Some("tmpfs"), MsFlags::empty(), Some(format!("size={size}").as_str()))
            .unwrap();
        Self { at, _device: None }
    }

    fn ext4(dir: &TempDir, size: u64) -> Self {
        let device = Loop::new(dir, size, 512);
        command("mkfs.ext4", &["-q", "-m", "0", device.device.to_str().unwrap()]);
        let at = tempdir();
        mount(Some(&device.device), at.path(), Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        Self { at, _device: Some(device) }
    }

    fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        umount2(self.at.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_file_system_without_direct_io_is_refused_by_default() {
    let memory = Mount::tmpfs("4m");
    let dir = memory.path().join("volume");
    let refused = VolumeFiles::create(&dir, &image(65536), &new_files(), FileOptions::default());
    assert!(matches!(refused, Err(Error::Buffered { .. })));
    assert!(!dir.exists());
    let files = VolumeFiles::create(&dir, &image(65536), &new_files(), ANYWHERE).unwrap();
    assert!(!files.is_direct());
}

#[test]
fn a_full_file_system_leaves_no_half_slot_and_recovers() {
    let dir = tempdir();
    for fs in [Mount::ext4(&dir, 16 << 20), Mount::tmpfs("8m")] {
        let files = volume_at(fs.path());
        let mut shard = Shard::new(RingOptions::default());
        let prepare = |len| DiskOp::Prepare { slot: Slot(1), len };
        assert_eq!(shard.run(&files, prepare(64 << 20)), Err(DiskError::NoSpace));
        assert_eq!(std::fs::read_dir(files.dir().join("log")).unwrap().count(), 0);
        shard.done(&files, prepare(2 << 20));
    }
}

#[test]
fn writing_to_a_full_base_is_no_space() {
    let dir = tempdir();
    for fs in [Mount::ext4(&dir, 16 << 20), Mount::tmpfs("4m")] {
        let path = fs.path().join("volume");
        let files = VolumeFiles::create(&path, &image(64 << 20), &new_files(), ANYWHERE).unwrap();
        let mut shard = Shard::new(RingOptions::default());
        let mut write = |at| {
            let bufs = vec![pattern(at, 1 << 20)];
            shard.run(&files, DiskOp::Write { file: FileRef::Base, offset: at << 20, bufs, durable: false })
        };
        let failed = (0..64).map(&mut write).find_map(Result::err);
        assert_eq!(failed, Some(DiskError::NoSpace));
        let replace = DiskOp::Replace { file: FileRef::Branch(1), data: vec![pattern(1, 1 << 20)] };
        assert_eq!(shard.run(&files, replace), Err(DiskError::NoSpace));
        assert_eq!(files.branches().unwrap(), []);
    }
}

#[test]
fn a_real_file_system_is_written_directly() {
    let dir = tempdir();
    let fs = Mount::ext4(&dir, 16 << 20);
    let files =
        VolumeFiles::create(&fs.path().join("volume"), &image(BASE_BYTES), &new_files(), FileOptions::default());
    let files = files.unwrap();
    assert!(files.is_direct());
    let mut shard = Shard::new(RingOptions::default());
    shard.write(&files, FileRef::Base, BASE_BYTES - 512, pattern(1, 512));
    assert_eq!(shard.read(&files, FileRef::Base, BASE_BYTES - 512, 512), pattern(1, 512));
}

#[test]
fn punched_space_is_given_back() {
    let dir = tempdir();
    let fs = Mount::ext4(&dir, 16 << 20);
    let files = volume_at(fs.path());
    let mut shard = Shard::new(RingOptions::default());
    shard.write(&files, FileRef::Base, 0, pattern(1, 1 << 20));
    shard.done(&files, DiskOp::Zero { file: FileRef::Base, offset: 0, len: 1 << 20, deallocate: true });
    let mapped = shard.run(&files, DiskOp::Map { range: ByteRange::new(0, 1 << 20) });
    assert_eq!(mapped, Ok(DiskDone::Mapped(vec![])));
}

#[test]
fn a_block_device_is_a_base_with_an_odd_end() {
    let dir = tempdir();
    let (pool, device) = (Mount::ext4(&dir, 16 << 20), Loop::new(&dir, BASE_BYTES, 512));
    let path = pool.path().join(OWN.to_string());
    let files = VolumeFiles::create(&path, &device.base(), &new_files(), FileOptions::default()).unwrap();
    assert!(files.is_direct(), "its node lies in a tmpfs, its bytes do not");
    assert!(files.base_infos()[0].is_device && files.base_size() == BASE_BYTES);
    assert_eq!(files.base_infos()[0].identity, probe_base(&device.device).unwrap().identity);
    let mut shard = Shard::new(RingOptions::default());
    let data = pattern(1, BASE_BYTES as usize);
    shard.write(&files, FileRef::Base, 0, data.clone());
    for deallocate in [false, true] {
        let offset = 65536 * (1 + u64::from(deallocate));
        shard.done(&files, DiskOp::Zero { file: FileRef::Base, offset, len: 65536, deallocate });
    }
    shard.done(&files, DiskOp::Sync { files: vec![FileRef::Base] });
    let mut expected = data.to_vec();
    expected[65536..3 * 65536].fill(0);
    assert!(shard.read(&files, FileRef::Base, 0, BASE_BYTES as u32) == expected);
    let Ok(DiskDone::Mapped(ranges)) = shard.run(&files, DiskOp::Map { range: ByteRange::new(0, BASE_BYTES) }) else {
        panic!("a device is mapped")
    };
    assert_eq!(ranges.last().map(|range| range.end()), Some(BASE_BYTES));
    assert!(matches!(files.make_room(&Layout::one(OWN, 2 * BASE_BYTES)), Err(Error::Resize { .. })));
}

#[test]
fn a_device_with_large_sectors_is_a_base() {
    let dir = tempdir();
    let device = Loop::new(&dir, 1 << 20, 4096);
    let files = VolumeFiles::create(&dir.path().join("volume"), &device.base(), &new_files(), ANYWHERE).unwrap();
    let mut shard = Shard::new(RingOptions::default());
    let bufs = vec![pattern(1, 1000), pattern(2, 3096), placed(&pattern(3, 4096), 512)];
    let whole = Bytes::from(bufs.concat());
    shard.done(&files, DiskOp::Write { file: FileRef::Base, offset: 4096, bufs, durable: false });
    assert_eq!(shard.read(&files, FileRef::Base, 4096, 8192), whole);
    shard.write(&files, FileRef::Base, 4096 + 512, pattern(4, 512));
    assert_eq!(shard.read(&files, FileRef::Base, 4096 + 512, 512), pattern(4, 512), "through the page cache");
}

#[test]
fn a_claimed_device_is_refused() {
    let dir = tempdir();
    let device = Loop::new(&dir, 16 << 20, 512);
    let one = VolumeFiles::create(&dir.path().join("one"), &device.base(), &new_files(), ANYWHERE).unwrap();
    let two = VolumeFiles::create(&dir.path().join("two"), &device.base(), &new_files(), ANYWHERE);
    assert!(matches!(two, Err(Error::InUse { .. })));
    one.close();
    command("mkfs.ext4", &["-q", device.device.to_str().unwrap()]);
    let at = tempdir();
    mount(Some(&device.device), at.path(), Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
    let mounted = VolumeFiles::open(&dir.path().join("one"), ANYWHERE);
    umount2(at.path(), MntFlags::MNT_DETACH).unwrap();
    assert!(matches!(mounted, Err(Error::InUse { .. })), "never beside a mounted file system");
    VolumeFiles::open(&dir.path().join("one"), ANYWHERE).unwrap();
}

#[test]
fn what_direct_io_refuses_at_an_odd_end_goes_through_the_page_cache() {
    let dir = tempdir();
    let fs = Mount::ext4(&dir, 16 << 20);
    let files = volume_at(fs.path());
    let pool = Pool::new();
    let start = |offset, len| {
        let base = files.base_at(ByteRange::new(0, 512)).unwrap().0;
        Transfer::write(base, offset, vec![pattern(1, len)], &pool, Vec::new())
    };
    let mut odd = start(BASE_BYTES - 512, 512);
    assert_eq!(odd.channel(), Channel::Main);
    assert!(matches!(odd.on_result(-libc::EINVAL), Step::Again));
    assert_eq!(odd.channel(), Channel::Buffered);
    assert!(matches!(odd.on_result(-libc::EINVAL), Step::Ended(Err(DiskError::Io), _)), "once");
    let mut whole = start(0, 4096);
    assert!(matches!(whole.on_result(-libc::EINVAL), Step::Ended(Err(DiskError::Io), _)), "only at an odd end");
}
