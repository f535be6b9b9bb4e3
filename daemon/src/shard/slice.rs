//! A shard that looks for work gives way at once to whoever wakes.
//!
//! What a shard waits for is often made ready by another thread of the same processor: the kernel completes a direct write to a
//! file in a worker that is bound to the processor which took the disk's interrupt, and a client on this host sends its next
//! request there. Linux lets the running thread finish its time slice first, since it looks like any other that computes. Then the shard looks for
//! something that cannot come before it stops looking: measured, every tenth write of 4 KiB at depth 1 waited for the whole of
//! `poll_us`, and on a busy host a write with its flush for milliseconds (docs/decisions/0006).
//!
//! From Linux 6.12 on a thread may ask for a slice of its own. One that wakes with a shorter slice takes the processor
//! from one with a longer one, so a long slice says just what is meant: this thread can be interrupted. Its share of the processor stays the same.

#![allow(unsafe_code)] // the system calls have no safe wrapper

use std::io;

use nix::errno::Errno;

/// The slice that a shard asks for, in ns: several times any default (0.7 to 3 ms), within the kernel's bounds (0.1 to 100 ms).
const SLICE_NS: u64 = 20_000_000;

/// Asks for a long slice for the calling thread. Kernels before 6.12 take the call and have no such slices.
///
/// # Errors
/// The kernel's, where a sandbox forbids the call. Nothing depends on it but speed.
pub(super) fn lengthen() -> io::Result<()> {
    let mut attributes = attributes()?;
    // Nothing but the default policy has such a slice; whoever gave the agent another one meant it.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: 0 names the calling thread; the structure is valid, carries its own size, and is only read.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })?;
    Ok(())
}

/// The scheduling of the calling thread, its niceness among it: all of it is set together.
fn attributes() -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: 0 names the calling thread; the kernel writes no more than `size` bytes, which is the structure's.
    Errno::result(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    attributes.size = size;
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_slice_changes_neither_the_policy_nor_the_niceness_of_a_thread() {
        std::thread::spawn(|| {
            let before = attributes().unwrap();
            lengthen().unwrap();
            let after = attributes().unwrap();
            assert_eq!((before.sched_policy, before.sched_nice), (after.sched_policy, after.sched_nice));
            // A kernel that knows no slices reports none.
            assert!([0, SLICE_NS].contains(&after.sched_runtime), "{}", after.sched_runtime);
        })
        .join()
        .unwrap();
    }
}
