//! The mount table of this process, as the kernel writes it (`/proc/self/mountinfo`).

use std::path::PathBuf;

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount<'a> {
    /// `MAJOR:MINOR` of what is mounted; btrfs has one of its own.
    pub number: &'a str,
    /// Where.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: &'a str,
    /// What is mounted there, as whoever mounted it named it.
    pub source: &'a str,
}

/// The lines of `table` in order of mounting; what is no such line is left out.
pub(super) fn parse(table: &str) -> impl Iterator<Item = Mount<'_>> {
    table.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let (mut place, mut kind) = (place.split(' ').skip(2), kind.split(' '));
        let (number, point) = (place.next()?, place.nth(1)?);
        Some(Mount { number, point: PathBuf::from(unescaped(point)), kind: kind.next()?, source: kind.next()? })
    })
}

/// The table writes blanks and backslashes as three octal digits.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            None => text.push_str(part),
        }
    }
    text
}
