//! What no row is, and networks and people do all the same.

use super::*;

#[test]
fn row_02_a_link_cut_in_one_direction_alone_is_a_cut_link() -> Result<()> {
    for (name, way) in [("02-to", (Place::A, Place::B)), ("02-from", (Place::B, Place::A))] {
        let stand = Stand::new(name, "true")?;
        stand.sites.net().cut(&[way])?;
        stand.wait_until_alone()?;
        stand.goes_on()?;
        stand.stays(&stand.sites.b, "secondary")?;
        stand.sites.net().heal()?;
        stand.ends_whole(Place::A)?;
    }
    Ok(())
}

#[test]
fn row_04_a_primary_that_stands_still_is_replaced_and_follows_when_it_wakes_up() -> Result<()> {
    let stand = Stand::new("04-still", "true")?;
    stand.sites.a.freeze();
    stand.wait_for_role(&stand.sites.b, "primary")?;
    stand.sites.a.thaw();
    stand.goes_on()?;
    stand.wait_for_role(&stand.sites.a, "secondary")?;
    stand.ends_whole(Place::B)
}

#[test]
fn row_03_a_follower_that_stands_still_is_left_out_and_joins_again() -> Result<()> {
    let stand = Stand::new("03-still", "true")?;
    stand.sites.b.freeze();
    stand.wait_until_alone()?;
    stand.goes_on()?;
    stand.sites.b.thaw();
    stand.ends_whole(Place::A)
}

#[test]
#[ignore = "a minute: hack/test rows --deep"]
fn row_02_a_link_that_flaps_loses_nothing_and_is_whole_again_when_a_person_says_so() -> Result<()> {
    let stand = Stand::new("02-flaps", "true")?;
    for round in 0..20u64 {
        stand.cut(&[AB])?;
        std::thread::sleep(Duration::from_millis(200 + 170 * (round % 10)));
        stand.sites.net().heal()?;
        std::thread::sleep(Duration::from_millis(300 + 110 * (round % 7)));
        ensure!(stand.sites.b.cli().show(NAME)?.role() == "secondary", "round {round}: A sees the witness");
    }
    stand.goes_on()?;
    // It has changed too often to change by itself; a person says that it may.
    stand.wait_until_alone()?;
    stand.sites.a.cli().json(&["volume", "set", NAME, "--peer-loss", "1s"])?;
    stand.ends_whole(Place::A)
}

/// Restarts `site` cleanly again and again; A stays the primary, and nothing is copied the wrong way.
fn restarts(stand: &mut Stand, of_a: bool, rounds: u32) -> Result<()> {
    for round in 0..rounds {
        let Stand { sites, ledger } = stand;
        let site = if of_a { &mut sites.a } else { &mut sites.b };
        site.stop()?;
        site.start(&sites.stage)?;
        ledger.goes_on().with_context(|| format!("round {round}"))?;
        let (a, b) = (sites.a.cli().show(NAME)?, sites.b.cli().show(NAME)?);
        ensure!((a.role(), b.role()) == ("primary", "secondary"), "round {round}: {}; {}", a.summary(), b.summary());
        for site in [&sites.a, &sites.b] {
            let sealed = site.cli().json(&["volume", "branches", NAME])?;
            ensure!(
                sealed["branches"].as_array().is_some_and(Vec::is_empty),
                "round {round}: something was sealed: {sealed}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_clean_restart_loop_of_the_follower_under_writes_never_takes_the_wrong_direction() -> Result<()> {
    let mut stand = Stand::new("loop-b", "false")?;
    restarts(&mut stand, false, 3)?;
    stand.ends_whole(Place::A)
}

#[test]
fn a_clean_restart_loop_of_the_primary_under_writes_never_takes_the_wrong_direction() -> Result<()> {
    let mut stand = Stand::new("loop-a", "false")?;
    restarts(&mut stand, true, 3)?;
    stand.ends_whole(Place::A)
}

#[test]
#[ignore = "minutes: hack/test rows --deep"]
fn a_long_clean_restart_loop_of_both_in_turn_under_writes_never_takes_the_wrong_direction() -> Result<()> {
    let mut stand = Stand::new("loop-both", "false")?;
    for _ in 0..10 {
        restarts(&mut stand, true, 1)?;
        restarts(&mut stand, false, 1)?;
    }
    stand.ends_whole(Place::A)
}

#[test]
fn a_peer_that_is_not_there_is_asked_for_no_faster_than_the_backoff() -> Result<()> {
    let mut stand = Stand::new("backoff", "false")?;
    stand.sites.b.stop()?;
    stand.wait_until_alone()?;
    let before = stand.sites.net().count_connections(Place::B)?;
    std::thread::sleep(Duration::from_secs(10));
    let tries = stand.sites.net().count_connections(Place::B)? - before;
    println!("{tries} connections were tried in 10 s");
    // One for the agents and one for the volume, each after at least 1.5 s from its third failure on.
    ensure!((1..=16).contains(&tries), "{tries} tries in 10 s");
    stand.sites.b.start(&stand.sites.stage)?;
    stand.ends_whole(Place::A)
}

/// What an agent is asked with everybody else silent: at A, and at B. The last ones change who serves.
/// `drain` is not among them: it may take ten minutes, as long as a full log needs.
const VERBS: [(Place, &[&str]); 15] = [
    (Place::A, &["agent", "show"]),
    (Place::A, &["peer", "list"]),
    (Place::A, &["volume", "show", NAME]),
    (Place::A, &["volume", "branches", NAME]),
    (Place::A, &["volume", "set", NAME, "--peer-loss", "1100ms"]),
    (Place::A, &["volume", "resize", NAME, "--size", "65Mi"]),
    (Place::A, &["volume", "create", "w", "--size", "16Mi", "--mode", "sync", "--pool", "main", "--peer-site", "b"]),
    (Place::A, &["verify", NAME]),
    (Place::B, &["volume", "show", NAME]),
    (Place::B, &["verify", NAME]),
    (Place::B, &["reseed", NAME]),
    (Place::B, &["promote", NAME]),
    (Place::B, &["demote", NAME]),
    (Place::A, &["demote", NAME, "--force"]),
    (Place::A, &["drop-peer", NAME, "--reason", "the test says so"]),
];

#[test]
#[ignore = "minutes: hack/test rows --deep"]
fn no_verb_waits_longer_than_its_deadline_for_a_party_that_says_nothing() -> Result<()> {
    // What a verb may take by itself, and a takeover's wait for the lease.
    let limit = WITNESS.lease_wait() + Duration::from_secs(25);
    for (name, silent) in [("mute-peer", &[AB][..]), ("mute-witness", &[AW, BW]), ("mute-all", &[AB, AW, BW])] {
        let stand = Stand::new(name, "false")?;
        stand.cut(silent)?;
        for (place, args) in VERBS {
            let site = if place == Place::A { &stand.sites.a } else { &stand.sites.b };
            let began = Instant::now();
            let said = site.cli().json(&[&["--timeout", "60s"], args].concat());
            let took = began.elapsed();
            println!("{name}: {place:?} {args:?}: {} after {took:?}", said.as_ref().map_or("refused", |_| "done"));
            ensure!(took < limit, "{name}: {place:?} {args:?} took {took:?}: {said:?}");
        }
    }
    Ok(())
}
