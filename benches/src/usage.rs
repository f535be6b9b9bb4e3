//! What processes cost: CPU seconds and resident memory, of whole process trees.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};
use tidemark_tests::process;

/// Between two looks at the memory.
const INTERVAL: Duration = Duration::from_millis(250);

/// CPU seconds of the trees below `roots`, user and system, ended children included.
pub fn cpu_seconds(roots: &[i32]) -> f64 {
    let ticks: u64 = trees(roots).iter().map(|&pid| ticks_of(pid)).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks as f64 / per_second as f64
}

fn ticks_of(pid: i32) -> u64 {
    let stat = process::stat(pid).unwrap_or_default();
    // utime, stime, cutime, cstime: fields 14 to 17, the first here being field 3.
    stat.iter().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Resident memory of the trees below `roots` in bytes.
pub fn resident_bytes(roots: &[i32]) -> u64 {
    trees(roots).iter().map(|&pid| resident_of(pid)).sum()
}

fn resident_of(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() << 10
}

fn trees(roots: &[i32]) -> Vec<i32> {
    roots.iter().flat_map(|&root| process::tree(root)).collect()
}

/// Watches memory while something runs.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Starts watching the trees below `roots`.
    pub fn start(roots: Vec<i32>) -> Self {
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (stop, most) = (Arc::clone(&stop), Arc::clone(&most));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    most.fetch_max(resident_bytes(&roots), Ordering::Relaxed);
                    std::thread::sleep(INTERVAL);
                }
            }
        });
        Self { stop, most, thread }
    }

    /// The most that was resident.
    pub fn most(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        // A panic in there was printed.
        let _ = self.thread.join();
        self.most.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_memory_and_time() {
        let own = [std::process::id() as i32];
        let mut sum = 0_u64;
        while cpu_seconds(&own) < 0.02 {
            sum = sum.wrapping_add((0..1_000_000_u64).map(std::hint::black_box).sum());
        }
        assert!(resident_bytes(&own) > 100_000, "{sum}");
    }
}
