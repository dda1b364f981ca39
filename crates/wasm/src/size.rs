//! Numbers of bytes, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
///
/// Read from a number and perhaps a unit: `K`, `M`, `G` or `T`, of either case, with or without
/// `B` or `iB` behind it. Every unit is a power of 1024, as in Docker's options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// What is no number of bytes.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no size: give bytes, or a number with a unit, such as 512MiB or 10G")]
pub struct SizeError(String);

const UNITS: [&str; 4] = ["K", "M", "G", "T"];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let end = text
            .find(|char: char| !char.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = unit.trim_start().to_ascii_lowercase();
        let power = match unit.as_str() {
            "" | "b" => Some(0),
            _ => UNITS
                .iter()
                .position(|known| {
                    unit.strip_prefix(&known.to_ascii_lowercase())
                        .is_some_and(|rest| ["", "b", "ib"].contains(&rest))
                })
                .map(|index| index + 1),
        };
        power
            .zip(number.parse::<u64>().ok())
            .and_then(|(power, number)| number.checked_mul(1 << (10 * power)))
            .map(Self)
            .ok_or_else(|| SizeError(text.into()))
    }
}

impl fmt::Display for Size {
    /// In the largest unit that the size has one of, with one decimal if it is not a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = (1..=UNITS.len())
            .rev()
            .find(|power| self.0 >> (10 * power) > 0);
        let Some(power) = power else {
            return f.pad(&format!("{} B", self.0));
        };
        let (bytes, unit) = (1_u64 << (10 * power), UNITS[power - 1]);
        f.pad(&match self.0 % bytes {
            0 => format!("{} {unit}iB", self.0 / bytes),
            _ => format!("{:.1} {unit}iB", self.0 as f64 / bytes as f64),
        })
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    /// From a number or from text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number of bytes, or one with a unit, such as \"10GiB\"")
            }

            fn visit_u64<E: Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_i64<E: Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map(Size)
                    .map_err(|_| E::custom("a size is not negative"))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("7b", 7),
            ("1k", 1 << 10),
            ("512MiB", 512 << 20),
            ("10G", 10 << 30),
            ("10 GiB", 10 << 30),
            ("2tb", 2 << 40),
        ] {
            assert_eq!(text.parse::<Size>().expect(text), Size(bytes), "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "1.5G",
            "10X",
            "10Gi B",
            "99999999999T",
            "1e3",
        ] {
            let error = text.parse::<Size>().expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn sizes_are_shown_in_their_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (32_739_600, "31.2 MiB"),
            (10 << 30, "10 GiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
        let default = crate::DEFAULT_CACHE_SIZE;
        assert_eq!(
            default.to_string().parse::<Size>().expect("itself"),
            default
        );
    }
}
