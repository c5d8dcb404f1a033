//! What this binary says of itself.

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// One line: name, version and, where it is known, the commit it was built from.
pub fn one_line() -> String {
    match option_env!("BANGER_COMMIT") {
        Some(commit) if !commit.is_empty() => format!("banger {VERSION} ({commit})"),
        _ => format!("banger {VERSION}"),
    }
}
