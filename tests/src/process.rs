//! Child processes of the harness: run one to its end, find and end a whole tree, wait with a limit.
//!
//! Signals go to process ids that the harness started or that descend from them, never to names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs `command` to its end and returns what it printed.
///
/// # Errors
/// When it cannot start or does not end with 0; the message holds its command line and what it printed on stderr.
pub fn checked(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {}", line(command)))?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{} ended with {}: {}{}", line(command), output.status, err.trim(), last_lines(&out, 5));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as a person would type it, for messages.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The last lines of a log file, for messages.
pub fn tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    format!("--- end of {}\n{}", path.display(), last_lines(&text, 25))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// `pid` and every process that descends from it, parents first.
pub fn tree(pid: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (child, parent) in parents() {
        children.entry(parent).or_default().push(child);
    }
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(children.remove(&parent).unwrap_or_default());
        next += 1;
    }
    found
}

/// Every process of the host with its parent.
fn parents() -> Vec<(i32, i32)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| Some((pid, parent(pid)?)))
        .collect()
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The fields of `/proc/PID/stat` after the name: state first.
pub fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and brackets: the fields begin after the last one.
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// Processor seconds that a process has used so far.
pub fn processor_seconds(pid: i32) -> f64 {
    let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    // User and system time, fields 14 and 15 of the whole line.
    let ticks = stat(pid).map_or(0, |stat| stat.iter().skip(11).take(2).filter_map(|t| t.parse::<i64>().ok()).sum());
    ticks as f64 / ticks_per_second as f64
}

/// Sends a signal; a process that is gone is no error.
pub fn signal(pid: i32, signal: Signal) {
    // Not there any more is the only failure that can happen to one's own children.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// SIGKILL to all of them, in this order.
pub fn kill_all(pids: &[i32]) {
    pids.iter().for_each(|&pid| signal(pid, Signal::SIGKILL));
}

/// SIGKILL to `pid` and every process that descends from it, also to those that are being born meanwhile.
pub fn kill_tree(pid: i32) {
    // A parent that is stopped forks no more: when a look finds only stopped processes, it has found all of them.
    let mut stopped = Vec::new();
    loop {
        let fresh: Vec<i32> = tree(pid).into_iter().filter(|found| !stopped.contains(found)).collect();
        if fresh.is_empty() {
            break;
        }
        fresh.iter().for_each(|&found| stop(found));
        stopped.extend(fresh);
    }
    kill_all(&stopped);
}

/// Stops a process and waits until it is stopped, or gone, or in a system call that does not end.
fn stop(pid: i32) {
    signal(pid, Signal::SIGSTOP);
    let deadline = Instant::now() + Duration::from_millis(200);
    let runs = || stat(pid).is_some_and(|stat| stat.first().is_some_and(|state| !"TtZX".contains(state.as_str())));
    while runs() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Waits for the end of `child`, at most `limit`; `None` when it goes on.
///
/// # Errors
/// When it is no child of this process.
pub fn wait_timeout(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_says_what_it_was_and_why() {
        let error = checked(Command::new("sh").args(["-c", "echo no tide >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("sh -c 'echo no tide >&2; exit 3'") && error.contains("no tide"), "{error}");
    }

    #[test]
    fn a_tree_holds_the_children_of_children_and_can_be_killed() {
        let mut child = Command::new("sh").args(["-c", "sleep 1000 & sleep 1000 & wait"]).spawn().unwrap();
        let pid = child.id() as i32;
        let deadline = Instant::now() + Duration::from_secs(20);
        while tree(pid).len() < 3 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let pids = tree(pid);
        assert_eq!((pids.len(), pids[0]), (3, pid));
        kill_tree(pid);
        assert!(wait_timeout(&mut child, Duration::from_secs(20)).unwrap().is_some());
    }
}
