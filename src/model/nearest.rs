//! Finds the known word that a mistyped one probably means.
//!
//! Pure and small: commands, options, configuration keys, images and VMs are all
//! offered by the same rule, so that a suggestion never surprises.

/// The known word nearest to `typed`, when it is near enough to be meant.
///
/// Near enough: one word begins with the other (two letters at least), or no more
/// than a third of the letters differ. Of equally near words the first wins.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    known
        .into_iter()
        .filter_map(|word| rank(&typed, word).map(|rank| (rank, word)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, word)| word)
}

/// The sentence `Did you mean X?`, or nothing where no known word is near.
pub fn did_you_mean<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(typed, known).map(|word| format!("Did you mean {word}?"))
}

/// Most names that are listed where none is near.
const LISTED: usize = 5;

/// What to say to a name that no VM has: the nearest name, else the names that there are,
/// and the command that shows them all.
pub fn known_vms<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    if names.is_empty() {
        return "There is no vm yet: `banger vm run` makes one.".to_owned();
    }
    if let Some(question) = did_you_mean(typed, names.iter().copied()) {
        return format!("{question} `banger vm list` shows all.");
    }
    let more = if names.len() > LISTED { ", …" } else { "" };
    names.truncate(LISTED);
    format!(
        "Known: {}{more}. `banger vm list` shows all.",
        names.join(", ")
    )
}

/// How far a word is from what was typed; `None` when too far.
fn rank(typed: &str, word: &str) -> Option<usize> {
    let letters = typed.chars().count().max(word.chars().count());
    let distance = distance(typed, word);
    let allowed = (letters / 3).max(1);
    if distance <= allowed && distance < letters {
        return Some(distance);
    }
    let begins = |long: &str, short: &str| short.chars().count() >= 2 && long.starts_with(short);
    (begins(word, typed) || begins(typed, word)).then_some(allowed + 1)
}

/// Insertions, deletions, substitutions and swaps of neighbours that lead from one
/// word to the other (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let substitution = last[j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = substitution.min(last[j] + 1).min(row[j - 1] + 1);
            let swapped =
                i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
            if swapped {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_find_their_word() {
        let known = ["list", "logs", "delete", "start", "stop", "--memory"];
        assert_eq!(nearest("lsit", known), Some("list"));
        assert_eq!(nearest("del", known), Some("delete"));
        assert_eq!(nearest("strat", known), Some("start"));
        assert_eq!(nearest("STOP", known), Some("stop"));
        assert_eq!(nearest("--mem", known), Some("--memory"));
    }

    #[test]
    fn an_unknown_vm_is_answered_with_the_nearest_name_or_those_there_are() {
        let said = |names: &[&str]| known_vms("ghost", names.iter().copied());
        assert_eq!(
            said(&["b", "ghots"]),
            "Did you mean ghots? `banger vm list` shows all."
        );
        assert_eq!(
            said(&["dev", "a"]),
            "Known: a, dev. `banger vm list` shows all."
        );
        let many = ["a", "b", "c", "d", "e", "f"];
        assert_eq!(
            said(&many),
            "Known: a, b, c, d, e, …. `banger vm list` shows all."
        );
        assert_eq!(said(&[]), "There is no vm yet: `banger vm run` makes one.");
    }

    #[test]
    fn a_word_far_from_all_gets_no_suggestion() {
        assert_eq!(nearest("xyzzy", ["list", "stop"]), None);
        assert_eq!(nearest("a", ["b"]), None);
        assert_eq!(nearest("", ["b"]), None);
    }
}
