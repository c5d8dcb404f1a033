//! No passage twice: the second place is where a shape gets a name.
//!
//! Comments are left out and strings count as equal, so that two passages that differ
//! only in their words are found. Closing brackets and imports count for nothing.

use std::collections::HashMap;

use super::source::{Source, sources};

/// So many lines of code in a row may not be somewhere else too.
const PASSAGE: usize = 10;

/// The lines that count, with their numbers.
fn lines(source: &Source) -> Vec<(usize, &str)> {
    let numbered = source.code.lines().enumerate();
    numbered
        .map(|(index, line)| (index + 1, line.trim()))
        .filter(|(_, line)| line.chars().any(char::is_alphanumeric))
        .filter(|(_, line)| !line.starts_with("use "))
        .collect()
}

/// Each passage that another file, or the same one, has had before; the first line of it.
fn complaints(sources: &[Source]) -> Vec<String> {
    let mut seen: HashMap<Vec<&str>, String> = HashMap::new();
    let mut found = Vec::new();
    for source in sources {
        let lines = lines(source);
        let mut quiet_until = 0;
        for (index, window) in lines.windows(PASSAGE).enumerate() {
            let (line, _) = window[0];
            let passage: Vec<&str> = window.iter().map(|(_, text)| *text).collect();
            let here = format!("{}:{line}", source.path);
            let before = seen.get(&passage).cloned();
            match before {
                // The rest of a passage already told is not told again.
                Some(_) if index < quiet_until => quiet_until = index + 2,
                Some(before) => {
                    quiet_until = index + 2;
                    let what = format!("{PASSAGE} lines that are at {before} too");
                    found.push(source.complain(line, &what));
                }
                None => drop(seen.insert(passage, here)),
            }
        }
    }
    found
}

#[test]
fn no_passage_is_there_twice() {
    super::assert_none(&complaints(&sources(&["src", "tests", "benches"])));
}

#[test]
fn planted_repeat_is_found_once_whatever_its_strings_say() {
    let passage = |word: &str| {
        let lines = (0..PASSAGE + 2).map(|n| format!("    f{n}(\"{word}\");\n"));
        format!("fn {word}() {{\n{}}}\n", lines.collect::<String>())
    };
    let one = Source::new("src/one.rs", &passage("a"));
    let two = Source::new("src/two.rs", &passage("b"));
    assert_eq!(
        complaints(&[one, two]),
        ["src/two.rs:2: 10 lines that are at src/one.rs:2 too"]
    );
    let short = "    g();\n".repeat(PASSAGE - 2);
    let text = format!("fn c() {{\n{short}}}\nfn d() {{\n{short}}}\n");
    assert!(complaints(&[Source::new("src/one.rs", &text)]).is_empty());
}
