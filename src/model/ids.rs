//! Identifiers and names, checked once, where they enter.

use std::fmt;
use std::str::FromStr;

/// Why a text is not an identifier or a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or longer than the limit (bytes).
    #[error("{kind} {text:?} has {length} characters: 1 to {limit} are allowed")]
    Length {
        /// What was named.
        kind: &'static str,
        /// The text as given.
        text: String,
        /// Its length in characters.
        length: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// A character outside the alphabet.
    #[error("{kind} {text:?} holds {character:?}: only {allowed} are allowed")]
    Character {
        /// What was named.
        kind: &'static str,
        /// The text as given.
        text: String,
        /// The first offending character.
        character: char,
        /// The alphabet, for people.
        allowed: &'static str,
    },
    /// Begins or ends with a character that may only stand inside.
    #[error("{kind} {text:?} begins or ends with {character:?}")]
    Edge {
        /// What was named.
        kind: &'static str,
        /// The text as given.
        text: String,
        /// The offending character.
        character: char,
    },
}

struct Rule {
    kind: &'static str,
    limit: usize,
    allowed: &'static str,
    accepts: fn(char) -> bool,
    inner_only: &'static [char],
}

fn check(text: &str, rule: &Rule) -> Result<(), NameError> {
    let length = text.chars().count();
    let owned = || text.to_owned();
    if length == 0 || length > rule.limit {
        return Err(NameError::Length {
            kind: rule.kind,
            text: owned(),
            length,
            limit: rule.limit,
        });
    }
    if let Some(character) = text.chars().find(|c| !(rule.accepts)(*c)) {
        return Err(NameError::Character {
            kind: rule.kind,
            text: owned(),
            character,
            allowed: rule.allowed,
        });
    }
    let edges = [text.chars().next(), text.chars().last()];
    match edges
        .into_iter()
        .flatten()
        .find(|c| rule.inner_only.contains(c))
    {
        Some(character) => Err(NameError::Edge {
            kind: rule.kind,
            text: owned(),
            character,
        }),
        None => Ok(()),
    }
}

/// The identity of a VM: 32 random bits, written as eight hexadecimal digits, so
/// that `bgr-<id>` fits the 15 bytes of an interface name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(u32);

/// The bits that [`VmId::user_bits`] keeps.
pub const USER_BITS: u32 = 0x07ff_ffff;

impl VmId {
    /// Makes an identity of random bits that the caller drew.
    pub const fn from_bits(bits: u32) -> VmId {
        VmId(bits)
    }

    /// The 32 bits.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// What tells this VM's user on the host from those of others: 27 of its bits. No two
    /// VMs of one store have the same ones.
    pub fn user_bits(self) -> u32 {
        self.0 & USER_BITS
    }

    /// The name of this VM's tap: `bgr-<id>`, 12 bytes.
    pub fn tap(self) -> String {
        format!("bgr-{self}")
    }

    /// The VM whose tap has this name.
    pub fn of_tap(name: &str) -> Option<VmId> {
        name.strip_prefix("bgr-")?.parse().ok()
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

const VM_ID: Rule = Rule {
    kind: "vm id",
    limit: 8,
    allowed: "0-9 and a-f",
    accepts: |c| matches!(c, '0'..='9' | 'a'..='f'),
    inner_only: &[],
};

impl FromStr for VmId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<VmId, NameError> {
        check(text, &VM_ID)?;
        match u32::from_str_radix(text, 16) {
            Ok(bits) if text.len() == 8 => Ok(VmId(bits)),
            _ => Err(NameError::Length {
                kind: VM_ID.kind,
                text: text.to_owned(),
                length: text.len(),
                limit: VM_ID.limit,
            }),
        }
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $rule:ident = $value:expr) => {
        const $rule: Rule = $value;

        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<$type, NameError> {
                check(text, &$rule)?;
                Ok($type(text.to_owned()))
            }
        }
    };
}

name! {
    /// A VM's name: also its hostname, so a DNS label (RFC 1123) in lower case.
    VmName,
    VM_NAME = Rule {
        kind: "vm name",
        limit: 63,
        allowed: "a-z, 0-9 and '-'",
        accepts: |c| matches!(c, 'a'..='z' | '0'..='9' | '-'),
        inner_only: &['-'],
    }
}

name! {
    /// The name of an image in the catalogue or the store.
    ImageName,
    IMAGE_NAME = Rule {
        kind: "image name",
        limit: 63,
        allowed: "a-z, 0-9, '.', '_' and '-'",
        accepts: |c| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-'),
        inner_only: &['-', '.', '_'],
    }
}

name! {
    /// The name of a kernel in the catalogue or the store.
    KernelName,
    KERNEL_NAME = Rule {
        kind: "kernel name",
        limit: 63,
        allowed: "a-z, 0-9, '.', '_' and '-'",
        accepts: |c| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-'),
        inner_only: &['-', '.', '_'],
    }
}

name! {
    /// The first 16 hexadecimal digits of the SHA-256 of an image's or a kernel's
    /// content: the name of its folder in the store.
    ContentId,
    CONTENT_ID = Rule {
        kind: "content id",
        limit: 16,
        allowed: "0-9 and a-f",
        accepts: |c| matches!(c, '0'..='9' | 'a'..='f'),
        inner_only: &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_id_round_trips_with_leading_zeros() {
        let id = VmId::from_bits(0x2a);
        assert_eq!(id.to_string(), "0000002a");
        assert_eq!("0000002a".parse(), Ok(id));
        assert_eq!(id.tap().len(), 12);
    }

    #[test]
    fn vm_id_of_another_length_or_alphabet_is_refused() {
        for text in ["", "2a", "0000002A", "0000002g", "0000002aa", "+000002a"] {
            assert!(text.parse::<VmId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn vm_names_follow_the_dns_label_rules() {
        for good in ["a", "dev", "a-b", "0", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a_b",
            "a b",
            "ä",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<VmName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bad_name_is_quoted_in_the_error() {
        let error = "no/slash".parse::<VmName>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "vm name \"no/slash\" holds '/': only a-z, 0-9 and '-' are allowed"
        );
    }
}
