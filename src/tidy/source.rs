//! A source file as the rules see it: its text, its code alone, and its test lines.
//!
//! The code has the text's shape, byte for byte and line for line, with comments and
//! the insides of strings blanked, so that a rule may search for words and count
//! braces. Lines belong to tests from an item's `#[cfg(test)]` to the end of it.

use super::{files_below, root};

/// One file of Rust.
pub(super) struct Source {
    /// Relative to the project's root.
    pub(super) path: String,
    /// As it is.
    pub(super) text: String,
    /// Comments and the insides of strings blanked.
    pub(super) code: String,
    /// For each line, whether it is a test's.
    test_lines: Vec<bool>,
}

impl Source {
    /// Reads text as the file of this path.
    pub(super) fn new(path: &str, text: &str) -> Source {
        let code = blank(text);
        let test_lines = match whole_file_is_test(path) {
            true => vec![true; text.lines().count()],
            false => test_lines(&code),
        };
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            test_lines,
        }
    }

    /// The lines of code that run outside of tests, with their numbers from 1.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.lines().enumerate();
        lines
            .filter(|(index, _)| !self.is_test(index + 1))
            .map(|(index, line)| (index + 1, line))
    }

    /// Whether a line, counted from 1, is a test's.
    pub(super) fn is_test(&self, line: usize) -> bool {
        self.test_lines.get(line - 1).copied().unwrap_or(false)
    }

    /// A complaint about a line of this file.
    pub(super) fn complain(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// Every Rust file below these folders; what `#[cfg(test)] mod name;` names is a test.
pub(super) fn sources(folders: &[&str]) -> Vec<Source> {
    let paths = folders.iter().flat_map(|folder| files_below(folder));
    let rust = paths.filter(|path| path.extension().is_some_and(|end| end == "rs"));
    let read = rust.map(|path| {
        let text = std::fs::read_to_string(&path).expect("a source file is UTF-8");
        let path = path.strip_prefix(root()).expect("found below the root");
        Source::new(&path.to_string_lossy(), &text)
    });
    let mut sources: Vec<Source> = read.collect();
    let tests: Vec<String> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        let stem = source.path.trim_end_matches(".rs");
        let is_test = |test: &String| stem == test || stem.starts_with(&format!("{test}/"));
        if tests.iter().any(is_test) {
            source.test_lines.fill(true);
        }
    }
    sources
}

/// The paths, without `.rs`, of the modules that a file declares for tests only.
fn test_modules(source: &Source) -> Vec<String> {
    let stem = source.path.trim_end_matches(".rs");
    let folder = ["/mod", "/lib", "/main"]
        .iter()
        .find_map(|name| stem.strip_suffix(name))
        .unwrap_or(stem);
    let lines = source.code.lines().enumerate();
    lines
        .filter(|(index, _)| source.is_test(index + 1))
        .filter_map(|(_, line)| {
            let line = line.trim();
            let line = line.strip_prefix("pub(super) ").unwrap_or(line);
            line.strip_prefix("mod ")?.strip_suffix(';')
        })
        .map(|name| format!("{folder}/{name}"))
        .collect()
}

/// Integration tests and benches, which no module declares.
fn whole_file_is_test(path: &str) -> bool {
    ["tests/", "benches/"]
        .iter()
        .any(|start| path.starts_with(start))
}

/// Blanks comments and the insides of strings, keeping every line break.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let (end, keep) = token(bytes, at);
        for byte in &mut out[at + keep.0..end - keep.1] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(out).expect("whole tokens were blanked")
}

/// The end of the token at `at`, and how many bytes at its two ends stay.
fn token(bytes: &[u8], at: usize) -> (usize, (usize, usize)) {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        let length = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        return (at + length, (0, 0));
    }
    if rest.starts_with(b"/*") {
        return (at + block_comment(rest), (0, 0));
    }
    if let Some((hashes, start)) = raw_string(bytes, at) {
        let close: Vec<u8> = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
        let body = &rest[start..];
        let length = body.windows(close.len()).position(|w| w == close);
        let end = length.map_or(rest.len(), |length| start + length + close.len());
        return (at + end, (start, close.len().min(end - start)));
    }
    match rest[0] {
        b'"' => (at + quoted(rest, b'"'), (1, 1)),
        b'\'' if is_character(rest) => (at + quoted(rest, b'\''), (1, 1)),
        _ => (at + 1, (1, 0)),
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// `r"`, `r#"`, `br"` …: the number of hashes and the length up to the body.
fn raw_string(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    let rest = bytes[at..]
        .strip_prefix(b"r")
        .filter(|_| !in_word || bytes[at - 1] == b'b')?;
    let hashes = rest.iter().take_while(|b| **b == b'#').count();
    (rest.get(hashes) == Some(&b'"')).then_some((hashes, hashes + 2))
}

/// Length of a quoted token, its quotes included.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Tells `'a'` from the lifetime `'a`.
fn is_character(rest: &[u8]) -> bool {
    match rest.get(1) {
        Some(b'\\') => true,
        // One character, of however many bytes, then the closing quote.
        Some(_) => rest[2..]
            .iter()
            .take(4)
            .position(|b| *b == b'\'')
            .is_some_and(|gap| gap == 0 || !rest[1].is_ascii()),
        None => false,
    }
}

/// Marks each item that stands behind `#[cfg(test)]`, by its braces or its semicolon.
fn test_lines(code: &str) -> Vec<bool> {
    let mut marks = vec![false; code.lines().count()];
    let mut from = 0;
    while let Some(found) = code[from..].find("#[cfg(test)]") {
        let start = from + found;
        let end = item_end(code, start);
        let first = code[..start].matches('\n').count();
        let last = code[..end].matches('\n').count().min(marks.len() - 1);
        marks[first..=last].fill(true);
        from = end.max(start + 1);
    }
    marks
}

/// The end of the item that begins at `start`: its closing brace, or its semicolon.
pub(super) fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0usize;
    let mut braces = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' => braces += 1,
            b'}' if braces <= 1 => return at + 1,
            b'}' => braces -= 1,
            b';' if depth == 0 && braces == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[test]
fn comments_and_strings_are_blanked_and_lines_kept() {
    let text = "a // b\n\"c \\\" d\" /* e\n/* f */ g */ h r#\"i \" j\"# 'k' 'l x";
    let source = Source::new("src/x.rs", text);
    let words: Vec<&str> = source.code.split_whitespace().collect();
    assert_eq!(
        words,
        ["a", "\"", "\"", "h", "r#\"", "\"#", "'", "'", "'l", "x"]
    );
    assert_eq!(source.code.len(), text.len());
    assert_eq!(source.code.lines().count(), text.lines().count());
}

#[test]
fn lines_of_a_test_module_and_no_others_are_tests() {
    let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod d;\nfn e() {}\n";
    let source = Source::new("src/x.rs", text);
    let tests: Vec<usize> = (1..=9).filter(|line| source.is_test(*line)).collect();
    assert_eq!(tests, [2, 3, 4, 5, 7, 8]);
}

#[test]
fn modules_declared_for_tests_are_found_beside_their_parent() {
    let text = "mod a;\n#[cfg(test)]\nmod b;\n#[cfg(test)]\npub(super) mod c;\n";
    for path in ["src/x/mod.rs", "src/x.rs"] {
        let found = test_modules(&Source::new(path, text));
        assert_eq!(found, ["src/x/b", "src/x/c"]);
    }
    let text = "mod a;\n#[cfg(test)]\nmod b;\n";
    assert_eq!(test_modules(&Source::new("src/lib.rs", text)), ["src/b"]);
}
