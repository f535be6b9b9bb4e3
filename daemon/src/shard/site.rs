//! The streams of a copy to the other members of its group at this site.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tidemark_core::event::{ConnId, Input};
use tidemark_core::site::SiteMessage;
use tokio::sync::{Notify, mpsc};

use super::Volume;
use crate::peer::site::SiteStream;

/// Where to say something on a stream, and what rings when it is over.
type Standing = (mpsc::Sender<SiteMessage>, Rc<Notify>);

/// Streams that stand.
#[derive(Default)]
pub(super) struct SiteStreams(RefCell<BTreeMap<ConnId, Standing>>);

impl SiteStreams {
    /// Sends, or ends a stream whose other end does not take what it is told.
    pub(super) fn send(&self, conn: ConnId, message: SiteMessage) {
        let mut streams = self.0.borrow_mut();
        if let Some((stream, over)) = streams.get(&conn)
            && stream.try_send(message).is_err()
        {
            over.notify_one();
            streams.remove(&conn);
        }
    }

    pub(super) fn end_all(&self) {
        std::mem::take(&mut *self.0.borrow_mut()).into_values().for_each(|(_, over)| over.notify_one());
    }
}

impl Volume {
    /// Serves a stream to member `member` of the group at this site until either end closes it. To be spawned on the shard.
    pub async fn serve_site(self: Rc<Self>, member: usize, stream: SiteStream) {
        let conn = ConnId(self.next());
        let SiteStream { mut inbound, outbound } = stream;
        let over = Rc::new(Notify::new());
        self.site.0.borrow_mut().insert(conn, (outbound, over.clone()));
        self.tell(Input::SiteUp { conn, member });
        loop {
            tokio::select! {
                message = inbound.recv() => match message {
                    Some(message) => self.tell(Input::SiteMessage(conn, message)),
                    None => break,
                },
                () = over.notified() => break,
            }
        }
        self.site.0.borrow_mut().remove(&conn);
        self.tell(Input::SiteDown(conn));
    }
}
