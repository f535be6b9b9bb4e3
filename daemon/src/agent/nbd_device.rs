//! A volume as a device of the kernel's NBD client, kept connected as long as it is attached.
//!
//! One task on the control runtime looks after each device: the shard serves the connection, and says when it is over; then the
//! device gets the next one. The kernel ends a connection over which a request was not answered for `resend_after`, and sends
//! the request again: right after a crash, useless while the volume is there and queues (suspended, a slow disk). So after a
//! break under a living agent requests wait for ever, until all that was under way before is answered and [`PATIENT`] is over; and
//! a connection is read only when the last but one before it is settled: what can pile up is two connections' worth.

use std::collections::BTreeSet;
use std::future::Future;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_core::types::{Nonce, VolumeId};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{oneshot, watch};

use super::volumes::failed;
use super::{Agent, At, Door, Open};
use crate::catalogue::VolumeRecord;
use crate::control::{EngineError, FrontendKind, Place};
use crate::frontend::hardening::lock_memory;
use crate::frontend::kernel_nbd::{self, AttachError, AttachParams, DetachError, DriverError, KernelNbd, Timeouts};
use crate::frontend::nbd::{ExportInfo, serve_transmission};
use crate::here;
use crate::lock::lock;

/// How long requests wait for ever after a connection broke that was served.
const PATIENT: Duration = Duration::from_secs(300);
/// Pause before a lost connection is replaced, so that a fault which lasts does not spin.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// A device, and what keeps it served.
pub(super) struct NbdDevice {
    device: Arc<KernelNbd>,
    /// Dropped, it ends the connection and leaves the device to a successor.
    attached: Mutex<Option<watch::Sender<()>>>,
}

impl NbdDevice {
    /// As [`KernelNbd::resize`]. Blocks.
    pub(super) fn resize(&self, size: u64) -> Result<(), DriverError> {
        self.device.resize(size)
    }

    /// As [`KernelNbd::detach`]. Blocks. By force the connection ends first: the kernel may be held up in sending over one that is
    /// not read, and with it the disconnection and all that is told to its driver.
    pub(super) fn detach(&self, force: bool) -> Result<(), DetachError> {
        if force {
            *lock(&self.attached) = None;
        }
        self.device.detach(force)
    }
}

/// The way to the volume of a device.
#[derive(Clone)]
struct Served {
    agent: Arc<Agent>,
    device: Arc<KernelNbd>,
    at: At,
    attached: watch::Receiver<()>,
}

/// A connection that is served.
struct Connected {
    /// Ends with the connection.
    over: oneshot::Receiver<()>,
    /// Ends when all that was under way over it is answered.
    settled: oneshot::Receiver<()>,
}

impl Agent {
    fn nbd_timeouts(&self) -> Timeouts {
        let config = &self.config.nbd_device;
        Timeouts { dead: config.dead_timeout, resend: config.resend_after }
    }

    /// Serves a volume as a block device of the kernel. `tenure` stays the same as long as the primary does, over restarts too.
    pub(super) async fn open_nbd_device(
        self: &Arc<Self>,
        at: At,
        name: &str,
        size: u64,
        tenure: Nonce,
    ) -> Result<Open, EngineError> {
        let params = AttachParams {
            node: self.node,
            volume: at.volume,
            tenure,
            export: ExportInfo { name: name.to_owned(), size, read_only: false, serving: true },
            dev_dir: self.config.fuse.dir.clone(),
            timeouts: self.nbd_timeouts(),
        };
        let attached = tokio::task::spawn_blocking(move || {
            // The kernel may need memory to write to this device, and we to take it.
            if let Err(reason) = lock_memory() {
                tracing::debug!(reason, "the agent's memory is not locked");
            }
            KernelNbd::attach(params)
        });
        let (device, stream) = attached.await.map_err(failed)?.map_err(refused)?;
        let device = Arc::new(device);
        let place = Place::NbdDevice { device: device.device().to_owned(), link: device.link().to_owned() };
        let (keep, attached) = watch::channel(());
        let served = Served { agent: self.clone(), device: device.clone(), at, attached };
        let first = served.connect(stream, None);
        self.runtime.spawn(served.clone().keep(first));
        served.set_size(size).await;
        Ok(Open::new(place, Door::Device(NbdDevice { device, attached: Mutex::new(Some(keep)) })))
    }

    /// Ends devices of volumes that are no more, or that are to be attached otherwise. To be called when all volumes are known.
    pub(super) async fn end_stale_devices(&self) {
        let attached = |volume: &&VolumeRecord| volume.attached == Some(FrontendKind::NbdDevice);
        let keep: BTreeSet<VolumeId> = {
            let catalogue = lock(&self.catalogue);
            let volumes = catalogue.copies().flat_map(|entry| &entry.record.volumes);
            volumes.filter(attached).map(|volume| volume.id).collect()
        };
        let (node, dir) = (self.node, self.config.fuse.dir.clone());
        match tokio::task::spawn_blocking(move || kernel_nbd::end_leftovers(node, &keep, &dir)).await {
            Ok(Ok(ended)) if ended.is_empty() => {}
            Ok(Ok(ended)) => tracing::info!(?ended, "devices of volumes that are no more are disconnected"),
            Ok(Err(error)) => tracing::warn!(%error, "a device of a volume that is no more stays"),
            Err(_) => {} // a panic was logged by the hook
        }
    }

    /// Ends the device that a predecessor left and that nobody serves yet.
    pub(super) async fn end_leftover_device(&self, id: VolumeId, force: bool) -> Result<(), EngineError> {
        let (node, dir) = (self.node, self.config.fuse.dir.clone());
        let ended = tokio::task::spawn_blocking(move || kernel_nbd::end_leftover(node, id, &dir, force)).await;
        let in_use = |error: DetachError| EngineError::Refused { reason: "in-use", text: error.to_string() };
        ended.map_err(failed)?.map_err(in_use)
    }
}

fn refused(error: AttachError) -> EngineError {
    match error {
        AttachError::Driver(DriverError::Missing(_) | DriverError::Denied { .. } | DriverError::NoDevice(_)) => {
            EngineError::Refused { reason: "frontend-unavailable", text: error.to_string() }
        }
        other => failed(other),
    }
}

impl Served {
    /// Has `stream` served on the volume's shard, once what was under way over an earlier one has ended.
    fn connect(&self, stream: UnixStream, before: Option<oneshot::Receiver<()>>) -> Connected {
        let ((over, is_over), (settled, is_settled)) = (oneshot::channel(), oneshot::channel());
        let (at, attached, agent) = (self.at, self.attached.clone(), self.agent.clone());
        self.agent.shard(at.shard).send(move |shard| {
            // Without the volume both ends of the channels are dropped, which says the same.
            let Some(volume) = shard.target(at.copy, at.volume) else { return };
            let options = agent.nbd_counts().on(shard);
            here::spawn(while_attached(attached, async move {
                if let Some(before) = before {
                    let _ = before.await; // gone is as good as settled
                }
                let say_over = move || {
                    let _ = over.send(()); // nobody waits for it any more
                };
                serve_transmission(stream, volume, options, say_over).await;
                let _ = settled.send(()); // nobody waits for it any more
            }));
        });
        Connected { over: is_over, settled: is_settled }
    }

    /// Replaces the device's connection as often as it breaks, until it is detached.
    async fn keep(mut self, mut connected: Connected) {
        let mut answers_late = false;
        // What was under way over the connection before, until it is answered.
        let mut before: Option<oneshot::Receiver<()>> = None;
        loop {
            tokio::select! {
                _ = &mut connected.over => {}
                () = tokio::time::sleep(PATIENT), if answers_late => {
                    before.take_if(|before| before.try_recv() != Err(TryRecvError::Empty));
                    if before.is_none() {
                        answers_late = self.set_answers_late(false).await.is_err();
                    }
                    continue;
                }
                _ = self.attached.changed() => return,
            }
            answers_late = true;
            let Some(stream) = self.reconnected().await else { return };
            let last_but_one = before.replace(connected.settled);
            connected = self.connect(stream, last_but_one);
        }
    }

    /// A new connection of the device; `None` when there is no device any more.
    async fn reconnected(&mut self) -> Option<UnixStream> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(RECONNECT_PAUSE) => {}
                _ = self.attached.changed() => return None,
            }
            let device = self.device.clone();
            let try_it = move || (!device.is_gone()).then(|| device.reconnect(true));
            match tokio::task::spawn_blocking(try_it).await {
                Ok(Some(Ok(stream))) => return Some(stream),
                Ok(None | Some(Err(AttachError::Driver(DriverError::Disconnected)))) => {
                    self.lost().await;
                    return None;
                }
                Ok(Some(Err(error))) => tracing::warn!(id = %self.at.volume, %error, "the device is not connected"),
                Err(_) => return None, // a panic was logged by the hook
            }
        }
    }

    /// Detached, or somebody else has disconnected the device: then the volume is not attached any more.
    async fn lost(&self) {
        if self.device.is_detached() {
            return;
        }
        tracing::warn!(id = %self.at.volume, device = %self.device.device().display(), "the device was disconnected by another program");
        if let Err(error) = self.agent.detach_volume(self.at.volume, true).await {
            tracing::warn!(id = %self.at.volume, %error, "the volume stays attached to a device that is gone");
        }
    }

    async fn set_answers_late(&self, answers_late: bool) -> Result<(), DriverError> {
        let device = self.device.clone();
        let set = tokio::task::spawn_blocking(move || device.set_answers_late(answers_late)).await;
        set.unwrap_or(Ok(()))
    }

    async fn set_size(&self, size: u64) {
        let device = self.device.clone();
        // A panic was logged by the hook.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || device.resize(size)).await {
            tracing::warn!(id = %self.at.volume, %error, "the device keeps its old size");
        }
    }
}

/// Runs `serve` until it ends or the device is given up: then not even errors reach the kernel, which is to ask a successor.
async fn while_attached(mut attached: watch::Receiver<()>, serve: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        _ = attached.changed() => {}
        () = serve => {}
    }
}
