//! A length of time as Kubernetes users write it: `720h`, `1h30m`.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A positive length of time in Go's notation, in whole hours, minutes and seconds (in this order, each optional).
///
/// kube's own duration type takes fractions and signs, and panics on a number that is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lifetime(Duration);

/// Text that is not a [`Lifetime`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a length of time such as 720h or 1h30m")]
pub struct ParseError(String);

/// What [`Lifetime::from_str`] takes, for the schema; at most 9,999,999 of each unit, so nothing overflows.
const PATTERN: &str = "^([0-9]{1,7}h)?([0-9]{1,7}m)?([0-9]{1,7}s)?$";

impl Lifetime {
    /// The same length as the standard library's type.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Lifetime {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refused = || ParseError(text.to_owned());
        let mut rest = text;
        let mut seconds = 0;
        for (unit, length) in [('h', 3600), ('m', 60), ('s', 1)] {
            if let Some((number, after)) = rest.split_once(unit) {
                let digits = (1..=7).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
                let number: u64 = number.parse().ok().filter(|_| digits).ok_or_else(refused)?;
                seconds += number * length;
                rest = after;
            }
        }
        if rest.is_empty() && seconds > 0 { Ok(Self(Duration::from_secs(seconds))) } else { Err(refused()) }
    }
}

impl TryFrom<String> for Lifetime {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Lifetime> for String {
    fn from(lifetime: Lifetime) -> Self {
        lifetime.to_string()
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        for (count, unit) in [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')] {
            if count > 0 {
                write!(out, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl JsonSchema for Lifetime {
    fn schema_name() -> Cow<'static, str> {
        "Lifetime".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 2,
            "maxLength": 24,
            "pattern": PATTERN,
            "x-kubernetes-validations": [{
                "rule": "duration(self) > duration('0s')",
                "message": "must be longer than zero, such as 720h",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_schema_admits_and_nothing_else() {
        for (text, seconds) in [("720h", 2_592_000), ("1h30m", 5400), ("90m", 5400), ("1s", 1), ("1h0m1s", 3601)] {
            assert_eq!(text.parse::<Lifetime>().unwrap().duration(), Duration::from_secs(seconds), "{text}");
        }
        for text in ["", "0h", "0s", "-1h", "1.5h", "1d", "h", "1", "1m1h", "99999999h", "1h ", "+1h"] {
            assert!(text.parse::<Lifetime>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn is_written_as_it_is_read() {
        for text in ["720h", "1h30m", "1s", "2h1s"] {
            assert_eq!(text.parse::<Lifetime>().unwrap().to_string(), text);
        }
    }
}
