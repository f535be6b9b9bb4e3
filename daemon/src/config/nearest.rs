//! Which known word was probably meant.

/// The candidate nearest to `word`, when it is near enough to be a slip of the keyboard.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let limit = word.chars().count().div_ceil(3).max(1);
    let scored = candidates.iter().map(|candidate| (distance(word, candidate), *candidate));
    scored.filter(|(far, _)| *far <= limit).min().map(|(_, candidate)| candidate)
}

/// Insertions, removals and replacements of one character between the two (row by row).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_keyboard_finds_the_word() {
        let words = ["listen", "insecure", "tls"];
        assert_eq!(nearest("lisen", &words), Some("listen"));
        assert_eq!(nearest("insecur", &words), Some("insecure"));
        assert_eq!(nearest("tsl", &words), None);
        assert_eq!(nearest("colour", &words), None);
    }

    #[test]
    fn distance_counts_single_edits() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
