//! The FUSE mount of a volatile disk, and the threads behind it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fuser::SessionACL;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Shared;
use super::filesystem::VolatileFs;

const FS_TYPE: &str = "fuse.volatile";
const THREADS: usize = 2;

#[derive(Debug)]
pub(super) struct Session {
    mount_point: PathBuf,
    server: Option<JoinHandle<io::Result<()>>>,
}

impl Session {
    pub(super) fn start(mount_point: &Path, shared: Arc<Shared>) -> io::Result<Self> {
        clear(mount_point)?;
        fs::create_dir_all(mount_point)?;
        let mount_point = mount_point.canonicalize()?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", device.as_raw_fd());
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
        mount(Some("volatile"), &mount_point, Some(FS_TYPE), flags, Some(options.as_str()))?;
        let mut started = Self { mount_point, server: None };
        let mut config = fuser::Config::default();
        config.n_threads = Some(THREADS);
        let session = fuser::Session::from_fd(VolatileFs::new(shared), device.into(), SessionACL::All, config)?;
        let server = thread::Builder::new().name("volatile-fuse".to_owned()).spawn(move || session.run())?;
        started.server = Some(server);
        Ok(started)
    }

    pub(super) fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Ends all requests, unmounts and waits for the threads.
    pub(super) fn stop(&mut self) {
        // Aborts the connection, also when it then finds the mount busy.
        let _ = umount2(&self.mount_point, MntFlags::MNT_FORCE);
        let _ = umount2(&self.mount_point, MntFlags::MNT_DETACH);
        if let Some(Err(_)) = self.server.take().map(JoinHandle::join) {
            eprintln!("a thread of the volatile disk at {} panicked", self.mount_point.display());
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.stop();
        }
    }
}

/// Removes mounts whose server is dead.
fn clear(mount_point: &Path) -> io::Result<()> {
    while fs::metadata(mount_point).is_err_and(|error| error.raw_os_error() == Some(Errno::ENOTCONN as i32)) {
        umount2(mount_point, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}
