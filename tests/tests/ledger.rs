//! The ledger's own test: on a plain directory, nothing that PostgreSQL acknowledged is lost, and what is lost is noticed.

use std::time::Duration;

use anyhow::Result;
use tidemark_tests::ledger::{Ledger, Load, Places, Postgres, Programs, audit, prepare};
use tidemark_tests::stage::Stage;

const WRITERS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that was killed in full load and has recovered, and what it had acknowledged.
fn killed_and_recovered(stage: &Stage) -> Result<(Postgres, Programs, Ledger)> {
    let programs = Programs::find()?;
    let dir = |name: &str| stage.dir().join(name);
    let places = Places { data: dir("data"), wal: None, socket: dir("socket"), log: dir("postgres.log") };
    Postgres::init(&programs, &places)?;
    let mut server = Postgres::start(stage, &programs, &places, PATIENCE)?;
    prepare(&mut server.connect()?, WRITERS)?;
    let load = Load::start(&places.socket, WRITERS)?;
    load.wait_for(200, PATIENCE)?;
    server.kill();
    let ledger = load.finish()?;
    let server = Postgres::start(stage, &programs, &places, PATIENCE)?;
    Ok((server, programs, ledger))
}

#[test]
fn a_killed_server_has_every_transaction_that_it_acknowledged() {
    let stage = Stage::new("ledger").unwrap();
    let (server, programs, ledger) = killed_and_recovered(&stage).unwrap();
    let found = audit(&mut server.connect().unwrap(), &ledger).unwrap();
    assert!(found.committed >= 200, "{found:?}");
    assert_eq!((found.found, found.lost, found.oldest_lost), (found.committed, 0, None));
    server.stop_and_check(&programs).unwrap();
}

#[test]
fn a_transaction_that_vanishes_is_counted_as_lost() {
    let stage = Stage::new("ledger").unwrap();
    let (server, _, ledger) = killed_and_recovered(&stage).unwrap();
    let mut connection = server.connect().unwrap();
    let last = ledger.acknowledged[1].len();
    let rollback = format!(
        "DELETE FROM entry WHERE writer = 2 AND number >= {last};
         UPDATE account SET total = {last} - 1 WHERE writer = 2"
    );
    connection.query(&rollback).unwrap();
    let found = audit(&mut connection, &ledger).unwrap();
    assert_eq!((found.lost, found.oldest_lost), (1, ledger.acknowledged[1].last().copied()));
    connection.query("UPDATE account SET total = 0 WHERE writer = 1").unwrap();
    assert!(audit(&mut connection, &ledger).unwrap_err().to_string().contains("half a transaction"));
}
