//! The project's own rules, kept as tests over the source tree.
//!
//! Each rule is a pure function from a [`source::Source`] to complaints; a planted
//! violation proves that it can fail. To follow a rule is cheaper than to argue with
//! it here; to change one, change it here and say why in the commit.
//!
//! | file | holds |
//! |---|---|
//! | [`source`] | a file with comments and strings blanked, and which lines are tests |
//! | [`layers`] | who may import whom: the drawing in docs/architecture.md |
//! | [`bans`] | words that must not appear, and where |
//! | [`functions`] | lengths of functions and files, with a ratchet |
//! | [`repeats`] | passages that are there twice |
//! | [`documents`] | links, paths and recipes that the documents name |

mod bans;
mod documents;
mod functions;
mod layers;
mod repeats;
mod source;

use std::path::{Path, PathBuf};

/// The project's root.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a folder of the project, without build output, sorted.
fn files_below(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(folder) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let entry = entry.expect("a folder of ours can be read to its end");
            let name = entry.file_name();
            let kind = entry.file_type().expect("an entry has a type");
            match kind.is_dir() {
                true if name == "target" || name == "build" || name == ".git" => {}
                true => open.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found.sort();
    found
}

/// Ends the test with every complaint, one a line.
#[track_caller]
fn assert_none(complaints: &[String]) {
    assert!(
        complaints.is_empty(),
        "{} complaints:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}
