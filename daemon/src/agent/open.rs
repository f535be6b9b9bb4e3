//! An open frontend of a volume, shared by those who work with it at the same time: to detach one that waits for its volume must not
//! keep another from forcing it.

use std::sync::Mutex;

use tokio::sync::watch;

use super::fuse::{Abort, FuseLoop};
use super::nbd_device::NbdDevice;
use crate::control::Place;
use crate::lock::lock;

/// An open frontend.
pub(super) struct Open {
    place: Place,
    door: Door,
}

/// What is open.
pub(super) enum Door {
    /// An export: its size in bytes; dropped, it ends the listener and every connection.
    Nbd(watch::Sender<u64>),
    /// A FUSE file with a loop device.
    #[cfg_attr(not(feature = "fuse"), expect(dead_code, reason = "nobody makes one in an agent without it"))]
    Fuse {
        /// Held while it is detached, which may wait for the volume.
        device: Box<Mutex<FuseLoop>>,
        /// Ends that wait.
        abort: Abort,
    },
    /// A device of the kernel's NBD client; dropped, it stays and waits for a successor.
    Device(NbdDevice),
}

impl Open {
    pub(super) fn new(place: Place, door: Door) -> Self {
        Self { place, door }
    }

    /// Where it is found.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The size of the export that clients connect to, if it is one.
    pub(super) fn export(&self) -> Option<&watch::Sender<u64>> {
        match &self.door {
            Door::Nbd(size) => Some(size),
            Door::Fuse { .. } | Door::Device(_) => None,
        }
    }

    /// True for a device that dies with the agent.
    pub(super) fn dies_with_us(&self) -> bool {
        matches!(self.door, Door::Fuse { .. })
    }

    /// Tells users of the volume's new size, in bytes. Blocks.
    ///
    /// # Errors
    /// The reason, as text.
    pub(super) fn resize(&self, size: u64) -> Result<(), String> {
        match &self.door {
            Door::Nbd(export) => {
                export.send_replace(size);
                Ok(())
            }
            Door::Fuse { device, .. } => lock(device).resize(size).map_err(|error| error.to_string()),
            Door::Device(device) => device.resize(size).map_err(|error| error.to_string()),
        }
    }

    /// Ends it; `force` does so although it is in use, and fails what is under way, also a detach that waits. Blocks.
    ///
    /// # Errors
    /// The reason, as text: then it is open as it was.
    pub(super) fn detach(&self, force: bool) -> Result<(), String> {
        match &self.door {
            Door::Nbd(_) => Ok(()),
            Door::Fuse { device, abort } => {
                if force && device.try_lock().is_err() {
                    abort.abort();
                }
                lock(device).detach(force).map_err(|error| error.to_string())
            }
            Door::Device(device) => device.detach(force).map_err(|error| error.to_string()),
        }
    }
}
