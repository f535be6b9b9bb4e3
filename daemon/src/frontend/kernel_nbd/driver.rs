//! What the kernel's NBD driver is told, as calls: generic netlink family `nbd`, and what it shows in sysfs.
//!
//! Invariants: a device is only ever touched by its number together with the identifier that it was connected with, so that
//! another program's device is never taken for ours; a reconnection never carries a size, since the driver may hold the
//! device's input and output back to change it, and that waits for the reconnection.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::message::Request;
use super::netlink::{Netlink, NetlinkError};

const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

/// The commands of `<linux/nbd-netlink.h>` that are used here.
mod command {
    pub const CONNECT: u8 = 1;
    pub const DISCONNECT: u8 = 2;
    pub const RECONFIGURE: u8 = 3;
}

/// Its attributes.
mod attribute {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const TIMEOUT: u16 = 4;
    pub const SERVER_FLAGS: u16 = 5;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    pub const BACKEND_IDENTIFIER: u16 = 10;
    /// Inside SOCKETS.
    pub const SOCKET_ITEM: u16 = 1;
    /// Inside SOCKET_ITEM.
    pub const SOCKET_FD: u16 = 1;
}

/// Why the driver did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The driver is not there.
    #[error("this kernel has no NBD driver: load the module nbd ({0})")]
    Missing(String),
    /// This process may not.
    #[error("the kernel does not let this process {operation}: it needs CAP_SYS_ADMIN in the first user namespace")]
    Denied {
        /// What was asked for.
        operation: &'static str,
    },
    /// The device was disconnected, or is another's by now. It may still be there for those who have it in use; it comes to no
    /// life again.
    #[error("the device is disconnected")]
    Disconnected,
    /// Every device is taken and the kernel makes no further one.
    #[error("the kernel has no free NBD device: {0}")]
    NoDevice(#[source] io::Error),
    /// The driver refused.
    #[error("the NBD driver did not {operation}: {source}")]
    Call {
        /// What was asked for.
        operation: &'static str,
        /// Why.
        source: NetlinkError,
    },
}

/// How long the kernel waits for us, in whole seconds as it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// What a device without a connection waits for a new one, before its input and output fails.
    pub dead: Duration,
    /// A request that was not answered for so long ends its connection and is sent again over the next one. `ZERO`: requests
    /// wait for ever, and one that was sent over a connection that is no more is sent again.
    pub resend: Duration,
}

/// A device to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDevice<'a> {
    /// Says whose it is.
    pub identifier: &'a str,
    /// Bytes.
    pub size: u64,
    /// Bytes of a sector.
    pub block_size: u64,
    /// Transmission flags of the NBD protocol.
    pub flags: u16,
    /// Patience.
    pub timeouts: Timeouts,
}

/// The driver.
#[derive(Debug)]
pub struct Driver {
    netlink: Netlink,
    family: u16,
}

impl Driver {
    /// Finds the driver, and has its module loaded when it is not there.
    ///
    /// # Errors
    /// [`DriverError::Missing`] or [`DriverError::Call`].
    pub fn open() -> Result<Self, DriverError> {
        match Self::find()? {
            Some(driver) => Ok(driver),
            None => {
                let loaded = load_module();
                let reason = loaded.err().unwrap_or_else(|| "it is loaded and does not answer".to_owned());
                Self::find()?.ok_or(DriverError::Missing(reason))
            }
        }
    }

    /// The driver if it is loaded.
    ///
    /// # Errors
    /// [`DriverError::Call`].
    pub fn find() -> Result<Option<Self>, DriverError> {
        let failed = |source| DriverError::Call { operation: "answer", source };
        let mut netlink = Netlink::open().map_err(failed)?;
        let family = netlink.family(FAMILY).map_err(failed)?;
        Ok(family.map(|family| Self { netlink, family }))
    }

    /// Makes a device that sends its requests over `socket`; gives its number.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn connect(&mut self, device: &NewDevice<'_>, socket: BorrowedFd<'_>) -> Result<u32, DriverError> {
        let request = connect_request(self.family, device, socket.as_raw_fd() as u32);
        let mut index = None;
        let asked = self.netlink.call(request, |attributes| {
            index = attributes.find_u32(attribute::INDEX)?;
            Ok(())
        });
        asked.map_err(|source| match system(&source) {
            Some(libc::EBUSY | libc::ENOSPC | libc::ENOMEM) => DriverError::NoDevice(io::Error::other(source)),
            _ => refused("connect a device", source),
        })?;
        let silent = || NetlinkError::System(io::ErrorKind::NotFound.into());
        index.ok_or_else(|| DriverError::Call { operation: "name the device that it connected", source: silent() })
    }

    /// Gives a device that has lost its connection a new one. A device that has one keeps it, and `socket` is dropped by the
    /// kernel without a word.
    ///
    /// # Errors
    /// [`DriverError`]; in particular [`DriverError::Disconnected`], also when the device is not that of `identifier` any more.
    pub fn reconnect(
        &mut self,
        index: u32,
        identifier: &str,
        timeouts: Timeouts,
        socket: BorrowedFd<'_>,
    ) -> Result<(), DriverError> {
        let request = with_timeouts(self.reconfigure(index, identifier), timeouts);
        let request = with_socket(request, socket.as_raw_fd() as u32);
        self.changed("reconnect the device", request)
    }

    /// Changes what the kernel waits for.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn set_timeouts(&mut self, index: u32, identifier: &str, timeouts: Timeouts) -> Result<(), DriverError> {
        let request = with_timeouts(self.reconfigure(index, identifier), timeouts);
        self.changed("change its timeouts", request)
    }

    /// Changes the size of a connected device, in bytes. May wait until requests under way are answered.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn resize(&mut self, index: u32, identifier: &str, size: u64) -> Result<(), DriverError> {
        let request = self.reconfigure(index, identifier).with_u64(attribute::SIZE_BYTES, size);
        self.changed("resize the device", request)
    }

    /// Ends a device: its requests fail, and its number is free when its last user has closed it.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn disconnect(&mut self, index: u32) -> Result<(), DriverError> {
        let request = Request::new(self.family, command::DISCONNECT, VERSION).with_u32(attribute::INDEX, index);
        self.told("disconnect the device", request)
    }

    fn reconfigure(&self, index: u32, identifier: &str) -> Request {
        Request::new(self.family, command::RECONFIGURE, VERSION)
            .with_u32(attribute::INDEX, index)
            .with_text(attribute::BACKEND_IDENTIFIER, identifier)
    }

    fn changed(&mut self, operation: &'static str, request: Request) -> Result<(), DriverError> {
        self.netlink.call(request, |_| Ok(())).map_err(|source| match system(&source) {
            // There is no request of ours that it could find wrong otherwise.
            Some(libc::EINVAL) => DriverError::Disconnected,
            _ => refused(operation, source),
        })
    }

    fn told(&mut self, operation: &'static str, request: Request) -> Result<(), DriverError> {
        self.netlink.call(request, |_| Ok(())).map_err(|source| refused(operation, source))
    }
}

fn connect_request(family: u16, device: &NewDevice<'_>, socket: u32) -> Request {
    let request = Request::new(family, command::CONNECT, VERSION)
        .with_u64(attribute::SIZE_BYTES, device.size)
        .with_u64(attribute::BLOCK_SIZE_BYTES, device.block_size)
        .with_u64(attribute::SERVER_FLAGS, device.flags.into())
        .with_text(attribute::BACKEND_IDENTIFIER, device.identifier);
    with_socket(with_timeouts(request, device.timeouts), socket)
}

fn with_timeouts(request: Request, timeouts: Timeouts) -> Request {
    request
        .with_u64(attribute::TIMEOUT, timeouts.resend.as_secs())
        .with_u64(attribute::DEAD_CONN_TIMEOUT, timeouts.dead.as_secs())
}

fn with_socket(request: Request, socket: u32) -> Request {
    request.with_nested(attribute::SOCKETS, |sockets| {
        sockets.with_nested(attribute::SOCKET_ITEM, |item| item.with_u32(attribute::SOCKET_FD, socket))
    })
}

fn system(error: &NetlinkError) -> Option<i32> {
    match error {
        NetlinkError::System(error) => error.raw_os_error(),
        NetlinkError::Malformed(_) => None,
    }
}

fn refused(operation: &'static str, source: NetlinkError) -> DriverError {
    match system(&source) {
        Some(libc::EPERM) => DriverError::Denied { operation },
        _ => DriverError::Call { operation, source },
    }
}

/// # Errors
/// What `modprobe` says.
fn load_module() -> Result<(), String> {
    let tried = Command::new("modprobe").arg(FAMILY).stdin(Stdio::null()).output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("modprobe cannot be run: {error}")),
    }
}

/// True when `modprobe` would find the driver.
pub fn module_exists() -> bool {
    let mut tried = Command::new("modprobe");
    tried.args(["--dry-run", "--quiet", FAMILY]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    tried.status().is_ok_and(|status| status.success())
}

/// A device that is connected, or was and is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub index: u32,
    /// What it was connected with.
    pub identifier: String,
}

/// Every device that was connected with an identifier.
pub fn devices() -> Vec<Found> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let index = entry.file_name().to_str()?.strip_prefix("nbd")?.parse().ok()?;
        let identifier = fs::read_to_string(entry.path().join("backend")).ok()?.trim_end_matches('\n').to_owned();
        Some(Found { index, identifier })
    });
    found.filter(|device| !device.identifier.is_empty()).collect()
}

/// True while device `index` is that of `identifier`.
pub fn is_ours(index: u32, identifier: &str) -> bool {
    devices().iter().any(|device| device.index == index && device.identifier == identifier)
}

/// `/dev/nbdN`.
pub fn path_of(index: u32) -> PathBuf {
    Path::new("/dev").join(format!("nbd{index}"))
}

/// Whether that is the name of an NBD device.
pub fn is_device(path: &Path) -> bool {
    let number = path.to_str().and_then(|path| path.strip_prefix("/dev/nbd"));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::super::message::{Answer, Attributes, next_answer};
    use super::*;

    fn device() -> NewDevice<'static> {
        let timeouts = Timeouts { dead: Duration::from_secs(300), resend: Duration::from_secs(10) };
        NewDevice { identifier: "tidemark:n:v", size: 1 << 33, block_size: 512, flags: 0x16d, timeouts }
    }

    fn with_attributes(request: Request, check: impl FnOnce(Attributes<'_>)) {
        let bytes = request.sealed(1);
        match next_answer(&mut bytes.as_slice()) {
            Ok(Some(Answer::Content { attributes, .. })) => check(attributes),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_connection_names_size_flags_timeouts_owner_and_socket() {
        with_attributes(connect_request(30, &device(), 12), |attributes| {
            let number = |kind| attributes.find(kind).unwrap().map(|v| u64::from_ne_bytes(v.try_into().unwrap()));
            assert_eq!(number(attribute::SIZE_BYTES), Some(1 << 33));
            assert_eq!(number(attribute::BLOCK_SIZE_BYTES), Some(512));
            assert_eq!(number(attribute::SERVER_FLAGS), Some(0x16d));
            assert_eq!(number(attribute::TIMEOUT), Some(10));
            assert_eq!(number(attribute::DEAD_CONN_TIMEOUT), Some(300));
            assert_eq!(attributes.find(attribute::BACKEND_IDENTIFIER).unwrap(), Some(b"tidemark:n:v\0".as_slice()));
            assert_eq!(attributes.find(attribute::INDEX), Ok(None), "the kernel chooses the device");
            let sockets = attributes.find(attribute::SOCKETS).unwrap().unwrap();
            assert_eq!(sockets, [12, 0, 1, 128, 8, 0, 1, 0, 12, 0, 0, 0]);
        });
    }

    #[test]
    fn a_reconnection_carries_no_size() {
        let request = Request::new(30, command::RECONFIGURE, VERSION);
        with_attributes(with_socket(with_timeouts(request, device().timeouts), 3), |attributes| {
            assert_eq!(attributes.find(attribute::SIZE_BYTES), Ok(None));
            assert!(attributes.find(attribute::SOCKETS).unwrap().is_some());
        });
    }

    #[test]
    fn a_refusal_for_lack_of_privilege_says_so() {
        let denied = NetlinkError::System(io::Error::from_raw_os_error(libc::EPERM));
        assert!(matches!(refused("connect a device", denied), DriverError::Denied { .. }));
        let other = NetlinkError::System(io::Error::from_raw_os_error(libc::EINVAL));
        assert!(matches!(refused("connect a device", other), DriverError::Call { .. }));
    }
}
