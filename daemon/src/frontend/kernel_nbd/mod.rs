//! A volume as a block device of the kernel's own NBD client: `/dev/nbdN`, with `<dev dir>/<volume>` as the name that stays.
//!
//! The kernel is given one end of a pair of unix sockets; the other end is served as any NBD connection is, on the volume's own
//! thread, in the transmission phase from its first byte. When this process dies the kernel keeps the device: its input and
//! output waits, for [`Timeouts::dead`] at most, until a successor finds the device by its identifier and gives it a new socket.
//!
//! Decides: which device of the kernel is ours, when it is made, taken over or left alone, and when detaching is refused.
//! Serves nothing and decides nothing about data.
//!
//! Invariants: the link points only to a device that was connected here; a device whose identifier is another's is never
//! touched; dropping an attachment leaves the device to a successor, only [`KernelNbd::detach`] ends it.
//!
//! All calls here block, some of them until the volume has answered: never make them on the volume's own thread. No thread that
//! serves a volume may write to the device or wait for its page cache, see [`super::hardening`].

mod driver;
mod message;
mod netlink;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemark_core::types::{NodeId, Nonce, SECTOR, VolumeId};

use super::link;
use super::nbd::ExportInfo;
use super::users;
use driver::{Driver, Found, NewDevice};
pub use driver::{DriverError, Timeouts};

/// What to attach and where.
#[derive(Clone, Debug)]
pub struct AttachParams {
    /// This agent's node: agents of one host tell their devices apart by it.
    pub node: NodeId,
    /// The volume.
    pub volume: VolumeId,
    /// The time for which this site has been the primary without a break. A device of another such time is not taken over: what
    /// its users know of the volume is older than what another site wrote since.
    pub tenure: Nonce,
    /// What the volume is like.
    pub export: ExportInfo,
    /// Where the link goes, under the name of the export.
    pub dev_dir: PathBuf,
    /// The kernel's patience with us.
    pub timeouts: Timeouts,
}

/// Why a volume was not attached. A device that was made for it is gone again.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The driver is missing, or refused.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// No pair of sockets.
    #[error("cannot make a pair of sockets: {0}")]
    Socket(#[source] io::Error),
    /// The link could not be made.
    #[error("cannot link {} to the device: {source}", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a detach failed. The device is attached as it was, and detaching may be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// A file system or another device lies on it.
    #[error("{} is in use: mounted, or below another device", path.display())]
    Mounted {
        /// The device.
        path: PathBuf,
    },
    /// A process has it open.
    #[error("{} is in use: process {pid} has it open", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// The process.
        pid: u32,
    },
    /// What the page cache above it holds could not be written.
    #[error("cannot write out the cached data of {}: {source}", path.display())]
    Flush {
        /// The device.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The driver refused.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The link could not be removed.
    #[error("cannot remove {}: {source}", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An attached volume.
#[derive(Debug)]
pub struct KernelNbd {
    index: u32,
    identifier: String,
    path: PathBuf,
    link: PathBuf,
    timeouts: Timeouts,
    detached: AtomicBool,
}

impl KernelNbd {
    /// Connects a device, or takes over the one that a predecessor left, and links to it. Gives our end of its connection: what
    /// comes there are requests. The size of a device that was taken over is set with [`KernelNbd::resize`] once it is served.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(params: AttachParams) -> Result<(Self, UnixStream), AttachError> {
        let AttachParams { node, volume, tenure, export, dev_dir, timeouts } = params;
        let identifier = identifier(node, volume, tenure);
        let mut driver = Driver::open()?;
        let (ours, kernels) = socket_pair()?;
        let (left, stale): (Vec<Found>, Vec<Found>) =
            devices_of(node, volume).partition(|device| device.identifier == identifier);
        for Found { index, .. } in stale {
            let device = driver::path_of(index);
            tracing::warn!(device = %device.display(), "another site was the primary since this device was attached: it is ended");
            driver.disconnect(index)?;
        }
        let left = match left.into_iter().next() {
            Some(Found { index, .. }) => match driver.reconnect(index, &identifier, timeouts, kernels.as_fd()) {
                // Ended, and still in use by somebody who has not noticed.
                Err(DriverError::Disconnected) => None,
                other => Some(other.map(|()| index)?),
            },
            None => None,
        };
        let index = match left {
            Some(index) => index,
            None => driver.connect(&new_device(&identifier, &export, timeouts), kernels.as_fd())?,
        };
        let (path, link) = (driver::path_of(index), dev_dir.join(&export.name));
        if let Err(source) = link::place(&link, &path) {
            if left.is_none() {
                // The link is what is reported; the device is ours and nobody has seen it.
                let _ = driver.disconnect(index);
            }
            return Err(AttachError::Link { path: link, source });
        }
        tracing::info!(device = %path.display(), link = %link.display(), taken_over = left.is_some(), "device attached");
        Ok((Self { index, identifier, path, link, timeouts, detached: AtomicBool::new(false) }, ours))
    }

    /// `/dev/nbdN`.
    pub fn device(&self) -> &Path {
        &self.path
    }

    /// The stable name of the device.
    pub fn link(&self) -> &Path {
        &self.link
    }

    /// True once [`KernelNbd::detach`] has ended the device.
    pub fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Acquire)
    }

    /// True when the device is not ours any more: detached, or disconnected by somebody else.
    pub fn is_gone(&self) -> bool {
        self.is_detached() || !driver::is_ours(self.index, &self.identifier)
    }

    /// A new connection after the last one broke; gives our end. A volume that `answers_late` is not asked again for what it has
    /// not answered.
    ///
    /// # Errors
    /// [`AttachError`]; [`DriverError::Disconnected`] when there is no device any more.
    pub fn reconnect(&self, answers_late: bool) -> Result<UnixStream, AttachError> {
        let (ours, kernels) = socket_pair()?;
        let timeouts = self.timeouts_for(answers_late);
        Driver::open()?.reconnect(self.index, &self.identifier, timeouts, kernels.as_fd())?;
        Ok(ours)
    }

    /// As in [`KernelNbd::reconnect`], for the connection that is there.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn set_answers_late(&self, answers_late: bool) -> Result<(), DriverError> {
        Driver::open()?.set_timeouts(self.index, &self.identifier, self.timeouts_for(answers_late))
    }

    fn timeouts_for(&self, answers_late: bool) -> Timeouts {
        if answers_late { Timeouts { resend: Duration::ZERO, ..self.timeouts } } else { self.timeouts }
    }

    /// Changes the size of the device, in bytes, after the volume has changed its own. The device has to be served meanwhile.
    ///
    /// # Errors
    /// [`DriverError`]; a later call with the same size may succeed.
    pub fn resize(&self, size: u64) -> Result<(), DriverError> {
        Driver::open()?.resize(self.index, &self.identifier, size)
    }

    /// Ends the device and removes its link; `force` does so even when it is in use, and fails all input and output under way.
    ///
    /// Without `force` everything that the page cache above the device holds is written and flushed first, which waits for the
    /// volume: it has to be served until this returns.
    ///
    /// # Errors
    /// [`DetachError`].
    pub fn detach(&self, force: bool) -> Result<(), DetachError> {
        if force {
            self.disconnect()?
        } else {
            self.release()?
        }
        let removed = link::remove(&self.link, &self.path);
        removed.map_err(|source| DetachError::Link { path: self.link.clone(), source })?;
        tracing::info!(device = %self.path.display(), force, "device detached");
        Ok(())
    }

    fn release(&self) -> Result<(), DetachError> {
        if self.is_gone() {
            return Ok(());
        }
        let path = || self.path.clone();
        let flush = |source| DetachError::Flush { path: path(), source };
        // Held until the end: nobody mounts it meanwhile.
        let claimed = users::claim(&self.path).map_err(flush)?.ok_or_else(|| DetachError::Mounted { path: path() })?;
        if let Some(pid) = users::await_alone(&self.path) {
            return Err(DetachError::Open { path: path(), pid });
        }
        claimed.sync_all().map_err(flush)?;
        self.disconnect()
    }

    fn disconnect(&self) -> Result<(), DetachError> {
        if self.is_gone() {
            return Ok(());
        }
        self.detached.store(true, Ordering::Release);
        let done = Driver::open().and_then(|mut driver| driver.disconnect(self.index));
        done.inspect_err(|_| self.detached.store(false, Ordering::Release)).map_err(Into::into)
    }
}

/// Whether it works on this host; if not, why. Loads nothing.
///
/// # Errors
/// The reason, as text.
pub fn works() -> Result<(), String> {
    match Driver::find() {
        Ok(Some(_)) => Ok(()),
        Ok(None) if driver::module_exists() => Ok(()),
        Ok(None) => Err("this kernel has no module nbd".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether attaching would find the driver, which is loaded for that.
pub fn is_ready() -> bool {
    Driver::open().is_ok()
}

/// Ends the devices of this node's agent but those of the volumes in `keep`: nobody will serve them again. Links in `dev_dir` to
/// NBD devices that are not kept go too.
///
/// # Errors
/// [`DriverError`] at the first that cannot be ended.
pub fn end_leftovers(node: NodeId, keep: &BTreeSet<VolumeId>, dev_dir: &Path) -> Result<Vec<PathBuf>, DriverError> {
    let wanted: Vec<String> = keep.iter().map(|volume| volume_prefix(node, *volume)).collect();
    let (own, mut kept, mut ended) = (prefix(node), BTreeSet::new(), Vec::new());
    for device in driver::devices().into_iter().filter(|device| device.identifier.starts_with(&own)) {
        let path = driver::path_of(device.index);
        if wanted.iter().any(|wanted| device.identifier.starts_with(wanted)) {
            kept.insert(path);
        } else {
            Driver::open()?.disconnect(device.index)?;
            ended.push(path);
        }
    }
    unlink(dev_dir, |device| driver::is_device(device) && !kept.contains(device));
    Ok(ended)
}

/// Ends the device that a predecessor left for `volume`, if there is one. Refused while it is in use, unless `force` is given.
///
/// # Errors
/// [`DetachError`].
pub fn end_leftover(node: NodeId, volume: VolumeId, dev_dir: &Path, force: bool) -> Result<(), DetachError> {
    for device in devices_of(node, volume) {
        let path = driver::path_of(device.index);
        if !force && users::is_mounted(&path) {
            return Err(DetachError::Mounted { path });
        }
        if let (false, Some(pid)) = (force, users::await_alone(&path)) {
            return Err(DetachError::Open { path, pid });
        }
        Driver::open()?.disconnect(device.index)?;
        unlink(dev_dir, |device| device == path);
    }
    Ok(())
}

/// Removes the links in `dev_dir` to devices that are stale. One that cannot be removed is replaced by the next attach of
/// that name.
fn unlink(dev_dir: &Path, is_stale: impl Fn(&Path) -> bool) {
    for entry in std::fs::read_dir(dev_dir).into_iter().flatten().flatten() {
        let (link, target) = (entry.path(), std::fs::read_link(entry.path()).unwrap_or_default());
        if is_stale(&target)
            && let Err(error) = link::remove(&link, &target)
        {
            tracing::warn!(link = %link.display(), %error, "a link to a device that is gone stays");
        }
    }
}

fn new_device<'a>(identifier: &'a str, export: &ExportInfo, timeouts: Timeouts) -> NewDevice<'a> {
    let flags = export.transmission_flags(false);
    // The sector of a volume: a file system made over another frontend, or found on an adopted device, may have its size.
    NewDevice { identifier, size: export.size, block_size: SECTOR as u64, flags, timeouts }
}

fn prefix(node: NodeId) -> String {
    format!("tidemark:{node}:")
}

fn volume_prefix(node: NodeId, volume: VolumeId) -> String {
    format!("{}{volume}:", prefix(node))
}

fn identifier(node: NodeId, volume: VolumeId, tenure: Nonce) -> String {
    format!("{}{tenure}", volume_prefix(node, volume))
}

/// The devices that this node's agent, or a predecessor, connected for the volume.
fn devices_of(node: NodeId, volume: VolumeId) -> impl Iterator<Item = Found> {
    let wanted = volume_prefix(node, volume);
    driver::devices().into_iter().filter(move |device| device.identifier.starts_with(&wanted))
}

/// Ours and the kernel's end; the kernel keeps its own reference to the latter.
fn socket_pair() -> Result<(UnixStream, UnixStream), AttachError> {
    let made = UnixStream::pair().and_then(|(ours, kernels)| ours.set_nonblocking(true).map(|()| (ours, kernels)));
    made.map_err(AttachError::Socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(read_only: bool) -> ExportInfo {
        ExportInfo { name: "db".to_owned(), size: 4 << 20, read_only, serving: true }
    }

    fn timeouts() -> Timeouts {
        Timeouts { dead: Duration::from_secs(300), resend: Duration::from_secs(10) }
    }

    #[test]
    fn the_kernel_is_told_of_flush_fua_trim_and_zeroes() {
        const HAS_FLAGS: u16 = 1;
        const READ_ONLY: u16 = 1 << 1;
        const WANTED: u16 = HAS_FLAGS | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;
        const SEND_DF: u16 = 1 << 7;
        let device = new_device("x", &export(false), timeouts());
        assert_eq!(device.flags & (WANTED | READ_ONLY | SEND_DF), WANTED);
        assert_eq!((device.size, device.block_size), (4 << 20, 512));
        assert_eq!(new_device("x", &export(true), timeouts()).flags & READ_ONLY, READ_ONLY);
    }

    #[test]
    fn devices_of_two_agents_of_one_host_have_other_identifiers() {
        let (volume, tenure) = (VolumeId([7; 16]), Nonce([5; 16]));
        let (one, other) = (identifier(NodeId([1; 16]), volume, tenure), identifier(NodeId([2; 16]), volume, tenure));
        assert!(one.starts_with(&prefix(NodeId([1; 16]))) && !other.starts_with(&prefix(NodeId([1; 16]))));
        assert_ne!(one, identifier(NodeId([1; 16]), VolumeId([8; 16]), tenure));
    }

    #[test]
    fn a_device_of_an_earlier_time_as_the_primary_is_of_the_volume_but_not_taken_over() {
        let (node, volume) = (NodeId([1; 16]), VolumeId([7; 16]));
        let (old, new) = (identifier(node, volume, Nonce([5; 16])), identifier(node, volume, Nonce([6; 16])));
        assert_ne!(old, new);
        assert!([&old, &new].into_iter().all(|one| one.starts_with(&volume_prefix(node, volume))));
    }

    #[test]
    fn links_to_devices_of_nobody_are_removed_at_start_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        for (name, device) in [("old", "/dev/nbd4095"), ("fuse", "/dev/loop7")] {
            link::place(&dir.path().join(name), Path::new(device)).unwrap();
        }
        assert_eq!(end_leftovers(NodeId([9; 16]), &BTreeSet::new(), dir.path()).unwrap(), Vec::<PathBuf>::new());
        assert!(dir.path().join("old").symlink_metadata().is_err());
        assert!(dir.path().join("fuse").symlink_metadata().is_ok());
    }

    #[test]
    fn a_volume_that_answers_late_is_not_asked_again() {
        let device = KernelNbd {
            index: 0,
            identifier: String::new(),
            path: PathBuf::new(),
            link: PathBuf::new(),
            timeouts: timeouts(),
            detached: AtomicBool::new(false),
        };
        assert_eq!(device.timeouts_for(true), Timeouts { resend: Duration::ZERO, ..timeouts() });
        assert_eq!(device.timeouts_for(false), timeouts());
    }
}
