//! A graceful stop and the devices that die with the agent (FUSE + loop): closed at once where nobody uses them, waited for where
//! somebody does, taken away when that lasts. The agent serves everything meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tidemark_core::types::VolumeId;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Agent, Open};
use crate::control::Place;
use crate::frontend::users;

/// How often it is looked whether a device is free.
const POLL: Duration = Duration::from_millis(250);
/// What a file system gets to write out what it holds, before its device goes.
const SYNC_PATIENCE: Duration = Duration::from_secs(5);

impl Agent {
    /// Begins a stop: nothing is attached or made any more, and the devices that would die under a file system are waited for, for
    /// `fuse.unmount_wait` at most.
    pub async fn release_devices(self: &Arc<Self>) {
        self.state().stopping = true;
        let deadline = Instant::now() + self.config.fuse.unmount_wait;
        // Each on its own: one that waits for its volume keeps no other from being closed in order.
        let mut releases = JoinSet::new();
        for (id, open) in self.mortal_devices() {
            let agent = self.clone();
            releases.spawn(async move { timeout_at(deadline, agent.release(id, open)).await });
        }
        while releases.join_next().await.is_some() {}
    }

    /// Detaches a device as soon as nobody uses it. Who keeps it is told once.
    async fn release(&self, id: VolumeId, open: Arc<Open>) {
        let mut told = false;
        while let Err(error) = self.close_open(id, open.clone(), false).await {
            if !std::mem::replace(&mut told, true) {
                let (device, wait) = (device_of(&open), self.config.fuse.unmount_wait);
                let mounted = users::mount_points(&device);
                tracing::warn!(
                    %id, device = %device.display(), ?mounted, ?wait, %error,
                    "the agent stops when this device is unmounted and closed, or after the wait: then its input and output fails"
                );
            }
            sleep(POLL).await;
        }
    }

    fn mortal_devices(&self) -> Vec<(VolumeId, Arc<Open>)> {
        let state = self.state();
        let open = state.volumes.values().filter_map(|entry| Some((entry.id, entry.open.clone()?)));
        open.filter(|(_, open)| open.dies_with_us()).collect()
    }

    /// Closes the frontend, which is opened again at the next start. A device of the kernel's NBD client stays and waits.
    pub(super) async fn close_frontend(&self, id: VolumeId) {
        let Some(open) = self.open_frontend(id) else { return };
        if open.dies_with_us() {
            let device = device_of(&open);
            let written = write_out(device.clone()).await;
            tracing::error!(%id, device = %device.display(), written, "the device is taken from its users: unmount it");
            if let Err(error) = self.close_open(id, open, true).await {
                tracing::warn!(%id, %error, "the device could not be removed");
            }
        }
        self.state().volumes.get_mut(&id).and_then(|entry| entry.open.take());
    }
}

fn device_of(open: &Open) -> PathBuf {
    match open.place() {
        Place::Fuse { device, .. } | Place::NbdDevice { device, .. } => device.clone(),
        Place::Nbd { .. } => PathBuf::new(),
    }
}

/// Has the file systems on `device` write out what they hold; whether they did.
async fn write_out(device: PathBuf) -> bool {
    let synced = tokio::task::spawn_blocking(move || users::sync_mounted(&device));
    matches!(timeout(SYNC_PATIENCE, synced).await, Ok(Ok(Ok(()))))
}
