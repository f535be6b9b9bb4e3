//! The FUSE + loop frontend of a volume, where it is built in.

use std::path::Path;
use std::sync::Mutex;

use tidemark_core::event::{Request, RequestError};

use super::volumes::failed;
use super::{Agent, At, Door, Open};
use crate::control::{EngineError, FrontendKind, Place};
pub(super) use crate::frontend::fuse_loop::{Abort, FuseLoop};
use crate::frontend::fuse_loop::{AttachParams, Cleanup, Remote, RemoteCompletion, cleanup_stale};
use crate::shard::ShardHandle;
use crate::view::ViewTarget;

/// What `auto` means when neither the request nor the volume says more.
pub(super) const AUTO: FrontendKind = FrontendKind::Fuse;

/// Whether it works on this host; if not, why.
pub(super) fn works() -> Result<(), String> {
    match std::path::Path::new("/dev/fuse").exists() && std::path::Path::new("/dev/loop-control").exists() {
        true => Ok(()),
        false => Err("/dev/fuse or /dev/loop-control does not exist here".into()),
    }
}

/// Clears what a predecessor that died left in the kernel: its devices fail all input and output, and their names are taken.
/// Blocks; to be called before the first attach. What cannot be cleared is logged and stays.
pub(crate) fn clear_stale(run_dir: &Path, dev_dir: &Path) {
    match cleanup_stale(run_dir, dev_dir) {
        Ok(done) if done == Cleanup::default() => {}
        Ok(done) => {
            tracing::info!(released = ?done.released, unmounted = ?done.unmounted, "devices of a dead agent cleared");
            for device in done.lingering {
                tracing::warn!(device = %device.display(), "a device of a dead agent is still in use: unmount it");
            }
        }
        Err(error) => tracing::warn!(%error, "devices of a dead agent are not cleared"),
    }
}

/// Sends requests of the FUSE threads to the volume's shard.
struct ToShard {
    shard: ShardHandle,
    at: At,
}

impl Remote for ToShard {
    fn submit(&self, request: Request, done: RemoteCompletion) {
        let At { copy, volume, .. } = self.at;
        // A completion that is dropped uncalled fails its request: right for a shard that has stopped.
        self.shard.send(move |shard| match shard.volume(copy) {
            Some(copy) => copy.submit_to(volume, request, done),
            None => done(Err(RequestError::NotServing)),
        });
    }
}

impl Agent {
    /// Serves a volume as a block device.
    pub(super) async fn open_fuse(&self, at: At, name: &str, size: u64) -> Result<Open, EngineError> {
        self.attach_fuse(name, size, false, Box::new(ToShard { shard: self.shard(at.shard).clone(), at })).await
    }

    /// Serves a volume of a view as a block device that cannot be written to.
    pub(super) async fn open_fuse_view(&self, name: &str, size: u64, view: ViewTarget) -> Result<Open, EngineError> {
        self.attach_fuse(name, size, true, Box::new(view)).await
    }

    async fn attach_fuse(
        &self,
        name: &str,
        size: u64,
        read_only: bool,
        remote: Box<dyn Remote>,
    ) -> Result<Open, EngineError> {
        let params = AttachParams {
            volume: name.to_owned(),
            size,
            read_only,
            run_dir: self.config.run_dir.clone(),
            dev_dir: self.config.fuse.dir.clone(),
            remote,
        };
        let attached = tokio::task::spawn_blocking(move || FuseLoop::attach(params)).await.map_err(failed)?;
        let fuse = attached.map_err(failed)?;
        let place = Place::Fuse { device: fuse.device().to_owned(), link: fuse.link().to_owned() };
        let abort = fuse.abort();
        Ok(Open::new(place, Door::Fuse { device: Box::new(Mutex::new(fuse)), abort }))
    }
}
