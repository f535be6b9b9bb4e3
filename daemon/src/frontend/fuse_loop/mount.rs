//! One FUSE mount and the threads that serve it.
//!
//! The mount is made with the system call itself, so that neither `fusermount` nor its rules are needed; the agent runs as
//! root. Decides how a mount ends: politely, when no file of it is open, or by an abort, after which every request on it
//! fails at once.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::filesystem::VolumeFs;
use crate::frontend::{hardening, mountinfo};

/// File system type and source that the mount table shows.
pub(super) const FS_TYPE: &str = "fuse.tidemark";
const SOURCE: &str = "tidemark";
/// Threads that take requests from the kernel. Each only copies and hands on: two keep one busy copying while one waits.
const SESSION_THREADS: usize = 2;
/// The loop driver closes its file a moment after it let go of it.
const UNMOUNT_POLLS: u32 = 100;
const UNMOUNT_POLL: Duration = Duration::from_millis(20);

/// A mounted FUSE file system. Dropping it aborts what is still mounted.
#[derive(Debug)]
pub(super) struct FuseMount {
    dir: PathBuf,
    server: Option<JoinHandle<io::Result<()>>>,
    io_flusher: Result<(), String>,
}

impl FuseMount {
    /// Mounts at `dir`, which is created, and starts the threads.
    pub(super) fn new(filesystem: VolumeFs, dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        mount_at(dir, &device)?;
        let mut mounted = Self { dir: dir.to_owned(), server: None, io_flusher: Ok(()) };
        let session = Session::from_fd(filesystem, device.into(), SessionACL::All, config())?;
        let (report, reported) = std::sync::mpsc::channel();
        let serve = move || {
            // Before the session starts its threads: they inherit the mark.
            let _ = report.send(hardening::mark_io_flusher());
            session.run()
        };
        mounted.server = Some(thread::Builder::new().name("tidemark-fuse".to_owned()).spawn(serve)?);
        mounted.io_flusher = reported.recv().unwrap_or_else(|_| Err("the FUSE thread ended".to_owned()));
        Ok(mounted)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the kernel let the threads be marked as I/O flushers.
    pub(super) fn io_flusher(&self) -> &Result<(), String> {
        &self.io_flusher
    }

    /// Unmounts and waits for the threads; fails with `EBUSY` and leaves everything as it is while a file is open.
    pub(super) fn unmount(&mut self) -> io::Result<()> {
        for attempt in 0.. {
            match umount2(&self.dir, MntFlags::UMOUNT_NOFOLLOW) {
                Err(Errno::EBUSY) if attempt < UNMOUNT_POLLS => thread::sleep(UNMOUNT_POLL),
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        self.join();
        fs::remove_dir(&self.dir)
    }

    /// Fails every request that is under way and all later ones. The mount stays.
    pub(super) fn abort(&self) {
        abort_at(&self.dir);
    }

    /// Takes the mount out of the name space after [`Self::abort`] and waits for the threads.
    pub(super) fn detach(&mut self) -> io::Result<()> {
        detach_at(&self.dir)?;
        self.join();
        fs::remove_dir(&self.dir)
    }

    fn join(&mut self) {
        if let Some(Err(panic)) = self.server.take().map(JoinHandle::join) {
            tracing::error!(dir = %self.dir.display(), ?panic, "a FUSE thread panicked");
        }
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        if self.server.is_none() && !is_mounted(&self.dir) {
            return;
        }
        self.abort();
        if let Err(error) = self.detach() {
            tracing::warn!(dir = %self.dir.display(), %error, "a FUSE mount could not be removed");
        }
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.n_threads = Some(SESSION_THREADS);
    config
}

fn mount_at(dir: &Path, device: &File) -> io::Result<()> {
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    Ok(mount(Some(SOURCE), dir, Some(FS_TYPE), flags, Some(options.as_str()))?)
}

/// Aborts the connection of the mount at `dir`, dead or alive: a forced unmount does so first, even when it then reports that
/// the mount is busy.
pub(super) fn abort_at(dir: &Path) {
    if let Err(errno) = umount2(dir, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW) {
        tracing::debug!(dir = %dir.display(), %errno, "forced unmount aborted the connection only");
    }
}

/// Takes the mount at `dir` out of the name space; no mount there is success.
pub(super) fn detach_at(dir: &Path) -> io::Result<()> {
    match umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn is_mounted(dir: &Path) -> bool {
    mounts_below(dir).is_ok_and(|mounts| mounts.iter().any(|mount| mount == dir))
}

/// Where FUSE file systems of this agent's type are mounted at or below `dir`, innermost last.
pub(super) fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(parse_mounts(&fs::read_to_string("/proc/self/mountinfo")?, dir))
}

fn parse_mounts(table: &str, dir: &Path) -> Vec<PathBuf> {
    let ours = mountinfo::parse(table).filter(|mount| mount.kind == FS_TYPE && mount.point.starts_with(dir));
    ours.map(|mount| mount.point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_mounts_below_the_directory_are_found() {
        let table = "\
30 1 0:50 / /run/t/fuse/a rw shared:1 - fuse.tidemark tidemark rw\n\
31 1 0:51 / /run/t/fuse/b\\040c rw - fuse.tidemark tidemark rw\n\
32 1 0:52 / /run/other/fuse/a rw - fuse.tidemark tidemark rw\n\
33 1 0:53 / /run/t/fuse/d rw - ext4 /dev/vda rw\n";
        let found = parse_mounts(table, Path::new("/run/t/fuse"));
        assert_eq!(found, [PathBuf::from("/run/t/fuse/a"), PathBuf::from("/run/t/fuse/b c")]);
    }
}
