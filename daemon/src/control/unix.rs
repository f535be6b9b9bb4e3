//! The unix socket: private from its first moment, replacing a stale one and never a live one.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::ControlError;
use super::connection::{Guarded, MAX_CONNECTIONS};
use crate::crashsafe;

/// A bound socket; its file goes when this is dropped, unless a successor has replaced it.
pub(super) struct UnixSocket {
    listener: UnixListener,
    file: SocketFile,
}

struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == self.inode) {
            // Nothing is left to tell about a socket file that cannot be removed: the next start replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl UnixSocket {
    /// Binds `path` with the mode bits `mode`.
    pub async fn bind(path: &Path, mode: u32) -> Result<Self, ControlError> {
        refuse_live(path).await?;
        let bound = Self::replace(path, mode);
        bound.map_err(|source| ControlError::Socket { path: path.to_owned(), source })
    }

    /// Bound under another name, made private, then renamed: nobody can connect before the mode is right.
    fn replace(path: &Path, mode: u32) -> io::Result<Self> {
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        crashsafe::create_dir(dir)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        let temporary = dir.join(format!(".{name}.{}", std::process::id()));
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&temporary)?;
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
        let inode = std::fs::symlink_metadata(&temporary)?.ino();
        std::fs::rename(&temporary, path)?;
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), inode } })
    }

    /// Accepts until nobody takes the connections any more.
    pub async fn accept(self, connections: mpsc::Sender<io::Result<Guarded<UnixStream>>>) {
        let Self { listener, file: _file } = self;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = connections.closed() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    if connections.send(Ok(Guarded::new(stream, place))).await.is_err() {
                        return;
                    }
                }
                Err(error) => super::accept_failed("admin socket", &error).await,
            }
        }
    }
}

/// A socket that somebody serves is another agent's; anything else than a socket is somebody's file.
async fn refuse_live(path: &Path) -> Result<(), ControlError> {
    let Ok(there) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !there.file_type().is_socket() {
        return Err(ControlError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ControlError::InUse { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let first = UnixSocket::bind(&path, 0o600).await.unwrap();
        assert!(matches!(UnixSocket::bind(&path, 0o600).await, Err(ControlError::InUse { .. })));
        std::mem::forget(first.file);
        drop(first.listener);
        assert!(path.exists());
        let _second = UnixSocket::bind(&path, 0o640).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(UnixSocket::bind(&path, 0o600).await, Err(ControlError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn the_file_goes_with_its_socket_but_not_with_a_successors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = UnixSocket::replace(&path, 0o600).unwrap();
        let second = UnixSocket::replace(&path, 0o600).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
