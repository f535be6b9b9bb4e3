//! When a certificate is valid. The clock is an argument everywhere.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::PkiError;

/// Longest life of a certificate in days: a century.
pub const MAX_DAYS: u32 = 36_500;
/// How far the start lies in the past, so that a peer whose clock is behind takes a new certificate.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);
/// Seconds of a day.
pub const DAY_SECONDS: i64 = 86_400;

/// The span in which a certificate is valid; whole seconds, both ends inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// First second.
    pub not_before: Timestamp,
    /// Last second.
    pub not_after: Timestamp,
}

impl Validity {
    /// `days` from `now` on, started a little earlier for clocks that are behind.
    ///
    /// # Errors
    /// [`PkiError::Invalid`] when `days` is zero or over [`MAX_DAYS`].
    pub fn from_now(now: Timestamp, days: u32) -> Result<Self, PkiError> {
        Ok(Self { not_before: Self::starting(now - CLOCK_SKEW, days)?.not_before, ..Self::starting(now, days)? })
    }

    /// `days` from exactly `start` on.
    ///
    /// # Errors
    /// [`PkiError::Invalid`] when `days` is zero or over [`MAX_DAYS`], or the span leaves the years 1970 to 9999.
    pub fn starting(start: Timestamp, days: u32) -> Result<Self, PkiError> {
        let invalid = |why| PkiError::Invalid { what: "days", value: days.to_string(), why };
        if days == 0 || days > MAX_DAYS {
            return Err(invalid("must be between 1 and 36500"));
        }
        let first = start.as_second();
        let last = first + i64::from(days) * DAY_SECONDS;
        match (Timestamp::from_second(first.max(0)), Timestamp::from_second(last)) {
            (Ok(not_before), Ok(not_after)) if first >= 0 => Ok(Self { not_before, not_after }),
            _ => Err(invalid("must end before the year 10000 and start after 1969")),
        }
    }

    /// The part of it that lies before the end of `outer`: a leaf does not outlive its CA.
    pub fn within(self, outer: Self) -> Self {
        Self { not_after: self.not_after.min(outer.not_after), ..self }
    }

    /// True when it ends within `span` of `now`, or has ended.
    pub fn ends_within(self, now: Timestamp, span: Duration) -> bool {
        let left = self.not_after.as_second().saturating_sub(now.as_second());
        left < 0 || left.unsigned_abs() < span.as_secs()
    }

    /// Whole days left; negative once it has ended.
    pub fn days_left(self, now: Timestamp) -> i64 {
        (self.not_after.as_second() - now.as_second()).div_euclid(DAY_SECONDS)
    }

    /// `valid`, `expired` or `not yet valid`.
    pub fn state(self, now: Timestamp) -> &'static str {
        if now < self.not_before {
            "not yet valid"
        } else if now > self.not_after {
            "expired"
        } else {
            "valid"
        }
    }

    pub(super) fn write_to(self, params: &mut rcgen::CertificateParams) {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let at = |moment: Timestamp| epoch + Duration::from_secs(moment.as_second().max(0).unsigned_abs());
        params.not_before = at(self.not_before);
        params.not_after = at(self.not_after);
    }
}
