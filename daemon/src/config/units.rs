//! Sizes and durations as people write them.

use std::time::Duration;

/// What a size may look like.
pub const BYTES_SYNTAX: &str =
    "bytes such as 1073741824, 512Mi, 10Gi, 1T (Ki Mi Gi Ti Pi are powers of 1024, k M G T P of 1000)";

/// What a duration may look like.
pub const DURATION_SYNTAX: &str = "a duration such as 500ms, 30s, 5m, 24h, 7d";

const BYTE_UNITS: [(&str, u64); 12] = [
    ("", 1),
    ("B", 1),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
];

const MS_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Parses a size; a trailing `B` (`10GiB`) is allowed. `None` when it is none, or does not fit 64 bits.
pub fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let unit = if unit.len() > 1 { unit.strip_suffix('B').unwrap_or(unit) } else { unit };
    number.checked_mul(factor(unit, &BYTE_UNITS)?)
}

/// Parses a duration. `None` when it is none, or does not fit 64 bits of milliseconds.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    number.checked_mul(factor(unit, &MS_UNITS)?).map(Duration::from_millis)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..digits].parse().ok()?, text[digits..].trim_start()))
}

fn factor(unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        assert_eq!(bytes("10Gi"), Some(10 << 30));
        assert_eq!(bytes("10GiB"), Some(10 << 30));
        assert_eq!(bytes("10 G"), Some(10_000_000_000));
        assert_eq!(bytes("512"), Some(512));
        assert_eq!(bytes("512B"), Some(512));
    }

    #[test]
    fn sizes_that_are_none_or_overflow_are_refused() {
        for text in ["", "Gi", "-1", "1.5Gi", "10gi", "10 Xi", "99999999Pi", "99999999999999999999"] {
            assert_eq!(bytes(text), None, "{text:?}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("24h"), Some(Duration::from_secs(86_400)));
        assert_eq!(duration("2d"), Some(Duration::from_secs(172_800)));
        for text in ["30", "s", "1.5s", "1w", "18446744073709551615h"] {
            assert_eq!(duration(text), None, "{text:?}");
        }
    }
}
