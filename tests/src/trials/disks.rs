//! Disks that are full or do not answer.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::field::{Condition, Field, PATIENCE, VOLUME, Wishes, expect_metric};
use crate::agents::Site;

/// Short, so that a trial does not wait for the default of half a minute.
const DISK_TIMEOUT: &str = "2s";

/// The log may grow to more than what the disk has.
pub(super) fn full_log(condition: &Condition) -> Result<String> {
    full_at_a(condition, "1Gi")
}

/// The log has all its segments and goes round; the base is sparse and cannot grow.
pub(super) fn full_base(condition: &Condition) -> Result<String> {
    full_at_a(condition, "16Mi")
}

/// A's disk is full: the volume stops acknowledging and says why, fails nothing, and goes on when space returns.
fn full_at_a(condition: &Condition, log_size: &str) -> Result<String> {
    let wishes = Wishes { log_size, on_volatile_disks: true, ..Wishes::default() };
    Field::new(condition, &wishes)?.play(|field| {
        field.expect_progress()?;
        field.sites.a.disk().send("enospc on")?;
        let view = field.wait("full log", |view| view.role() == "suspended-log-full")?;
        expect_metric(&field.sites.a, "role", "suspended-log-full")?;
        ensure!(!view.role_reason().is_empty(), "no reason is given");
        std::thread::sleep(condition.span);
        field.verifier.expect_unbroken()?;
        field.sites.a.disk().send("enospc off")?;
        field.wait("primary with space again", |view| view.role() == "primary")?;
        field.expect_progress()?;
        Ok("suspended-log-full, and on with space".to_owned())
    })
}

/// B's disk is full: flushes wait for it, nothing fails, and all goes on when space returns.
pub(super) fn full_peer(condition: &Condition) -> Result<String> {
    let wishes = Wishes { log_size: "16Mi", on_volatile_disks: true, ..Wishes::default() };
    Field::new(condition, &wishes)?.play(|field| {
        field.expect_progress()?;
        field.sites.b.disk().send("enospc on")?;
        let stuck = settled(field, condition.span);
        field.verifier.expect_unbroken()?;
        field.sites.b.disk().send("enospc off")?;
        field.expect_progress()?;
        ensure!(stuck, "the load went on although B had no space");
        Ok("flushes waited, and on with space".to_owned())
    })
}

/// Whether the load comes to a stop within a while.
fn settled(field: &Field, span: Duration) -> bool {
    (0..PATIENCE.as_secs()).any(|_| {
        let before = field.answered();
        std::thread::sleep(Duration::from_secs(1).max(span / 4));
        field.answered() == before
    })
}

/// A is killed while its disk is full: it comes back, says the same, and goes on with space.
pub(super) fn full_restart(condition: &Condition) -> Result<String> {
    let wishes = Wishes { log_size: "16Mi", on_volatile_disks: true, ..Wishes::default() };
    Field::new(condition, &wishes)?.play(|field| {
        field.expect_progress()?;
        field.sites.a.disk().send("enospc on")?;
        field.wait("full log", |view| view.role() == "suspended-log-full")?;
        field.sites.a.kill();
        field.sites.a.start(&field.sites.stage)?;
        let back = field.wait("role", |view| ["primary", "suspended-log-full"].contains(&view.role()))?;
        field.sites.a.disk().send("enospc off")?;
        field.wait("primary with space again", |view| view.role() == "primary")?;
        field.verifier.pause()?;
        field.verifier.check()?;
        field.verifier.resume();
        field.expect_progress()?;
        Ok(format!("{} after the restart, and on with space", back.role()))
    })
}

/// A sync of A's log fails: the role ends at once and for good, and B takes over without a loss.
pub(super) fn failed_sync(condition: &Condition) -> Result<String> {
    let wishes = Wishes { on_volatile_disks: true, ..Wishes::default() };
    Field::new(condition, &wishes)?.play_to_the_end_of_a(|field| {
        field.expect_progress()?;
        field.sites.a.disk().send("eio sync")?;
        field.wait("end of the role", |view| view.role() == "suspended-failed")?;
        expect_metric(&field.sites.a, "role", "suspended-failed")?;
        field.sites.a.disk().send("eio off")?;
        field.sites.a.kill();
        field.sites.a.start(&field.sites.stage)?;
        field.wait("memory of the failure", |view| view.copy() == "failed" && view.role() != "primary")?;
        Ok("failed for good, taken over".to_owned())
    })
}

/// A's disk hangs: after `diskTimeout` the copy is failed and says so, and B takes over without a loss.
pub(super) fn hung_disk(condition: &Condition) -> Result<String> {
    let wishes = Wishes { disk_timeout: DISK_TIMEOUT, on_volatile_disks: true, ..Wishes::default() };
    Field::new(condition, &wishes)?.play_to_the_end_of_a(|field| {
        field.expect_progress()?;
        field.sites.a.disk().send("hang on")?;
        let named = expect_hang_named(&field.sites.a);
        let role = field.wait("end of the role", |view| view.role() == "suspended-failed");
        field.sites.a.disk().send("hang off")?;
        named?;
        role?;
        Ok("failed by name, taken over".to_owned())
    })
}

/// B's disk hangs: the same there; A's flushes wait, and go on when B was started again.
pub(super) fn hung_peer(condition: &Condition) -> Result<String> {
    let wishes = Wishes { disk_timeout: DISK_TIMEOUT, on_volatile_disks: true, ..Wishes::default() };
    Field::new(condition, &wishes)?.play(|field| {
        field.expect_progress()?;
        field.sites.b.disk().send("hang on")?;
        let named = expect_hang_named(&field.sites.b);
        field.sites.b.disk().send("hang off")?;
        named?;
        field.verifier.expect_unbroken()?;
        field.sites.b.kill();
        field.sites.b.start(&field.sites.stage)?;
        field.expect_progress()?;
        Ok("failed by name, and on after its restart".to_owned())
    })
}

fn expect_hang_named(site: &Site) -> Result<()> {
    let view = site.cli().wait_for(VOLUME, "named hang", PATIENCE, |view| view.copy() == "failed")?;
    ensure!(view.copy_reason().contains("has not answered"), "the reason is {:?}", view.copy_reason());
    expect_metric(site, "copy", "failed")
}
