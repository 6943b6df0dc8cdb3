//! Durations in configuration files: `250ms`, `1s`, `5m`.

use serde::{Deserialize, Deserializer, de};
use std::time::Duration;

/// For `#[serde(deserialize_with = …)]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).ok_or_else(|| {
        let message =
            format!("`{text}` is no duration: expected a number and ms, s or m, as in 250ms");
        de::Error::custom(message)
    })
}

fn parse(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text.get(..digits)?.parse().ok()?;
    match text.get(digits..)? {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_make_a_duration() {
        let ms = |text| parse(text).map(|duration| duration.as_millis());
        assert_eq!(
            ["250ms", "2s", "3m"].map(ms),
            [Some(250), Some(2000), Some(180_000)]
        );
        for wrong in [
            "",
            "5",
            "ms",
            "1 s",
            "-1s",
            "1.5s",
            "1h",
            "99999999999999999999s",
        ] {
            assert_eq!(ms(wrong), None, "{wrong}");
        }
    }
}
