//! Words that must not appear in the source, each with the place where it may.

use super::source::{Source, sources};
use super::{files_below, root};

/// Where a ban holds.
enum Where {
    /// Everywhere but in files that begin with one of these.
    Outside(&'static [&'static str]),
    /// Only in files that begin with one of these.
    Inside(&'static [&'static str]),
}

impl Where {
    fn holds(&self, path: &str) -> bool {
        let begins = |starts: &[&str]| starts.iter().any(|start| path.starts_with(start));
        match self {
            Where::Outside(starts) => !begins(starts),
            Where::Inside(starts) => begins(starts),
        }
    }
}

/// What the pure rooms must not know.
const PURE: Where = Where::Inside(&["src/model", "src/plan", "src/proto"]);

/// Words, where they are banned, and why; matched at word borders in code.
const BANS: &[(&[&str], Where, &str)] = &[
    (
        &["println!", "eprintln!", "print!", "eprint!"],
        Where::Outside(&["src/cli/render.rs"]),
        "only cli/render.rs prints",
    ),
    (
        &[".unwrap()", ".unwrap_err()"],
        Where::Outside(&[]),
        "say why it holds: expect(\"…\")",
    ),
    (
        &["unsafe"],
        Where::Outside(&["src/sys"]),
        "unsafe lives in sys",
    ),
    (
        &["Mutex<", "RwLock<", "Mutex::new", "RwLock::new"],
        Where::Inside(&["src/daemon"]),
        "the daemon's state has one owner: send it an event",
    ),
    (
        &["serde"],
        Where::Inside(&["src/model", "src/plan"]),
        "serialisation lives at the borders",
    ),
    (
        &[
            "std::fs",
            "std::process",
            "std::env",
            "std::thread",
            "std::os",
            "Instant",
            "SystemTime",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "smol",
            "rustix",
            "redb",
            "ureq",
            "log::",
        ],
        PURE,
        "pure rooms take facts and give decisions: no I/O, no clock",
    ),
    (
        &["tokio", "anyhow"],
        Where::Outside(&[]),
        "not a crate of this project",
    ),
];

/// Banned in tests too: waiting is done for events.
const BANNED_EVERYWHERE: &[(&str, &str)] = &[
    ("thread::sleep", "wait for the event, not for time to pass"),
    (
        "#[ignore",
        "a test whose host lacks something skips by name",
    ),
    ("#[allow(clippy::all", "allow one lint, with its reason"),
];

/// Unfinished work, in comments too. Spelt in halves, or this file would be found.
const UNFINISHED: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("unimple", "mented!"),
    concat!("to", "do!("),
];

fn complaints(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (line, code) in source.lines() {
        for (words, place, why) in BANS {
            for word in words.iter().filter(|_| place.holds(&source.path)) {
                if has_word(code, word) {
                    found.push(source.complain(line, &format!("{word}: {why}")));
                }
            }
        }
    }
    for (index, code) in source.code.lines().enumerate() {
        for (word, why) in BANNED_EVERYWHERE {
            if code.contains(word) {
                found.push(source.complain(index + 1, &format!("{word}: {why}")));
            }
        }
    }
    found.extend(expectations(source));
    found.extend(furniture(source));
    found
}

/// Whether `word` stands in `code` with no letter, digit or underscore glued to it.
fn has_word(code: &str, word: &str) -> bool {
    let glued = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let starts_word = word.starts_with(|c: char| c.is_alphanumeric());
    let ends_word = word.ends_with(|c: char| c.is_alphanumeric());
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !(starts_word && glued(before) || ends_word && glued(after))
    })
}

/// An `expect` says why it holds, in more than one word.
fn expectations(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in source.code.match_indices(".expect(\"") {
        let line = source.code[..at].matches('\n').count() + 1;
        let reason = &source.text[at + ".expect(\"".len()..];
        let reason = &reason[..reason.find('"').unwrap_or(0)];
        if !source.is_test(line) && reason.split_whitespace().count() < 2 {
            found.push(source.complain(line, "expect without a reason why it holds"));
        }
    }
    found
}

/// Every file opens with `//!`, has a name that says something and nothing unfinished.
fn furniture(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let first = source.text.lines().find(|line| !line.trim().is_empty());
    if !first.is_some_and(|line| line.starts_with("//! ")) {
        found.push(source.complain(1, "a file opens with //! and what it is for"));
    }
    for name in ["utils", "util", "common", "helpers", "misc"] {
        let parts = source.path.trim_end_matches(".rs").split('/');
        if parts.into_iter().any(|part| part == name) {
            found.push(source.complain(1, "name it after what it holds"));
        }
    }
    found
}

fn unfinished(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in UNFINISHED {
            if line.contains(word) {
                found.push(format!(
                    "{path}:{}: {word}: finish it or leave it out",
                    index + 1
                ));
            }
        }
    }
    found
}

#[test]
fn no_file_uses_a_banned_word() {
    let sources = sources(&["src", "tests", "benches"]);
    let found: Vec<String> = sources.iter().flat_map(complaints).collect();
    super::assert_none(&found);
}

#[test]
fn nothing_is_left_unfinished() {
    let folders = [
        "src", "tests", "benches", "scripts", "docs", "images", "catalog", "guest",
    ];
    let mut found = Vec::new();
    for path in folders.iter().flat_map(|folder| files_below(folder)) {
        let short = path.strip_prefix(root()).expect("found below the root");
        // What is not text (a fixture of bytes) holds no words of ours.
        if let Ok(text) = std::fs::read_to_string(&path) {
            found.extend(unfinished(&short.to_string_lossy(), &text));
        }
    }
    super::assert_none(&found);
}

#[test]
fn planted_words_are_found_each_once() {
    let planted = [
        ("src/daemon/x.rs", "fn f() { println!(); }"),
        ("src/cli/x.rs", "fn f() { g().unwrap(); }"),
        ("src/host/x.rs", "fn f() { unsafe { g() } }"),
        ("src/daemon/x.rs", "type T = Arc<Mutex<State>>;"),
        ("src/model/x.rs", "use serde::Serialize;"),
        ("src/plan/x.rs", "use std::fs::File;"),
        ("src/plan/x.rs", "fn f() { log::info!(); }"),
        ("src/proto/x.rs", "fn f() -> std::time::Instant { g() }"),
        ("src/daemon/x.rs", "use tokio::net;"),
        ("tests/x.rs", "fn f() { std::thread::sleep(d); }"),
        ("tests/x.rs", "#[ignore]"),
        ("src/host/x.rs", "fn f() { g().expect(\"works\"); }"),
    ];
    for (path, code) in planted {
        let source = Source::new(path, &format!("//! What it is.\n{code}\n"));
        assert_eq!(complaints(&source).len(), 1, "{path}: {code}");
    }
    assert_eq!(
        complaints(&Source::new("src/host/x.rs", "fn f() {}\n")).len(),
        1
    );
    assert_eq!(
        complaints(&Source::new("src/host/utils.rs", "//! X.\n")).len(),
        1
    );
    assert_eq!(
        unfinished("x", &format!("// {} later", UNFINISHED[0])).len(),
        1
    );
}

#[test]
fn words_where_they_may_stand_are_left_alone() {
    let fine = [
        ("src/cli/render.rs", "fn f() { println!(); }"),
        ("src/sys/x.rs", "fn f() { unsafe { g() } }"),
        (
            "src/plan/x.rs",
            "use std::time::Duration; use std::net::Ipv4Addr; fn catalog() {}",
        ),
        (
            "src/host/x.rs",
            "// .unwrap() is banned\nfn f() { g().expect(\"a reason that holds\"); }",
        ),
        (
            "src/host/x.rs",
            "#[cfg(test)]\nmod tests { fn f() { g().unwrap(); } }",
        ),
    ];
    for (path, code) in fine {
        let source = Source::new(path, &format!("//! What it is.\n{code}\n"));
        super::assert_none(&complaints(&source));
    }
}
