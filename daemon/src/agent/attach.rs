//! Frontends of volumes: opened and closed on request, reopened after a restart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_core::types::VolumeId;
use tokio::sync::OwnedMutexGuard;

use super::volumes::failed;
use super::{Agent, Open, fuse};
use crate::control::{Attachment, EngineError, FrontendKind};
use crate::frontend::kernel_nbd;
use crate::lock::lock;

/// How long a frontend is tried to be opened again after a restart, at least, and how often.
const REATTACH_PATIENCE: Duration = Duration::from_secs(300);
const REATTACH_PAUSE: Duration = Duration::from_millis(500);

impl Agent {
    /// Opens a frontend; open already: answers with what is there. Goes on to its end when nobody waits for it any more.
    pub(super) async fn attach_volume(
        self: &Arc<Self>,
        id: VolumeId,
        kind: FrontendKind,
    ) -> Result<Attachment, EngineError> {
        let agent = self.clone();
        let attached = self.runtime.spawn(async move { agent.do_attach(id, kind).await });
        attached.await.map_err(failed)?
    }

    async fn do_attach(self: &Arc<Self>, id: VolumeId, kind: FrontendKind) -> Result<Attachment, EngineError> {
        let no_volume = || EngineError::NoVolume(id.to_string());
        // Whoever comes meanwhile, such as a user while the agent attaches by itself after a restart, gets what then is there.
        let _turn = self.turn(id).await.ok_or_else(no_volume)?;
        let (name, at, wish) = {
            let state = self.state();
            if state.stopping {
                return Err(EngineError::Stopping);
            }
            let entry = state.volumes.get(&id).ok_or_else(no_volume)?;
            if let Some(open) = &entry.open {
                return Ok(Attachment { place: open.place().clone(), connections: 0 });
            }
            (entry.name.to_string(), state.at(entry).ok_or_else(no_volume)?, entry.frontend)
        };
        let status = self.status_of(at.copy, at.shard).await?;
        let size = status.layout.volume_size(id).ok_or_else(no_volume)?;
        if !status.role.serves() {
            if status.config.primary.is_some_and(|primary| primary != self.site) {
                // What waits for this copy was written to a history that another site goes on with.
                self.end_leftover_device(id, true).await?;
            }
            return Err(EngineError::Refused {
                reason: "not-primary",
                text: format!("volume {name} is {:?} here: promote it first", status.role),
            });
        }
        let kind = match (kind, wish) {
            (FrontendKind::Auto, FrontendKind::Auto) => best().await?,
            (FrontendKind::Auto, wish) => wish,
            (kind, _) => kind,
        };
        let open = match kind {
            FrontendKind::Nbd => self.open_nbd(at, &name, size).await?,
            FrontendKind::NbdDevice => self.open_nbd_device(at, &name, size, status.config.base.nonce).await?,
            FrontendKind::Fuse | FrontendKind::Auto => self.open_fuse(at, &name, size).await?,
        };
        let place = open.place().clone();
        if let Some(entry) = self.state().volumes.get_mut(&id) {
            entry.open = Some(Arc::new(open));
        }
        self.remember_attached(id, Some(kind)).await;
        Ok(Attachment { place, connections: 0 })
    }

    pub(super) fn open_frontend(&self, id: VolumeId) -> Option<Arc<Open>> {
        self.state().volumes.get(&id)?.open.clone()
    }

    /// Closes the frontend on request. Not open: success.
    pub(super) async fn detach_volume(&self, id: VolumeId, force: bool) -> Result<(), EngineError> {
        match self.open_frontend(id) {
            Some(open) => self.close_open(id, open, force).await?,
            None => return self.forget_attachment(id, force).await,
        }
        self.remember_attached(id, None).await;
        Ok(())
    }

    /// Ends `open` and takes it from its volume. In use, it stays there as it is.
    pub(super) async fn close_open(&self, id: VolumeId, open: Arc<Open>, force: bool) -> Result<(), EngineError> {
        let closing = open.clone();
        let closed = tokio::task::spawn_blocking(move || closing.detach(force)).await.map_err(failed)?;
        closed.map_err(|text| EngineError::Refused { reason: "in-use", text })?;
        self.state().volumes.get_mut(&id).and_then(|entry| entry.open.take_if(|now| Arc::ptr_eq(now, &open)));
        Ok(())
    }

    /// Detaches a volume that is not open: after a restart it may wait for its frontend, and the kernel for us.
    async fn forget_attachment(&self, id: VolumeId, force: bool) -> Result<(), EngineError> {
        match self.attachment_wanted(id) {
            None => return Ok(()),
            Some(FrontendKind::NbdDevice) => self.end_leftover_device(id, force).await?,
            Some(_) => {}
        }
        self.remember_attached(id, None).await;
        Ok(())
    }

    /// The frontend that is to be open.
    pub(super) fn attachment_wanted(&self, id: VolumeId) -> Option<FrontendKind> {
        lock(&self.catalogue).copies().find_map(|entry| entry.record.volume(id))?.attached
    }

    /// Opens the frontend again after a restart, as soon as the volume serves.
    pub(super) fn reattach(self: &Arc<Self>, id: VolumeId, kind: FrontendKind) {
        let agent = self.clone();
        self.runtime.spawn(async move {
            // A copy that is Secondary by now is left alone: its operator attaches where it serves.
            let patience = REATTACH_PATIENCE.max(agent.config.nbd_device.dead_timeout);
            let began = Instant::now();
            while began.elapsed() < patience {
                if agent.attachment_wanted(id).is_none() {
                    return;
                }
                match agent.attach_volume(id, kind).await {
                    Ok(_) | Err(EngineError::NoVolume(_) | EngineError::Stopping) => return,
                    Err(error) => tracing::debug!(%id, %error, "frontend not open yet"),
                }
                tokio::time::sleep(REATTACH_PAUSE).await;
            }
        });
    }

    /// This copy does not serve any more: what is open of its volumes is closed by force. Its users would else go on with what they
    /// remember of it, should this site be the primary again.
    pub(super) async fn close_fenced(&self, copy: VolumeId) {
        let volumes: Vec<VolumeId> =
            self.state().volumes.values().filter(|entry| entry.copy == copy).map(|entry| entry.id).collect();
        for id in volumes {
            self.close_unserved(id).await;
        }
    }

    async fn close_unserved(&self, id: VolumeId) {
        let before = self.open_frontend(id);
        // One that is being attached just now, by who still saw it serve, is closed too.
        let Some(_turn) = self.turn(id).await else { return };
        let Some(open) = self.open_frontend(id) else { return };
        let is_new = before.is_none_or(|before| !Arc::ptr_eq(&before, &open));
        if is_new && self.serves(id).await {
            return; // attached since, to a volume that serves again
        }
        tracing::warn!(%id, "the volume serves no more here: it is detached from its users");
        if let Err(error) = self.detach_volume(id, true).await {
            tracing::error!(%id, %error, "a device of a volume that does not serve stays");
        }
    }

    async fn serves(&self, id: VolumeId) -> bool {
        let at = {
            let state = self.state();
            state.volumes.get(&id).and_then(|entry| state.at(entry))
        };
        let Some(at) = at else { return false };
        self.status_of(at.copy, at.shard).await.is_ok_and(|status| status.role.serves())
    }

    /// The right to open a frontend of the volume, one at a time; `None` when there is no such volume.
    pub(super) async fn turn(&self, id: VolumeId) -> Option<OwnedMutexGuard<()>> {
        let turn = self.state().volumes.get(&id)?.attaching.clone();
        Some(turn.lock_owned().await)
    }
}

/// What `auto` means here when neither the request nor the volume says more.
async fn best() -> Result<FrontendKind, EngineError> {
    let is_ready = tokio::task::spawn_blocking(kernel_nbd::is_ready).await.map_err(failed)?;
    Ok(if is_ready { FrontendKind::NbdDevice } else { fuse::AUTO })
}
