//! Sizes and spans as people write them: `10Gi`, `30d`. Parsing and printing are each other's inverse as far as rounding
//! for people allows.

use std::time::Duration;

const BINARY: [(&str, u64); 5] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10), ("", 1)];
const DECIMAL: [(&str, u64); 4] = [("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)];
const SPANS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

/// Parses a number of bytes: `4096`, `10Gi`, `512Mi`, `1.5T`, an optional `B` at the end.
///
/// # Errors
/// A sentence that names the forms.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = split(text);
    let unit = unit.strip_suffix('B').unwrap_or(unit);
    let known = BINARY.iter().chain(&DECIMAL).find(|(name, _)| unit == *name || (unit == "K" && *name == "k"));
    let scale = known.ok_or_else(|| format!("unknown unit {unit:?}: use Ki, Mi, Gi, Ti, k, M, G or T"))?.1;
    scaled(digits, scale).ok_or_else(|| format!("{text:?} is no size: write for example 512Mi or 10Gi"))
}

/// Parses a span: `500ms`, `30s`, `10m`, `24h`, `30d`, `2w`, or plain seconds.
///
/// # Errors
/// A sentence that names the forms.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let (digits, unit) = split(text);
    let unit = if unit.is_empty() { "s" } else { unit };
    let known = SPANS.iter().find(|(name, _)| unit == *name);
    let scale = known.ok_or_else(|| format!("unknown unit {unit:?}: use ms, s, m, h, d or w"))?.1;
    let ms = scaled(digits, scale).ok_or_else(|| format!("{text:?} is no span: write for example 30s or 24h"))?;
    Ok(Duration::from_millis(ms))
}

/// Bytes for people, three digits and a binary unit: `10.0Gi`.
pub fn bytes(count: u64) -> String {
    match BINARY.iter().find(|(_, scale)| count >= *scale && *scale > 1) {
        None => format!("{count}B"),
        Some((unit, scale)) if count.is_multiple_of(*scale) => format!("{}{unit}", count / scale),
        Some((unit, scale)) => format!("{:.1}{unit}", count as f64 / *scale as f64),
    }
}

/// Milliseconds for people: `0ms`, `250ms`, `12.5s`, `3m`, `2h`, `4d`.
pub fn span_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{:.1}s", ms as f64 / 1e3),
        60_000..7_200_000 => format!("{}m", ms / 60_000),
        7_200_000..172_800_000 => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// `digits * scale` when that is a whole number in range. Exact: a size is never rounded silently.
fn scaled(digits: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: u64 = whole.parse().ok()?;
    let fraction = match fraction {
        "" if digits.contains('.') => return None,
        "" => 0,
        digits => {
            let parts = u128::from(scale).checked_mul(digits.parse().ok()?)?;
            let tens = 10u128.checked_pow(u32::try_from(digits.len()).ok()?)?;
            (parts % tens == 0).then_some(parts / tens)?
        }
    };
    whole.checked_mul(scale)?.checked_add(u64::try_from(fraction).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact_or_refused() {
        for (text, want) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("10Gi", 10 << 30),
            ("10GiB", 10 << 30),
            ("1.5Gi", 3 << 29),
            ("1k", 1000),
            ("1K", 1000),
            ("2T", 2_000_000_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(want), "{text}");
        }
        for bad in ["", "Gi", "10X", "-1", "1.Gi", ".5Gi", "0.0001k", "99999999Ti", "1.2.3", "1 Gi"] {
            assert!(parse_bytes(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn spans_have_units_and_plain_numbers_are_seconds() {
        for (text, ms) in [("30", 30_000), ("30s", 30_000), ("250ms", 250), ("1.5h", 5_400_000), ("30d", 2_592_000_000)]
        {
            assert_eq!(parse_span(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "10y", "-1s", "1e9s"] {
            assert!(parse_span(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn printed_sizes_can_be_typed_again() {
        for count in [0, 1, 4096, 10 << 30, 3 << 40] {
            assert_eq!(parse_bytes(&bytes(count)), Ok(count));
        }
        assert_eq!(bytes(1536), "1.5Ki");
        assert_eq!(span_ms(999), "999ms");
        assert_eq!(span_ms(90_000), "1m");
    }
}
