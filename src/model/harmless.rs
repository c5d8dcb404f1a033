//! Text of others (guests, VMMs, programs, whoever types) made fit to be shown.

/// Whether a character steers what shows it instead of being shown: the control characters
/// with all line ends, and what turns the direction of writing (Unicode Standard Annex 9),
/// by which a line can read as another.
pub fn steers(c: char) -> bool {
    let turns = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') || turns
}

/// A text in one line: white space for line ends and tabs, U+FFFD for whatever else steers.
pub fn one_line(text: &str) -> String {
    let shown = |c| match c {
        '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => ' ',
        c if steers(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_stays_in_its_line_and_in_its_direction() {
        assert_eq!(one_line("a\x1b[2Jb\tc\nd"), "a\u{fffd}[2Jb c d");
        assert_eq!(
            one_line("a\u{202e}b\u{2066}c\u{2028}d"),
            "a\u{fffd}b\u{fffd}c d"
        );
        let kept = "Zoë 💥 שלום 👩\u{200d}🔬";
        assert_eq!(one_line(kept), kept);
    }
}
