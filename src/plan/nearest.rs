//! Which known names a mistyped one may have meant.

/// The known names within two edits (or a third of the word) of `text`, or that
/// begin with it; nearest first, at most three.
pub fn nearest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let limit = (text.chars().count() / 3).max(2);
    let mut scored: Vec<(usize, &str)> = known
        .into_iter()
        .map(|name| (score(text, name), name))
        .filter(|(score, _)| *score <= limit)
        .collect();
    scored.sort_unstable();
    scored.dedup();
    scored.into_iter().map(|(_, name)| name).take(3).collect()
}

/// The sentence `Did you mean a, b?`, or nothing.
pub fn did_you_mean<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let names = nearest(text, known);
    (!names.is_empty()).then(|| format!("Did you mean {}?", names.join(", ")))
}

fn score(text: &str, name: &str) -> usize {
    if !text.is_empty() && name.starts_with(text) {
        return 1;
    }
    distance(text, name)
}

/// Insertions, deletions and substitutions from one to the other (Levenshtein).
pub fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn typo_and_prefix_find_the_name_and_nonsense_does_not() {
        let known = ["debian-bookworm", "debian-minimal", "alpine"];
        assert_eq!(nearest("debian-bokworm", known), ["debian-bookworm"]);
        assert_eq!(
            nearest("debian", known),
            ["debian-bookworm", "debian-minimal"]
        );
        assert!(nearest("windows", known).is_empty());
        assert_eq!(
            did_you_mean("alpin", known).unwrap(),
            "Did you mean alpine?"
        );
    }
}
