//! Row by row.

use std::time::Duration;

use super::*;

#[test]
fn row_01_a_healthy_pair_switches_over_under_load_and_loses_nothing() -> Result<()> {
    let stand = Stand::new("01", "true")?;
    stand.is_refused(&stand.sites.b, &[], "primary")?;
    stand.ledger.take_pause();
    stand.switch_over()?;
    println!("row 1: the switchover paused for {:?}", stand.ledger.take_pause());
    stand.ends_whole(Place::B)
}

#[test]
fn row_02_a_link_cut_under_load_leaves_the_peer_out_and_heals_by_the_difference() -> Result<()> {
    const FILLED: u64 = 48 << 20;
    let stand = Stand::new("02", "true")?;
    ledger::fill(&stand.sites.a.cli(), FILLED)?;
    stand.wait_until_whole(&stand.sites.a)?;
    let (sent, written) = (stand.sites.a.cli().show(NAME)?, stand.ledger.count());
    stand.ledger.take_pause();
    stand.cut(&[AB])?;
    stand.wait_until_alone()?;
    stand.goes_on()?;
    println!("row 2: the cut paused the load for {:?}", stand.ledger.take_pause());
    stand.is_refused(&stand.sites.b, &[], "may lack what was acknowledged")?;
    stand.stays(&stand.sites.b, "secondary")?;
    stand.sites.net().heal()?;
    let whole = stand.wait_until_whole(&stand.sites.a)?;
    let (moved, written) = (whole.sent_bytes() - sent.sent_bytes(), stand.ledger.count() - written);
    println!(
        "row 2: {moved} bytes moved for {written} blocks written since the cut, beside {FILLED} bytes that had not changed"
    );
    // A record that is alone in its frame takes two blocks.
    ensure!(moved < (written + 100) * 3 * ledger::BLOCK as u64, "{moved} bytes for {written} blocks");
    let seeded = "/status/counters/seededBytes";
    ensure!(whole.number(seeded) == sent.number(seeded), "blocks were copied: {}", whole.0);
    stand.ends_whole(Place::A)
}

#[test]
fn row_03_a_primary_whose_peer_dies_goes_on_alone() -> Result<()> {
    let mut stand = Stand::new("03", "true")?;
    stand.sites.b.kill();
    stand.wait_until_alone()?;
    stand.goes_on()?;
    stand.sites.b.start(&stand.sites.stage)?;
    stand.ends_whole(Place::A)
}

#[test]
fn row_04_a_dead_primary_is_replaced_after_its_lease() -> Result<()> {
    let mut stand = Stand::new("04", "true")?;
    stand.ledger.take_pause();
    stand.sites.a.kill();
    stand.wait_for_role(&stand.sites.b, "primary")?;
    stand.goes_on()?;
    println!("row 4: the takeover paused the load for {:?}", stand.ledger.take_pause());
    stand.ends_well(Place::B)
}

#[test]
fn row_05_without_a_witness_a_healthy_pair_serves_and_switches_over() -> Result<()> {
    let stand = Stand::new("05", "true")?;
    stand.cut(&[AW, BW])?;
    stand.stays(&stand.sites.a, "primary")?;
    stand.goes_on()?;
    stand.switch_over()?;
    stand.sites.net().heal()?;
    stand.ends_whole(Place::B)
}

#[test]
fn row_06_a_primary_cut_off_from_everybody_freezes_and_is_replaced() -> Result<()> {
    let stand = Stand::new("06", "true")?;
    stand.cut(&[AB, AW])?;
    stand.wait_for_role(&stand.sites.a, "suspended-lease-lost")?;
    stand.wait_for_role(&stand.sites.b, "primary")?;
    stand.goes_on()?;
    stand.sites.net().heal()?;
    stand.wait_for_role(&stand.sites.a, "secondary")?;
    stand.ends_whole(Place::B)
}

#[test]
fn row_07_a_primary_that_alone_sees_the_witness_goes_on_and_its_peer_waits() -> Result<()> {
    let stand = Stand::new("07", "true")?;
    stand.cut(&[AB, BW])?;
    stand.wait_until_alone()?;
    stand.goes_on()?;
    stand.stays(&stand.sites.b, "secondary")?;
    // B cannot know whether it was left out.
    ensure!(stand.sites.b.cli().promote(NAME).is_err(), "promoted");
    stand.sites.net().heal()?;
    stand.ends_whole(Place::A)
}

#[test]
fn row_08_when_nobody_sees_anybody_all_is_held_until_one_does() -> Result<()> {
    let stand = Stand::new("08", "true")?;
    stand.cut(&[AB, AW, BW])?;
    stand.wait_for_role(&stand.sites.a, "suspended-lease-lost")?;
    stand.ledger.stands_still(WITNESS.lease_wait())?;
    stand.stays(&stand.sites.b, "secondary")?;
    // A bare word is not enough.
    let word = ["--assert-peer-fenced", "--reason", "the test says so"];
    stand.is_refused(&stand.sites.b, &word, "--allow-unproven")?;
    stand.sites.net().heal()?;
    stand.ends_whole(Place::A)
}

#[test]
fn row_09_a_primary_without_peer_and_witness_holds_all_until_one_is_back() -> Result<()> {
    let mut stand = Stand::new("09", "true")?;
    stand.cut(&[AW])?;
    stand.sites.b.kill();
    stand.wait_for_role(&stand.sites.a, "suspended-lease-lost")?;
    stand.ledger.stands_still(Duration::from_secs(2))?;
    stand.sites.net().heal()?;
    stand.wait_until_alone()?;
    stand.goes_on()?;
    stand.ends_well(Place::A)
}

#[test]
fn row_10_a_follower_without_the_witness_does_not_take_over() -> Result<()> {
    let mut stand = Stand::new("10", "true")?;
    stand.cut(&[BW])?;
    stand.sites.a.kill();
    stand.stays(&stand.sites.b, "secondary")?;
    ensure!(stand.sites.b.cli().promote(NAME).is_err(), "A may have gone on without it");
    stand.sites.net().heal()?;
    stand.wait_for_role(&stand.sites.b, "primary")?;
    stand.goes_on()?;
    stand.ends_well(Place::B)
}

#[test]
fn row_11_and_12_a_copy_that_was_left_out_takes_over_neither_while_the_primary_lives_nor_when_it_is_dead() -> Result<()>
{
    let mut stand = Stand::new("12", "true")?;
    stand.cut(&[AB])?;
    stand.wait_until_alone()?;
    stand.goes_on()?;
    stand.is_refused(&stand.sites.b, &[], "may lack what was acknowledged")?;
    stand.sites.a.kill();
    stand.stays(&stand.sites.b, "secondary")?;
    stand.is_refused(&stand.sites.b, &[], "may lack what was acknowledged")?;
    stand.sites.net().heal()?;
    stand.sites.a.start(&stand.sites.stage)?;
    stand.ends_whole(Place::A)
}

#[test]
fn row_12_a_word_opens_the_copy_that_was_left_out_and_what_the_primary_had_beyond_it_is_kept() -> Result<()> {
    let mut stand = Stand::new("12-word", "true")?;
    // A primary says twice a second how far it is: who never heard that can prove nothing.
    std::thread::sleep(Duration::from_secs(2));
    stand.cut(&[AB])?;
    stand.wait_until_alone()?;
    stand.goes_on()?;
    stand.sites.a.kill();
    let word = ["--assert-peer-fenced", "--reason", "the test says so"];
    stand.is_refused(&stand.sites.b, &word, "accept with --")?;
    let bound = [&["promote", NAME], &word[..], &["--max-loss-bytes", "1Gi", "--max-loss-seconds", "600"]].concat();
    // Where the witness did not answer the busy agent in time, nothing is proven.
    let promoted = eventually(|| stand.sites.b.cli().json(&bound), "--allow-unproven");
    let promoted = stand.told(promoted)?;
    ensure!(promoted["promotionClass"] == "lossy", "{promoted}");
    stand.goes_on()?;
    stand.sites.net().heal()?;
    stand.sites.a.start(&stand.sites.stage)?;
    stand.wait_for(&stand.sites.a, "what it acknowledged alone", |view| view.copy() == "diverged")?;
    stand.goes_on()
}

#[test]
fn row_13_a_primary_alone_in_s_goes_on_without_the_witness() -> Result<()> {
    let stand = Stand::new("13", "true")?;
    stand.cut(&[AB])?;
    stand.wait_until_alone()?;
    stand.cut(&[AB, AW])?;
    stand.stays(&stand.sites.a, "primary")?;
    stand.goes_on()?;
    ensure!(stand.sites.b.cli().show(NAME)?.role() == "secondary", "B was left out");
    stand.sites.net().heal()?;
    stand.ends_whole(Place::A)
}

#[test]
fn row_14_a_primary_that_restarts_without_its_peer_goes_on_by_the_witness() -> Result<()> {
    let mut stand = Stand::new("14", "true")?;
    stand.sites.b.kill();
    stand.sites.a.kill();
    stand.sites.a.start(&stand.sites.stage)?;
    stand.wait_until_alone()?;
    stand.goes_on()?;
    stand.ends_well(Place::A)
}

#[test]
fn row_15_a_primary_that_restarts_alone_and_without_the_witness_holds_all() -> Result<()> {
    let mut stand = Stand::new("15", "true")?;
    stand.sites.b.kill();
    stand.sites.a.kill();
    stand.cut(&[AW])?;
    stand.sites.a.start(&stand.sites.stage)?;
    stand.stays(&stand.sites.a, "suspended-restart")?;
    stand.sites.net().heal()?;
    stand.wait_until_alone()?;
    stand.goes_on()?;
    stand.ends_well(Place::A)
}

#[test]
fn row_16_a_primary_that_was_replaced_comes_back_as_the_follower() -> Result<()> {
    let mut stand = Stand::new("16", "true")?;
    stand.sites.a.kill();
    stand.wait_for_role(&stand.sites.b, "primary")?;
    stand.goes_on()?;
    stand.sites.a.start(&stand.sites.stage)?;
    stand.wait_for_role(&stand.sites.a, "secondary")?;
    stand.ends_whole(Place::B)
}

#[test]
fn row_17_a_pair_that_lost_both_sites_resumes_where_it_was() -> Result<()> {
    let mut stand = Stand::new("17", "true")?;
    stand.sites.a.kill();
    stand.sites.b.kill();
    stand.sites.start()?;
    let served = stand.ledger.goes_on();
    stand.told(served)?;
    let serves = if stand.sites.a.cli().show(NAME)?.role() == "primary" { Place::A } else { Place::B };
    stand.ends_whole(serves)
}

#[test]
fn row_18_a_site_that_is_destroyed_is_replaced_and_its_empty_agent_changes_nothing() -> Result<()> {
    let mut stand = Stand::new("18", "true")?;
    stand.sites.a.kill();
    for gone in [stand.sites.a.pool().to_owned(), stand.sites.a.state_dir()] {
        std::fs::remove_dir_all(gone)?;
    }
    stand.wait_for_role(&stand.sites.b, "primary")?;
    stand.goes_on()?;
    std::fs::create_dir_all(stand.sites.a.pool())?;
    stand.sites.a.start(&stand.sites.stage)?;
    stand.stays(&stand.sites.b, "primary")?;
    stand.goes_on()?;
    stand.ends_well(Place::B)
}

#[test]
fn row_21_a_follower_whose_disk_was_put_back_is_no_successor_until_it_is_whole() -> Result<()> {
    let mut stand = Stand::new("21", "true")?;
    stand.sites.b.stop()?;
    let (pool, saved) = (stand.sites.b.pool().to_owned(), stand.sites.stage.dir().join("saved"));
    copy(&pool, &saved)?;
    stand.sites.b.start(&stand.sites.stage)?;
    stand.wait_until_whole(&stand.sites.a)?;
    stand.goes_on()?;
    stand.sites.b.kill();
    std::fs::remove_dir_all(&pool)?;
    copy(&saved, &pool)?;
    stand.sites.b.start(&stand.sites.stage)?;
    stand.ends_whole(Place::A)
}

#[test]
fn row_22_a_witness_that_was_wiped_is_no_witness_and_the_pair_serves() -> Result<()> {
    let mut stand = Stand::new("22", "true")?;
    stand.sites.wipe_witness()?;
    stand.stays(&stand.sites.a, "primary")?;
    stand.goes_on()?;
    stand.cut(&[AB])?;
    // Neither believes it.
    stand.wait_for_role(&stand.sites.a, "suspended-lease-lost")?;
    stand.stays(&stand.sites.b, "secondary")?;
    stand.sites.net().heal()?;
    stand.goes_on()?;
    stand.ends_whole(Place::A)
}

/// Asks again as long as the answer is a refusal with these words.
fn eventually<T>(ask: impl Fn() -> Result<T>, refused: &str) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Err(error) if error.to_string().contains(refused) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            other => return other,
        }
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let copied = std::process::Command::new("cp").args(["-a", "-T"]).arg(from).arg(to).status()?;
    ensure!(copied.success(), "cp fails");
    Ok(())
}
