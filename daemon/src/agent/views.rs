//! Views of what a copy holds, or held at the end of a sealed branch: opened read-only through a frontend of their own, beside whatever
//! the volume itself is attached by. The copy goes on meanwhile; a view that is in its way ends (see the core), and says so to who
//! reads it.
//!
//! Views are not remembered: they end with the agent.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemark_core::event::HoldId;
use tidemark_core::node::Held;
use tidemark_core::types::{Boundary, VolumeId};
use tidemark_core::verb::VerbError;
use tokio::sync::oneshot;

use super::volumes::failed;
use super::{Agent, At, Door, Open, fuse};
use crate::control::{Attachment, EngineError, FrontendKind, Place, Seen};
use crate::frontend::BlockTarget;
use crate::view::{View, ViewTarget};

/// Views that an agent has open at a time.
const MAX_VIEWS: usize = 64;
/// How long the base is waited for to come to rest.
const REST: Duration = Duration::from_secs(10);

/// How long a copy that closes waits for a view that is just being opened or closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(15);

/// The right to open and close views of a copy.
#[derive(Default)]
pub(super) struct Viewing {
    turn: tokio::sync::Mutex<()>,
    /// The copy closes: no view of it is opened any more.
    over: AtomicBool,
}

impl Viewing {
    /// As long as this is held no view of the copy comes or goes.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// An open view of a volume.
pub(super) struct OpenView {
    open: Arc<Open>,
    view: Arc<View>,
    at: At,
    hold: HoldId,
}

fn refused(reason: &'static str, text: impl Into<String>) -> EngineError {
    EngineError::Refused { reason, text: text.into() }
}

impl Agent {
    /// Opens a view. Open already: answers with what is there. Goes on to its end when nobody waits for it any more.
    pub(super) async fn open_view(
        self: &Arc<Self>,
        at: At,
        seen: Seen,
        kind: FrontendKind,
    ) -> Result<Attachment, EngineError> {
        let agent = self.clone();
        let opened = self.runtime.spawn(async move { agent.do_open_view(at, seen, kind).await });
        opened.await.map_err(failed)?
    }

    async fn do_open_view(&self, at: At, seen: Seen, kind: FrontendKind) -> Result<Attachment, EngineError> {
        let viewing = self.viewing_of(at.copy).ok_or_else(|| EngineError::NoVolume(at.copy.to_string()))?;
        let _turn = viewing.turn().await;
        if self.state().stopping || viewing.is_over() {
            return Err(EngineError::Stopping);
        }
        match self.view_of(at.volume, seen) {
            Some(there) if !self.has_view_ended(at.volume, seen) => return Ok(there),
            Some(_) => self.end_view(at.volume, seen, true).await?,
            None => {}
        }
        if self.state().views.len() >= MAX_VIEWS {
            return Err(refused("limit", format!("no more than {MAX_VIEWS} views are open at a time: close one")));
        }
        let begins = match seen {
            Seen::Branch(number) => Some(self.branch_of(at.copy, number).await?.head.from),
            Seen::Present => None,
        };
        let (hold, held, ended) = self.hold(at, begins).await?;
        let opened = self.open_held(at, seen, kind, *held, ended).await;
        let (open, view) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.let_go(at, hold).await;
                return Err(error);
            }
        };
        let place = open.place().clone();
        self.state().views.insert((at.volume, seen), OpenView { open: Arc::new(open), view, at, hold });
        if viewing.is_over() {
            // It closed, and did not wait for this.
            self.end_view(at.volume, seen, true).await?;
            return Err(EngineError::Stopping);
        }
        Ok(Attachment { place, connections: 0 })
    }

    pub(super) fn viewing_of(&self, copy: VolumeId) -> Option<Arc<Viewing>> {
        Some(self.state().copies.get(&copy)?.viewing.clone())
    }

    /// Has the copy keep what the view is made of.
    async fn hold(
        &self,
        at: At,
        begins: Option<Boundary>,
    ) -> Result<(HoldId, Box<Held>, Arc<AtomicBool>), EngineError> {
        let ended = Arc::new(AtomicBool::new(false));
        let (answer, held) = oneshot::channel::<Result<Box<Held>, VerbError>>();
        let flag = Arc::clone(&ended);
        let hold = self.on_copy(at.copy, at.shard, move |copy| copy.hold(begins, flag, answer)).await?;
        match tokio::time::timeout(REST, held).await {
            Ok(Ok(held)) => Ok((hold, held?, ended)),
            Ok(Err(_)) => Err(EngineError::Verb(VerbError::Interrupted("the volume was closed".into()))),
            Err(_) => {
                self.let_go(at, hold).await;
                Err(refused("busy", "the base is written to and does not come to rest: try again"))
            }
        }
    }

    async fn let_go(&self, at: At, hold: HoldId) {
        // A copy that is closed has let go itself.
        let _ = self.on_copy(at.copy, at.shard, move |copy| copy.let_go_of(hold)).await;
    }

    async fn open_held(
        &self,
        at: At,
        seen: Seen,
        kind: FrontendKind,
        held: Held,
        ended: Arc<AtomicBool>,
    ) -> Result<(Open, Arc<View>), EngineError> {
        let no_volume = || EngineError::NoVolume(at.volume.to_string());
        let name = self.state().volumes.get(&at.volume).map(|entry| entry.name.clone()).ok_or_else(no_volume)?;
        let dir = self.dir_of(at.copy).ok_or_else(no_volume)?;
        let branch = match seen {
            Seen::Branch(number) => Some(number),
            Seen::Present => None,
        };
        let opened = tokio::task::spawn_blocking(move || View::open(&dir, &held, branch, ended));
        let view = Arc::new(opened.await.map_err(failed)?.map_err(failed)?);
        let nothing = || refused("no-volume-then", format!("the group had no volume {name} then"));
        let size = view.size_of(at.volume).filter(|size| *size > 0).ok_or_else(nothing)?;
        let name = format!("{name}@{seen}");
        let target = ViewTarget { view: view.clone(), volume: at.volume, runtime: self.runtime.clone() };
        let open = match kind {
            FrontendKind::Auto if fuse::works().is_err() => self.show_on_socket(at, &name, size, target).await?,
            FrontendKind::Nbd => self.show_on_socket(at, &name, size, target).await?,
            FrontendKind::Auto | FrontendKind::Fuse => self.open_fuse_view(&name, size, target).await?,
            FrontendKind::NbdDevice => {
                return Err(refused("frontend-unavailable", "a view is opened by the frontend nbd or fuse"));
            }
        };
        Ok((open, view))
    }

    async fn show_on_socket(&self, at: At, name: &str, size: u64, view: ViewTarget) -> Result<Open, EngineError> {
        let (path, export) =
            self.serve_export(at.shard, name, size, move |_| Some(Rc::new(view) as Rc<dyn BlockTarget>)).await?;
        let uri = format!("nbd+unix:///{name}?socket={}", path.display());
        Ok(Open::new(Place::Nbd { uri, tcp_uri: None }, Door::Nbd(export)))
    }

    /// Where an open view is found.
    pub(super) fn view_of(&self, volume: VolumeId, seen: Seen) -> Option<Attachment> {
        let place = self.state().views.get(&(volume, seen))?.open.place().clone();
        Some(Attachment { place, connections: 0 })
    }

    fn has_view_ended(&self, volume: VolumeId, seen: Seen) -> bool {
        self.state().views.get(&(volume, seen)).is_some_and(|open| open.view.has_ended())
    }

    /// Closes a view. Not open: success. In use: refused unless `force`.
    pub(super) async fn close_view(&self, volume: VolumeId, seen: Seen, force: bool) -> Result<(), EngineError> {
        let copy = self.state().views.get(&(volume, seen)).map(|view| view.at.copy);
        let Some(viewing) = copy.and_then(|copy| self.viewing_of(copy)) else { return Ok(()) };
        let _turn = viewing.turn().await;
        self.end_view(volume, seen, force).await
    }

    async fn end_view(&self, volume: VolumeId, seen: Seen, force: bool) -> Result<(), EngineError> {
        let found = self.state().views.get(&(volume, seen)).map(|view| (view.open.clone(), view.at, view.hold));
        let Some((open, at, hold)) = found else { return Ok(()) };
        let closed = tokio::task::spawn_blocking(move || open.detach(force)).await.map_err(failed)?;
        closed.map_err(|text| refused("in-use", text))?;
        self.state().views.remove(&(volume, seen));
        self.let_go(at, hold).await;
        Ok(())
    }

    /// Closes every view of a copy, in use or not: the copy goes, and none is opened any more. One that hangs in its frontend is not
    /// waited for for ever.
    pub(super) async fn close_views(&self, copy: VolumeId) {
        let Some(viewing) = self.viewing_of(copy) else { return };
        viewing.over.store(true, Ordering::SeqCst);
        let turn = tokio::time::timeout(CLOSE_PATIENCE, viewing.turn()).await;
        if turn.is_err() {
            tracing::warn!(id = %copy, "a view of it is still being opened or closed");
        }
        let open: Vec<(VolumeId, Seen)> =
            self.state().views.iter().filter(|(_, view)| view.at.copy == copy).map(|(key, _)| *key).collect();
        for (volume, seen) in open {
            if let Err(error) = self.end_view(volume, seen, true).await {
                tracing::warn!(%volume, %seen, %error, "a view could not be closed");
            }
        }
    }

    /// True while somebody may be looking at that of a copy.
    pub(super) fn is_viewed(&self, copy: VolumeId, what: Seen) -> bool {
        self.state().views.iter().any(|((_, seen), view)| *seen == what && view.at.copy == copy)
    }

    /// Refuses what would take away what an open view shows.
    pub(super) fn refuse_while_viewed(&self, copy: VolumeId) -> Result<(), EngineError> {
        let state = self.state();
        let Some(((_, seen), _)) = state.views.iter().find(|(_, view)| view.at.copy == copy && !view.view.has_ended())
        else {
            return Ok(());
        };
        Err(refused("in-use", format!("a view of it is open ({seen}): close it first (`tidemark branch close`)")))
    }
}
