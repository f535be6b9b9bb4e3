//! Keeps a process that serves a disk from waiting for that disk.
//!
//! When memory is short the kernel writes dirty pages of the file system above the volume, and the writing ends here. A
//! serving thread that waits for memory then waits for itself. Two measures help, neither is a condition: the threads are
//! marked as I/O flushers, and the process's pages are kept in memory. Both need privileges; a refusal is reported only.
#![allow(unsafe_code)]

use std::io;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

const PR_SET_IO_FLUSHER: libc::c_int = 57;
const CAP_IPC_LOCK: u32 = 14;

/// What the kernel permitted. `Err` holds the reason, for status and log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardening {
    /// The threads are marked as I/O flushers.
    pub io_flusher: Result<(), String>,
    /// The pages of the process stay in memory once touched.
    pub memory: Result<(), String>,
}

/// Marks the calling thread, and every thread it starts later, as serving a disk. For the threads of the FUSE
/// frontend its attach does this; the thread that runs the volume should call it too.
///
/// # Errors
/// The reason of a refusal, as text (usually a missing `CAP_SYS_RESOURCE`). Nothing else changes.
pub fn mark_io_flusher() -> Result<(), String> {
    // SAFETY: this option takes four integers and changes flags of the calling thread only.
    match unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1 as libc::c_ulong, 0, 0, 0) } {
        0.. => Ok(()),
        _ => Err(format!("PR_SET_IO_FLUSHER: {}", io::Error::last_os_error())),
    }
}

/// Keeps every page of the process in memory from its first use on. Doing it twice is harmless.
///
/// # Errors
/// The reason of a refusal, as text. Under a limit on locked memory it is not tried: later allocations would fail.
pub fn lock_memory() -> Result<(), String> {
    if !may_lock_everything() {
        return Err("mlockall: RLIMIT_MEMLOCK is finite and CAP_IPC_LOCK is missing".to_owned());
    }
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault();
    mlockall(flags).map_err(|errno| format!("mlockall: {errno}"))
}

/// `MCL_ONFAULT`: without it every unused byte of a thread's buffer would take memory.
fn on_fault() -> MlockAllFlags {
    MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT)
}

fn may_lock_everything() -> bool {
    let unlimited = getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    unlimited || std::fs::read_to_string("/proc/self/status").is_ok_and(|status| has_capability(&status, CAP_IPC_LOCK))
}

fn has_capability(status: &str, capability: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|set| set >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_read_from_the_effective_set() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000004000\n";
        assert!(has_capability(status, CAP_IPC_LOCK));
        assert!(!has_capability(status, 15));
        assert!(!has_capability("Name:\tx\n", CAP_IPC_LOCK));
    }
}
