//! The command line as a whole.

use std::path::Path;

use clap::{CommandFactory as _, Parser as _};

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_ca_of_a_pki_verb_is_not_the_ca_of_the_connection() {
    let cli = parse("tidemark pki issue --ca /ca --node-name n1 --out /out --ip 127.0.0.1,::1").expect("valid");
    let Command::Pki(pki::Pki::Issue(issue)) = cli.command else { panic!("another command") };
    assert_eq!(issue.ca, Path::new("/ca"));
    assert_eq!(issue.ip.len(), 2);
    assert!(parse("tidemark --ca x pki issue --node-name n1 --out /out").is_err(), "the CA's directory is required");
}

#[test]
fn global_flags_stand_before_or_after_the_command() {
    for line in ["tidemark -o json --timeout 5s pki show x", "tidemark pki show x -o json --timeout 5s"] {
        let cli = parse(line).expect(line);
        assert_eq!(cli.global.output, Format::Json);
        assert_eq!(cli.global.timeout, Duration::from_secs(5));
    }
}

#[test]
fn a_bad_name_or_id_is_a_usage_error() {
    for line in [
        "tidemark pki init-ca --dir d --site-name a/b",
        "tidemark pki init-ca --dir d --site-name a --site-id 1",
        "tidemark pki init-ca --dir d --site-name a --site-id 00000000-0000-0000-0000-000000000000",
        "tidemark --timeout soon pki show x",
        "tidemark",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}
