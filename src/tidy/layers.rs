//! Who may import whom: imports go downwards only, as docs/architecture.md draws it.
//!
//! Tests inside a room may reach further; the rooms themselves may not.

use super::source::{Source, sources};

/// A room and the rooms that it may name as `crate::…`. A room is a file or folder
/// of src/; `room::part` allows one part of another. `*` is anything.
const LAYERS: &[(&str, &[&str])] = &[
    // words and thought
    ("failure", &[]),
    ("fail_point", &[]),
    ("version", &[]),
    ("model", &[]),
    ("plan", &["model", "failure"]),
    // unsafe
    ("sys", &[]),
    // wire and records
    ("proto", &["model", "plan", "failure"]),
    ("config", &["model", "plan", "failure"]),
    ("store", &["model", "plan", "failure"]),
    // effects
    // host/mod.rs hands the steps that are VMMs on; nothing else there knows vmm.
    (
        "host",
        &[
            "model",
            "plan",
            "sys",
            "failure",
            "vmm::steps",
            "vmm::initrd",
        ],
    ),
    ("vmm", &["model", "plan", "sys", "failure", "host"]),
    (
        "image",
        &["model", "plan", "sys", "failure", "fail_point", "host"],
    ),
    ("workspace", &["model", "plan", "sys", "failure", "host"]),
    // roles
    ("agent", &["model", "proto", "sys", "failure"]),
    (
        "daemon",
        &[
            "model",
            "plan",
            "sys",
            "failure",
            "fail_point",
            "proto",
            "config",
            "store",
            "host",
            "vmm",
            "image",
            "workspace",
            "logging",
            "version",
        ],
    ),
    (
        "helper",
        &[
            "model", "plan", "sys", "failure", "proto", "host", "logging", "config",
        ],
    ),
    (
        "cli",
        &[
            "model",
            "proto",
            "config",
            "failure",
            "version",
            "plan::doctor",
            "store::audit",
            "store::copy",
            "store::export",
            "host::layout",
            "image::job",
            "image::manifest",
            "sys::closed_output",
            "sys::session",
            "sys::signals",
            "workspace",
        ],
    ),
    ("logging", &["model"]),
    ("role", &["*"]),
    ("lib", &["*"]),
    ("main", &["*"]),
];

/// The room of a file: `src/plan/step.rs` is in plan, `src/role.rs` in role.
fn room_of(path: &str) -> Option<&str> {
    let path = path.strip_prefix("src/")?;
    path.split('/').next()?.split('.').next()
}

/// What a file imports against the drawing.
fn complaints(source: &Source) -> Vec<String> {
    let Some(room) = room_of(&source.path) else {
        return Vec::new();
    };
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == room) else {
        let what = format!("room {room} has no line in src/tidy/layers.rs");
        return match source.is_test(1) {
            true => Vec::new(),
            false => vec![source.complain(1, &what)],
        };
    };
    imports(source)
        .into_iter()
        .filter(|(_, path)| !is_allowed(room, allowed, path))
        .map(|(line, path)| source.complain(line, &format!("{room} may not import {path}")))
        .collect()
}

fn is_allowed(room: &str, allowed: &[&str], path: &str) -> bool {
    let first = path.split("::").next().unwrap_or(path);
    first == room
        || allowed.contains(&"*")
        || allowed.contains(&first)
        || allowed
            .iter()
            .any(|part| path == *part || path.starts_with(&format!("{part}::")))
}

/// Every `crate::a::b` and `crate::{a, b::c}` outside of tests: line and path.
fn imports(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in source.code.match_indices("crate::") {
        let line = source.code[..at].matches('\n').count() + 1;
        if source.is_test(line) || source.code[..at].ends_with("$") {
            continue;
        }
        let rest = &source.code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_members(group).map(|path| (line, path))),
            None => found.push((line, leading_path(rest))),
        }
    }
    found
}

fn leading_path(text: &str) -> String {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    text[..end.unwrap_or(text.len())]
        .trim_end_matches(':')
        .to_owned()
}

/// The members of an import group, which ends at its own closing brace.
fn group_members(group: &str) -> impl Iterator<Item = String> {
    let mut members = vec![String::new()];
    let mut depth = 0;
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => members.push(String::new()),
            c if depth == 0 && !c.is_whitespace() => {
                members.last_mut().expect("never empty").push(c);
            }
            _ => {}
        }
    }
    let members = members.into_iter().map(|member| leading_path(&member));
    members.filter(|member| !member.is_empty())
}

#[test]
fn every_room_imports_downwards_only() {
    let found: Vec<String> = sources(&["src"]).iter().flat_map(complaints).collect();
    super::assert_none(&found);
}

#[test]
fn planted_upward_imports_are_found() {
    let plan = Source::new(
        "src/plan/x.rs",
        "use crate::model::ids::VmId;\nuse crate::host::Host;\nfn f() { crate::daemon::g() }\n",
    );
    assert_eq!(
        complaints(&plan),
        [
            "src/plan/x.rs:2: plan may not import host::Host",
            "src/plan/x.rs:3: plan may not import daemon::g"
        ]
    );
    let grouped = Source::new(
        "src/cli/x.rs",
        "use crate::{model, host::{layout, nft}, store::open};",
    );
    assert_eq!(
        complaints(&grouped),
        [
            "src/cli/x.rs:1: cli may not import host",
            "src/cli/x.rs:1: cli may not import store::open"
        ]
    );
    assert_eq!(
        complaints(&Source::new("src/attic/x.rs", "fn f() {}\n")).len(),
        1
    );
}

#[test]
fn tests_of_a_room_may_reach_further() {
    let text = "#[cfg(test)]\nmod tests {\n    use crate::sim::World;\n}\n";
    assert_eq!(complaints(&Source::new("src/plan/x.rs", text)), [""; 0]);
}
