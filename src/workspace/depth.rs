//! How much history goes along.

use std::num::NonZeroU32;
use std::str::FromStr;

/// How many commits of the history go along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The newest ones of each line of descent.
    Commits(NonZeroU32),
    /// As many as there are.
    All,
}

impl Depth {
    /// Without another wish.
    pub const DEFAULT: Depth = Depth::Commits(NonZeroU32::new(10).expect("ten is not zero"));

    /// For `git fetch --depth`, whose largest number means all (git-fetch(1), --unshallow).
    pub fn number(self) -> u32 {
        match self {
            Depth::Commits(count) => count.get(),
            Depth::All => i32::MAX.cast_unsigned(),
        }
    }
}

impl FromStr for Depth {
    type Err = String;

    fn from_str(text: &str) -> Result<Depth, String> {
        if text == "all" {
            return Ok(Depth::All);
        }
        let count = text.parse().ok().filter(|count: &NonZeroU32| {
            i32::try_from(count.get()).is_ok_and(|count| count < i32::MAX)
        });
        let count = count.ok_or_else(|| {
            format!("{text:?} is neither a number of commits from 1 on nor `all`")
        })?;
        Ok(Depth::Commits(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depth_is_a_number_from_one_on_or_all() {
        assert_eq!("10".parse(), Ok(Depth::DEFAULT));
        assert_eq!("all".parse(), Ok(Depth::All));
        for wrong in ["0", "-1", "", "ten", "4294967295"] {
            assert!(wrong.parse::<Depth>().is_err(), "{wrong}");
        }
    }
}
