//! What the documents name exists: files behind links, paths and recipes.

use std::path::Path;

use super::{files_below, root};

/// Relative links `[text](target)` whose target is no file.
fn broken_links(path: &Path, text: &str) -> Vec<String> {
    let folder = path.parent().unwrap_or(root());
    let mut found = Vec::new();
    for (_, rest) in text
        .match_indices("](")
        .map(|(at, m)| (at, &text[at + m.len()..]))
    {
        let target = &rest[..rest.find(')').unwrap_or(0)];
        let file = target.split('#').next().unwrap_or_default();
        let elsewhere = target.contains("://") || target.starts_with("mailto:");
        if !elsewhere && !file.is_empty() && !folder.join(file).exists() {
            found.push(format!(
                "{}: link to {target}: no such file",
                path.display()
            ));
        }
    }
    found
}

/// Words between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Paths and recipes between backticks that do not exist.
fn unknown_names(text: &str, recipes: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for name in quoted(text) {
        let word = name.split_whitespace().next().unwrap_or_default();
        let is_path = PROJECT_FOLDERS
            .iter()
            .any(|folder| word.starts_with(folder));
        let concrete = !word.contains(['*', '<', '…', '{']);
        if is_path && concrete && !root().join(word.trim_end_matches(':')).exists() {
            found.push(format!("`{name}`: no such file"));
        }
        let recipe = name
            .strip_prefix("just ")
            .and_then(|rest| rest.split_whitespace().next());
        if let Some(recipe) = recipe.filter(|recipe| !recipes.iter().any(|r| r == recipe)) {
            found.push(format!("`just {recipe}`: no such recipe"));
        }
    }
    found
}

/// What a path of the project begins with.
const PROJECT_FOLDERS: [&str; 9] = [
    "src/", "tests/", "scripts/", "docs/", "images/", "catalog/", "guest/", "benches/", ".ci/",
];

/// The recipes of the justfile, each with the scripts that it calls.
fn recipes(justfile: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for line in justfile.lines() {
        let indented = line.starts_with(' ');
        if let (true, Some((_, scripts))) = (indented, found.last_mut()) {
            scripts.extend(
                line.split_whitespace()
                    .filter(|w| w.starts_with("scripts/"))
                    .map(str::to_owned),
            );
        } else if let (false, Some((head, _))) = (line.starts_with('#'), line.split_once(':')) {
            let name = head.split_whitespace().next().unwrap_or_default();
            found.push((name.to_owned(), Vec::new()));
        }
    }
    found
}

fn justfile() -> Vec<(String, Vec<String>)> {
    recipes(&std::fs::read_to_string(root().join("justfile")).expect("justfile can be read"))
}

#[test]
fn every_relative_link_resolves() {
    let mut found = Vec::new();
    let documents = [root().join("README.md"), root().join("AGENTS.md")];
    let below = ["docs", "images", "catalog", "guest"]
        .into_iter()
        .flat_map(files_below);
    let markdown = below.filter(|path| path.extension().is_some_and(|end| end == "md"));
    for path in documents.into_iter().chain(markdown) {
        let text = std::fs::read_to_string(&path).expect("a document is UTF-8");
        found.extend(broken_links(&path, &text));
    }
    super::assert_none(&found);
}

#[test]
fn agents_md_names_paths_and_recipes_that_exist() {
    let text = std::fs::read_to_string(root().join("AGENTS.md")).expect("AGENTS.md can be read");
    let recipes: Vec<String> = justfile().into_iter().map(|(name, _)| name).collect();
    super::assert_none(&unknown_names(&text, &recipes));
}

#[test]
fn every_recipe_calls_a_script_that_exists() {
    let recipes = justfile();
    let names = [
        "build", "test", "lint", "sim", "e2e", "smoke", "bench", "static", "coverage", "doc",
    ];
    for name in names {
        let scripts = recipes.iter().find(|(recipe, _)| recipe == name);
        let (_, scripts) = scripts.unwrap_or_else(|| panic!("justfile: no recipe {name}"));
        assert!(!scripts.is_empty(), "recipe {name} calls no script");
    }
    let scripts = recipes.iter().flat_map(|(_, scripts)| scripts);
    let missing: Vec<&String> = scripts
        .filter(|script| !root().join(script).exists())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn planted_dead_names_are_found() {
    let page = root().join("docs/x.md");
    let text = "[a](nowhere.md) [b](../Cargo.toml#x) [c](https://example.org) [d](#here)";
    assert_eq!(broken_links(&page, text).len(), 1);
    let text = "`src/nowhere.rs` `src/lib.rs` `just nothing` `just test --only lint` `src/<room>/`";
    let found = unknown_names(text, &["test".to_owned()]);
    assert_eq!(
        found,
        [
            "`src/nowhere.rs`: no such file",
            "`just nothing`: no such recipe"
        ]
    );
    assert_eq!(
        recipes("# Says: this\na b='':\n    scripts/x.sh\n"),
        [("a".to_owned(), vec!["scripts/x.sh".to_owned()])]
    );
}
