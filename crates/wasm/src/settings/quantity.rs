//! Sizes, times and counts, as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, at least one: a number, or a text such as `64MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// A time, a millisecond at least: a number of seconds, or a text such as `30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

/// A number from 1 to `MOST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Count<const MOST: u32>(pub u32);

/// The units of sizes with their bytes, the largest first. Those of Kubernetes' quantities are the
/// same without the `B`.
const SIZES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// The units of times with their milliseconds, the largest first.
const TIMES: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Size {
    fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split(text)?;
        let unit = match unit {
            "" => 1,
            unit => SIZES
                .iter()
                .find(|(name, _)| *name == unit || name.strip_suffix('B') == Some(unit))
                .map(|(_, bytes)| *bytes)?,
        };
        number.checked_mul(unit).and_then(Self::of)
    }

    fn of(bytes: u64) -> Option<Self> {
        (bytes > 0).then_some(Self(bytes))
    }
}

/// What is no size.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no size: give bytes, or a number with a unit, such as 512MiB")]
pub struct SizeError(String);

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        Self::parse(text).ok_or_else(|| SizeError(text.to_owned()))
    }
}

impl Time {
    /// A number of seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split(text)?;
        let unit = match unit {
            "" => 1000,
            unit => TIMES.iter().find(|(name, _)| *name == unit)?.1,
        };
        number.checked_mul(unit).and_then(Self::of)
    }

    fn of(milliseconds: u64) -> Option<Self> {
        // Longer ones than a year would do harm in sums.
        (1..=366 * 24 * 3_600_000)
            .contains(&milliseconds)
            .then_some(Self(Duration::from_millis(milliseconds)))
    }
}

/// A text's number and what follows it.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

/// A number in the largest unit that makes it a whole one.
fn in_units(number: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().find(|(_, unit)| number.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) => format!("{}{name}", number / unit),
        None => number.to_string(),
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&in_units(self.0, &SIZES))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&in_units(self.0.as_millis() as u64, &TIMES))
    }
}

impl<const MOST: u32> fmt::Display for Count<MOST> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<const MOST: u32> Serialize for Count<MOST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

/// Takes what has one form as a number and one as a text.
struct Quantity<T> {
    wanted: &'static str,
    number: fn(u64) -> Option<T>,
    text: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.wanted)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        (self.number)(number)
            .ok_or_else(|| de::Error::invalid_value(Unexpected::Unsigned(number), &self.wanted))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number)
            .ok()
            .and_then(self.number)
            .ok_or_else(|| de::Error::invalid_value(Unexpected::Signed(number), &self.wanted))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text)
            .ok_or_else(|| de::Error::invalid_value(Unexpected::Str(text), &self.wanted))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Quantity {
            wanted: "a size, such as \"64MiB\" (units: B, KiB, MiB, GiB, TiB)",
            number: Self::of,
            text: Self::parse,
        })
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Quantity {
            wanted: "a time, such as \"30s\" (units: ms, s, m, h), of a year at most",
            number: |seconds| seconds.checked_mul(1000).and_then(Self::of),
            text: Self::parse,
        })
    }
}

impl<'de, const MOST: u32> Deserialize<'de> for Count<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        match u32::try_from(number) {
            Ok(count) if (1..=MOST).contains(&count) => Ok(Self(count)),
            _ => Err(de::Error::custom(format!(
                "{number} is not a number from 1 to {MOST}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn size(value: Value) -> Result<u64, String> {
        let size: Result<Size, _> = serde_json::from_value(value);
        size.map(|size| size.0).map_err(|error| error.to_string())
    }

    fn time(value: Value) -> Result<u128, String> {
        let time: Result<Time, _> = serde_json::from_value(value);
        time.map(|time| time.0.as_millis())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(size(json!(7)), Ok(7));
        assert_eq!(size(json!("7")), Ok(7));
        assert_eq!(size(json!("64MiB")), Ok(64 << 20));
        assert_eq!(size(json!("64Mi")), Ok(64 << 20));
        assert_eq!(size(json!("2 GiB")), Ok(2 << 30));
        assert_eq!(time(json!(2)), Ok(2000));
        assert_eq!(time(json!("2")), Ok(2000));
        assert_eq!(time(json!("150ms")), Ok(150));
        assert_eq!(time(json!("2m")), Ok(120_000));
    }

    #[test]
    fn what_is_none_is_told() {
        for wrong in [
            json!(0),
            json!(-1),
            json!("lots"),
            json!("1MB"),
            json!("99999999999GiB"),
        ] {
            assert!(size(wrong).unwrap_err().contains("64MiB"));
        }
        for wrong in [json!(0), json!("1d"), json!("1.5s"), json!("9000h")] {
            assert!(time(wrong).unwrap_err().contains("30s"));
        }
        let count: Result<Count<9>, _> = serde_json::from_value(json!(10));
        assert!(count.unwrap_err().to_string().contains("from 1 to 9"));
    }

    #[test]
    fn they_are_written_in_the_largest_unit() {
        assert_eq!(Size(1 << 20).to_string(), "1MiB");
        assert_eq!(Size(1500).to_string(), "1500B");
        assert_eq!(Time::seconds(60).to_string(), "1m");
        assert_eq!(Time::seconds(90).to_string(), "90s");
        assert_eq!(Time(Duration::from_millis(5)).to_string(), "5ms");
    }
}
