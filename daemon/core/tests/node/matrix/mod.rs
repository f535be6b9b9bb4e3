//! What becomes of two sites in each situation of the model's table of promotions, asked of two cores, and kept in
//! `docs/failure-matrix.md`.
//!
//! Each row is held against what the model says of it, and the page against what the cores do. `TIDEMARK_WRITE=1` writes the page:
//! `TIDEMARK_WRITE=1 cargo test -p tidemark-core --test node matrix`.

mod asked;
mod page;
mod rows;

use asked::Seen;
use rows::{ROWS, Row};

fn seen() -> Vec<(&'static Row, Seen)> {
    ROWS.iter().map(|row| (row, Seen::of(row))).collect()
}

/// Every way in which a row is not what the model says.
fn contradictions(row: &Row, seen: &Seen) -> Vec<String> {
    let model = &row.model;
    let said = [
        ("A by itself", model.a, &seen.a),
        ("B by itself", model.b, &seen.b),
        ("S", model.sites, &seen.sites),
        ("promote at A", model.promote_a, &seen.promote[0]),
        ("promote at B", model.promote_b, &seen.promote[1]),
        ("switchover", model.switchover, &seen.switchover),
        ("a word at A", model.word_a, &seen.word[0]),
        ("a word at B", model.word_b, &seen.word[1]),
    ];
    let differs = |(what, wanted, found): &(&str, &str, &String)| {
        let fits = wanted.is_empty() || wanted.split('|').any(|wanted| *found == wanted);
        (!fits).then(|| format!("row {}: {what}: the model says {wanted:?}, the cores {found:?}", row.number))
    };
    said.iter().filter_map(differs).collect()
}

#[test]
fn every_row_of_the_table_of_promotions_is_as_the_model_says_and_as_the_page_shows() {
    let seen = seen();
    let page = page::text(&seen);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/failure-matrix.md");
    if std::env::var_os("TIDEMARK_WRITE").is_some() {
        std::fs::write(path, &page).expect("docs can be written");
    }
    let contradictions: Vec<String> = seen.iter().flat_map(|(row, seen)| contradictions(row, seen)).collect();
    assert!(contradictions.is_empty(), "{}", contradictions.join("\n"));
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(page == kept, "docs/failure-matrix.md is not what the cores do; TIDEMARK_WRITE=1 writes it:\n{page}");
}

#[test]
fn in_no_row_do_both_sites_serve_or_a_site_take_over_that_may_lack_something() {
    for (row, seen) in seen() {
        let serve = [&seen.a, &seen.b].map(|site| site.as_str() == asked::SERVES);
        assert_ne!(serve, [true, true], "row {}", row.number);
        assert!(!serve[1] || row.model.word_b == "lossless" || row.model.b == asked::SERVES, "row {}", row.number);
    }
}
