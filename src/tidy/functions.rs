//! Lengths: short functions first, short files second, and a count that only falls.

use super::source::{Source, item_end, sources};

/// No function is longer, its signature and closing brace included.
const FUNCTION_LIMIT: usize = 70;

/// Nor a function of a test, which may be one long table.
const TEST_FUNCTION_LIMIT: usize = 100;

/// What a function should stay under.
const FUNCTION_AIM: usize = 40;

/// No file is longer.
const FILE_LIMIT: usize = 600;

/// How many functions outside of tests may be over the aim. The ratchet: when it is
/// more than there are, lower it; never raise it.
const OVER_AIM: usize = 23;

/// A function's first line, name and length in lines.
struct Function {
    line: usize,
    name: String,
    length: usize,
}

/// Every function with a body.
fn functions(source: &Source) -> Vec<Function> {
    let code = &source.code;
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code[..at].chars().next_back();
        let name: String = code[at + 3..]
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if name.is_empty() || before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let end = item_end(code, at);
        if code[..end].ends_with('}') {
            found.push(Function {
                line: code[..at].matches('\n').count() + 1,
                name,
                length: code[at..end].matches('\n').count() + 1,
            });
        }
    }
    found
}

fn complaints(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for function in functions(source) {
        let limit = match source.is_test(function.line) {
            true => TEST_FUNCTION_LIMIT,
            false => FUNCTION_LIMIT,
        };
        if function.length > limit {
            let Function { name, length, .. } = &function;
            let what = format!("fn {name} has {length} lines, the limit is {limit}");
            found.push(source.complain(function.line, &what));
        }
    }
    let length = source.text.lines().count();
    if length > FILE_LIMIT {
        let what = format!("{length} lines, the limit is {FILE_LIMIT}: split it by idea");
        found.push(source.complain(1, &what));
    }
    found
}

/// The functions over the aim, tests left out.
fn over_aim(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for function in functions(source) {
            if function.length > FUNCTION_AIM && !source.is_test(function.line) {
                let what = format!("fn {}: {} lines", function.name, function.length);
                found.push(source.complain(function.line, &what));
            }
        }
    }
    found
}

#[test]
fn functions_and_files_are_within_their_limits() {
    let sources = sources(&["src", "tests", "benches"]);
    let found: Vec<String> = sources.iter().flat_map(complaints).collect();
    super::assert_none(&found);
}

#[test]
fn functions_over_the_aim_only_become_fewer() {
    let found = over_aim(&sources(&["src"]));
    assert!(
        found.len() <= OVER_AIM,
        "{} functions over {FUNCTION_AIM} lines, {OVER_AIM} are allowed:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn planted_long_function_and_file_are_found() {
    let body = "    g();\n".repeat(FUNCTION_LIMIT);
    let text = format!("//! X.\nfn long(\n    a: [u8; 4],\n) {{\n{body}}}\nfn short() {{}}\n");
    let source = Source::new("src/x.rs", &text);
    let found = complaints(&source);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("src/x.rs:2: fn long has 74 lines"),
        "{found:?}"
    );
    assert_eq!(over_aim(&[source]).len(), 1);
    let long = Source::new("src/x.rs", &"//! X.\n".repeat(FILE_LIMIT + 1));
    assert_eq!(complaints(&long).len(), 1);
}

#[test]
fn declarations_without_a_body_are_not_counted() {
    let text = "trait T {\n    fn a(&self) -> [u8; 4];\n    fn b(&self) {\n    }\n}\n";
    let found = functions(&Source::new("src/x.rs", text));
    let seen: Vec<(&str, usize)> = found.iter().map(|f| (f.name.as_str(), f.length)).collect();
    assert_eq!(seen, [("b", 2)]);
}
