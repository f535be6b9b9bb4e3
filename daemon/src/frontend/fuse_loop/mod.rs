//! The FUSE + loop frontend: a volume as a block device on any kernel with `/dev/fuse` and loop devices.
//!
//! A volume is the only file of a FUSE file system at `<run dir>/fuse/<volume>/<volume>`; a loop device is bound to that file
//! and `<dev dir>/<volume>` is a link to the device. Requests travel kernel → FUSE threads → [`Remote`] → the volume's own
//! thread, and the completion answers the kernel from there, in any order.
//!
//! Decides: when attaching is refused (a loop device that would cache), when detaching is (a device in use), and in which
//! order the three parts come and go. Does not decide anything about data.
//!
//! Invariants: the device exists only while direct I/O holds on the whole way, so that an acknowledged flush went through the
//! volume; the link points only to a device that this agent serves; after a successful detach the kernel was seen to have let
//! go of the file.
//!
//! All calls here block on system calls that may need the volume to answer: never make them on the volume's own thread.
//! When the agent dies the device fails all I/O; [`cleanup_stale`] clears it at the next start.

mod filesystem;
mod ioctl;
mod loop_device;
mod mount;
mod stale;
mod transfer;

#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidemark_core::event::{ReplyData, Request, RequestError};
use tidemark_core::types::SECTOR;

use super::hardening::{Hardening, lock_memory};
use super::link;
use filesystem::{Shared, VolumeFs};
use loop_device::LoopDevice;
pub use loop_device::LoopError;
use mount::FuseMount;
pub use stale::{Cleanup, CleanupError, cleanup_stale};

/// Longest name of a volume, in bytes: one component of a path.
pub const MAX_NAME_BYTES: usize = 255;

/// Called exactly once with the end of a request, on any thread.
pub type RemoteCompletion = Box<dyn FnOnce(Result<ReplyData, RequestError>) + Send>;

/// The way to a volume that lives on another thread.
///
/// `submit` is called from several threads and must not wait for the volume. A completion that is dropped uncalled fails its
/// request with an I/O error.
pub trait Remote: Send + Sync {
    /// Hands a request over.
    fn submit(&self, request: Request, done: RemoteCompletion);
}

/// What to attach and where.
pub struct AttachParams {
    /// The name of the volume: a single path component.
    pub volume: String,
    /// Size in bytes, a multiple of 512.
    pub size: u64,
    /// The device cannot be written to.
    pub read_only: bool,
    /// The agent's directory for sockets and mounts.
    pub run_dir: PathBuf,
    /// Where the link to the device goes, normally `dev` in the run directory.
    pub dev_dir: PathBuf,
    /// The volume.
    pub remote: Box<dyn Remote>,
}

/// Why a volume was not attached. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The name cannot be a file name.
    #[error("{name:?} cannot be the name of a device")]
    Name {
        /// The name.
        name: String,
    },
    /// The size is zero or not a multiple of 512.
    #[error("a device of {size} bytes is not possible: not a positive multiple of {SECTOR}")]
    Size {
        /// Bytes.
        size: u64,
    },
    /// The FUSE mount failed.
    #[error("cannot mount FUSE at {}: {source}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The volume's file could not be opened.
    #[error("cannot open {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no loop device, or it would not be safe.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The link could not be made.
    #[error("cannot link {} to the device: {source}", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a resize failed; the device keeps its old size or has the new one.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// The size is zero or not a multiple of 512.
    #[error("a device of {size} bytes is not possible: not a positive multiple of {SECTOR}")]
    Size {
        /// Bytes.
        size: u64,
    },
    /// The volume's file could not be examined.
    #[error("cannot examine {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The loop device did not take the size over.
    #[error(transparent)]
    Loop(#[from] LoopError),
}

/// Why a detach failed. It may be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The device is in use, or could not be released.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The FUSE mount could not be removed.
    #[error("cannot unmount {}: {source}", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The link could not be removed.
    #[error("cannot remove {}: {source}", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Ends all input and output of an attached volume, also while another thread is at work with its [`FuseLoop`].
#[derive(Clone, Debug)]
pub struct Abort(PathBuf);

impl Abort {
    /// Fails every request that is under way and all later ones; the volume is to be detached with `force` afterwards.
    pub fn abort(&self) {
        mount::abort_at(&self.0);
    }
}

/// An attached volume.
///
/// Dropping it without [`FuseLoop::detach`] is a forced detach: whatever was not flushed by then is lost to the file system
/// above, as in a crash.
#[derive(Debug)]
pub struct FuseLoop {
    shared: Arc<Shared>,
    link: PathBuf,
    device: LoopDevice,
    mount: FuseMount,
    file: PathBuf,
    hardening: Hardening,
    attached: bool,
}

impl FuseLoop {
    /// Mounts the volume's file, binds a loop device to it and links to the device.
    ///
    /// # Errors
    /// [`AttachError`]; in particular [`LoopError::Buffered`] when the kernel cannot do direct I/O.
    pub fn attach(params: AttachParams) -> Result<Self, AttachError> {
        check(&params)?;
        let shared = Arc::new(Shared { size: AtomicU64::new(params.size), live: AtomicBool::new(false) });
        let run_dir = canonical(&params.run_dir)?;
        let dir = mounts_dir(&run_dir).join(&params.volume);
        let file = dir.join(&params.volume);
        let filesystem = VolumeFs::new(&params.volume, Arc::clone(&shared), params.remote);
        let mount = FuseMount::new(filesystem, &dir).map_err(|source| AttachError::Mount { path: dir, source })?;
        let hardening = Hardening { io_flusher: mount.io_flusher().clone(), memory: lock_memory() };
        let backing = OpenOptions::new().read(true).write(true).open(&file);
        let backing = backing.map_err(|source| AttachError::File { path: file.clone(), source })?;
        let device = LoopDevice::bind(&backing, &params.volume, params.read_only)?;
        shared.live.store(true, Ordering::Release);
        let link = params.dev_dir.join(&params.volume);
        let attached = Self { shared, link, device, mount, file, hardening, attached: true };
        link::place(&attached.link, attached.device.path())
            .map_err(|source| AttachError::Link { path: attached.link.clone(), source })?;
        attached.log();
        Ok(attached)
    }

    fn log(&self) {
        let Hardening { io_flusher, memory } = &self.hardening;
        tracing::info!(device = %self.device().display(), link = %self.link.display(), ?io_flusher, ?memory, "device attached");
    }

    /// The block device, `/dev/loop<n>`.
    pub fn device(&self) -> &Path {
        self.device.path()
    }

    /// The stable name of the device.
    pub fn link(&self) -> &Path {
        &self.link
    }

    /// A way to end it while it is in use.
    pub fn abort(&self) -> Abort {
        Abort(self.mount.dir().to_owned())
    }

    /// What the kernel permitted of the measures against waiting for ourselves.
    pub fn hardening(&self) -> &Hardening {
        &self.hardening
    }

    /// Changes the size of the device, in bytes, after the volume has changed its own (a larger one) or before (a smaller one).
    ///
    /// # Errors
    /// [`ResizeError`]; a later call with the same size may succeed.
    pub fn resize(&self, size: u64) -> Result<(), ResizeError> {
        if !is_device_size(size) {
            return Err(ResizeError::Size { size });
        }
        self.shared.size.store(size, Ordering::Release);
        // The kernel learns a size only when it asks for the attributes, and the loop driver may use what the kernel knows.
        std::fs::metadata(&self.file).map_err(|source| ResizeError::File { path: self.file.clone(), source })?;
        Ok(self.device.update_size()?)
    }

    /// Releases the device, the link and the mount; `force` does so even when it is in use, and fails all I/O under way.
    ///
    /// Without `force` everything that the page cache above the device holds is written and flushed first, which waits for
    /// the volume. With `force` a device that is still mounted goes with its unmount.
    ///
    /// # Errors
    /// [`DetachError`]; without `force` a device in use stays attached as it was ([`LoopError::Busy`]).
    pub fn detach(&mut self, force: bool) -> Result<(), DetachError> {
        if !self.attached {
            return Ok(());
        }
        if force {
            self.cut_off()?
        } else {
            self.release()?
        }
        self.attached = false;
        tracing::info!(device = %self.device().display(), force, "device detached");
        Ok(())
    }

    fn release(&mut self) -> Result<(), DetachError> {
        self.device.release()?;
        self.unlink()?;
        let removed = self.mount.unmount();
        removed.map_err(|source| DetachError::Unmount { path: self.mount.dir().to_owned(), source })
    }

    fn cut_off(&mut self) -> Result<(), DetachError> {
        self.unlink()?;
        // First the abort: the kernel writes out a device's cache when it is closed, and that must fail instead of waiting.
        self.mount.abort();
        self.device.abandon()?;
        let removed = self.mount.detach();
        removed.map_err(|source| DetachError::Unmount { path: self.mount.dir().to_owned(), source })
    }

    fn unlink(&self) -> Result<(), DetachError> {
        let removed = link::remove(&self.link, self.device.path());
        removed.map_err(|source| DetachError::Link { path: self.link.clone(), source })
    }
}

impl Drop for FuseLoop {
    fn drop(&mut self) {
        if let Err(error) = self.detach(true) {
            tracing::warn!(device = %self.device().display(), %error, "a device could not be removed");
        }
    }
}

fn check(params: &AttachParams) -> Result<(), AttachError> {
    let name = &params.volume;
    let plain =
        !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.contains(['/', '\0']) && name != "." && name != "..";
    if !plain {
        return Err(AttachError::Name { name: name.clone() });
    }
    if is_device_size(params.size) { Ok(()) } else { Err(AttachError::Size { size: params.size }) }
}

/// The run directory as the mount table will show it.
fn canonical(run_dir: &Path) -> Result<PathBuf, AttachError> {
    let made = std::fs::create_dir_all(run_dir).and_then(|()| run_dir.canonicalize());
    made.map_err(|source| AttachError::Mount { path: run_dir.to_owned(), source })
}

fn is_device_size(size: u64) -> bool {
    size > 0 && size.is_multiple_of(SECTOR as u64) && i64::try_from(size).is_ok()
}

fn mounts_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("fuse")
}
