//! Takes out of a guest's bytes whatever would steer the terminal that shows them.
//!
//! ```text
//!  Text --ESC--> Escape --[--> Control --final byte--> Text
//!                   |  --], P, X, ^, _--> String --BEL, ESC or line end--> Text
//!                   +--any other--> Text
//! ```
//!
//! Sequences of ECMA-48 are dropped whole, colours too; so are single control characters
//! but line end and tab, in both of their forms (C0, and C1 as UTF-8). The state lasts from
//! one part to the next: a sequence may be cut in two.

/// Where in a sequence the last part ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// Behind 0xC2, which begins a C1 character or a harmless one.
    Latin,
    Escape,
    Control,
    String,
}

/// See the head of this file; the default is the state before the first part.
#[derive(Debug, Default)]
pub struct Harmless(State);

impl Harmless {
    /// What of the next part may be shown.
    pub fn part(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.0 = self.take(*byte, &mut shown);
        }
        shown
    }

    fn take(&self, byte: u8, shown: &mut Vec<u8>) -> State {
        match (self.0, byte) {
            // No sequence goes on over the end of a line: a lone ESC costs one line.
            (_, b'\n') => {
                shown.push(byte);
                State::Text
            }
            (_, 0x1b) => State::Escape,
            (State::Latin, 0x80..=0x9f) => State::Text,
            (State::Latin, _) => {
                shown.push(0xc2);
                text(byte, shown)
            }
            (State::Text, _) => text(byte, shown),
            (State::Escape, b'[') => State::Control,
            (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::String,
            (State::Escape, _) | (State::Control, 0x40..=0x7e) | (State::String, 0x07) => {
                State::Text
            }
            (state @ (State::Control | State::String), _) => state,
        }
    }
}

fn text(byte: u8, shown: &mut Vec<u8>) -> State {
    match byte {
        0xc2 => return State::Latin,
        0x00..=0x08 | 0x0b..=0x1f | 0x7f => {}
        byte => shown.push(byte),
    }
    State::Text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(parts: &[&str]) -> String {
        let mut harmless = Harmless::default();
        let all = parts.iter().flat_map(|part| harmless.part(part.as_bytes()));
        String::from_utf8(all.collect()).unwrap()
    }

    #[test]
    fn sequences_vanish_and_text_stays() {
        assert_eq!(shown(&["a\x1b[2Jb\x1b[0;32mc\x1b[0m\td\r\n"]), "abc\td\n");
        assert_eq!(shown(&["x\x1b]0;title\x07y\x1b]52;c;aGk=\x1b\\z"]), "xyz");
        assert_eq!(shown(&["\u{9b}2Jä£€\u{85}\x07\x7f"]), "2Jä£€");
    }

    #[test]
    fn a_sequence_cut_in_two_vanishes_too() {
        assert_eq!(shown(&["a\x1b", "[2", "Jb"]), "ab");
        assert_eq!(shown(&["a\x1b]0;never ended", " here\nb"]), "a\nb");
    }
}
