//! Sizes with their unit in the type.

use std::fmt;
use std::str::FromStr;

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a size: write a number with K, M, G or T, such as 512M or 4GiB (a bare number means MiB)"
)]
pub struct SizeError {
    text: String,
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// This many kibibytes.
    pub const fn kib(count: u64) -> Bytes {
        Bytes(count << 10)
    }

    /// This many mebibytes.
    pub const fn mib(count: u64) -> Bytes {
        Bytes(count << 20)
    }

    /// This many gibibytes.
    pub const fn gib(count: u64) -> Bytes {
        Bytes(count << 30)
    }

    /// The number of whole mebibytes in it.
    pub const fn whole_mib(self) -> u64 {
        self.0 >> 20
    }
}

impl fmt::Display for Bytes {
    /// The largest unit that divides it, `512M`, `4G`; plain bytes as `1234B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        let whole = units
            .into_iter()
            .find(|(shift, _)| self.0 > 0 && self.0.is_multiple_of(1 << shift));
        let text = match whole {
            Some((shift, unit)) => format!("{}{unit}", self.0 >> shift),
            None => format!("{}B", self.0),
        };
        f.pad(&text)
    }
}

impl FromStr for Bytes {
    type Err = SizeError;

    /// Reads `512M`, `512MiB`, `512mb`, `4G`, `100K`, `2T`, `1048576B`; a bare number is MiB.
    fn from_str(text: &str) -> Result<Bytes, SizeError> {
        let error = || SizeError {
            text: text.to_owned(),
        };
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().map_err(|_| error())?;
        let shift = match unit.to_ascii_lowercase().as_str() {
            "b" => 0,
            "k" | "kb" | "kib" => 10,
            "" | "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(error()),
        };
        number.checked_mul(1 << shift).map(Bytes).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_every_documented_form() {
        let cases = [
            ("512", Bytes::mib(512)),
            ("512M", Bytes::mib(512)),
            ("512mib", Bytes::mib(512)),
            ("4GiB", Bytes::gib(4)),
            ("4g", Bytes::gib(4)),
            ("100K", Bytes(100 << 10)),
            ("2T", Bytes(2 << 40)),
            ("4096B", Bytes(4096)),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for text in ["", "G", "-1G", "1.5G", "4X", "99999999999999T", "+5"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn display_reads_back() {
        for bytes in [
            Bytes(0),
            Bytes(1),
            Bytes::mib(1),
            Bytes::gib(8),
            Bytes(1536),
        ] {
            assert_eq!(bytes.to_string().parse(), Ok(bytes));
        }
    }
}
