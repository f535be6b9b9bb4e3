//! NBD exports: a unix socket for each attached volume, and one TCP listener for all of them.
//!
//! The TCP listener runs on the first shard. It greets a client, learns which export it wants, and hands the connection to the
//! shard of that volume; from then on it is served like one of the unix socket, and ends with the attachment.

use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::{Agent, At, Door, Entry, Open};
use crate::config::Security;
use crate::control::{EngineError, Place};
use crate::frontend::BlockTarget;
use crate::frontend::nbd::{
    self, Export, ExportInfo, ExportResolver, HandOver, Options, SingleExport, TcpSecurity, serve_handed_over,
};
use crate::here;
use crate::shard::Shard;

impl Agent {
    /// Serves a volume on its unix socket.
    pub(super) async fn open_nbd(&self, at: At, name: &str, size: u64) -> Result<Open, EngineError> {
        let (path, export) =
            self.serve_export(at.shard, name, size, move |shard| shard.target(at.copy, at.volume)).await?;
        let uri = format!("nbd+unix:///{name}?socket={}", path.display());
        Ok(Open::new(Place::Nbd { uri, tcp_uri: self.nbd_tcp_uri(name) }, Door::Nbd(export)))
    }

    /// Serves what `target` gives on a unix socket of this name, until the export is dropped.
    pub(super) async fn serve_export(
        &self,
        shard: u16,
        name: &str,
        size: u64,
        target: impl FnOnce(&Rc<Shard>) -> Option<Rc<dyn BlockTarget>> + Send + 'static,
    ) -> Result<(PathBuf, watch::Sender<u64>), EngineError> {
        let path = self.config.nbd.unix_dir.join(format!("{name}.sock"));
        let (export, attached) = watch::channel(size);
        let (socket, name_there, counts) = (path.clone(), name.to_owned(), self.nbd_counts());
        let opened = self.shard(shard).ask::<Result<(), String>>(move |shard, answer| {
            let result = target(shard).ok_or_else(|| "the volume is not open".to_owned()).and_then(|volume| {
                let listener = nbd::bind_unix(&socket).map_err(|error| error.to_string())?;
                let exports = Rc::new(SingleExport::new(name_there, volume));
                let serve = nbd::serve_unix(listener, exports, counts.on(shard));
                here::spawn(async move {
                    while_attached(attached, serve).await;
                    let _ = std::fs::remove_file(&socket); // gone already is as good
                });
                Ok(())
            });
            let _ = answer.send(result); // the asker went away
        });
        opened.await.map_err(|_| EngineError::Stopping)?.map_err(EngineError::Failed)?;
        Ok((path, export))
    }

    fn nbd_tcp_uri(&self, name: &str) -> Option<String> {
        let secured = matches!(self.config.nbd.tcp.as_ref()?.security, Security::Mutual(_));
        let scheme = if secured { "nbds" } else { "nbd" };
        Some(format!("{scheme}://{}/{name}", self.nbd_tcp?))
    }

    pub(super) fn nbd_counts(&self) -> Counts {
        Counts { max_connections: self.config.limits.nbd_connections as usize, metrics: self.nbd.clone() }
    }

    /// Serves every attached export on `listener` until dropped. To be spawned on the shard that it is called on.
    pub async fn serve_nbd_tcp(self: Arc<Self>, shard: Rc<Shard>, listener: TcpListener, security: TcpSecurity) {
        let options = self.nbd_counts().on(&shard);
        nbd::serve_tcp(listener, Rc::new(AttachedExports { agent: self }), security, options).await;
    }
}

/// What all NBD servers of the agent share.
#[derive(Clone)]
pub(super) struct Counts {
    max_connections: usize,
    metrics: nbd::NbdMetrics,
}

impl Counts {
    /// For a server on `shard`: what clients write lands in the memory that the shard's disks take as it is.
    pub(super) fn on(self, shard: &Shard) -> Options {
        Options {
            max_connections: self.max_connections,
            metrics: self.metrics,
            pool: shard.pool(),
            ..Options::default()
        }
    }
}

/// Runs `serve` until it ends or the volume is detached.
async fn while_attached(mut attached: watch::Receiver<u64>, serve: impl Future<Output = ()>) {
    tokio::select! {
        () = serve => {}
        () = async { while attached.changed().await.is_ok() {} } => {}
    }
}

/// The exports of the TCP listener: every volume that is attached over NBD.
struct AttachedExports {
    agent: Arc<Agent>,
}

impl AttachedExports {
    fn export(&self, at: At, entry: &Entry, size: &watch::Sender<u64>) -> Export {
        let info = ExportInfo { name: entry.name.to_string(), size: *size.borrow(), read_only: false, serving: true };
        let attached = size.subscribe();
        let agent = Arc::clone(&self.agent);
        let send = move |connection: HandOver| {
            let counts = agent.nbd_counts();
            agent.shard(at.shard).send(move |shard| {
                // A volume that was demoted since it was attached serves nobody: the connection is closed.
                let Some(volume) = shard.target(at.copy, at.volume).filter(|volume| volume.is_serving()) else {
                    return;
                };
                let serve = serve_handed_over(connection, volume, counts.on(shard));
                here::spawn(while_attached(attached, serve));
            });
        };
        Export::Elsewhere { info, send: Box::new(send) }
    }
}

impl ExportResolver for AttachedExports {
    fn resolve(&self, name: &str) -> Option<Export> {
        let state = self.agent.state();
        let mut named = state
            .volumes
            .values()
            .filter_map(|entry| Some((entry, entry.open.as_ref()?.export()?)))
            .filter(|(entry, _)| name.is_empty() || entry.name.as_str() == name);
        let (entry, size) = named.next()?;
        // The empty name is for the only export.
        let at = state.at(entry)?;
        named.next().is_none().then(|| self.export(at, entry, size))
    }

    fn list(&self) -> Vec<String> {
        let state = self.agent.state();
        let attached =
            state.volumes.values().filter(|entry| entry.open.as_ref().is_some_and(|open| open.export().is_some()));
        attached.map(|entry| entry.name.to_string()).collect()
    }
}
