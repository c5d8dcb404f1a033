//! The binary itself: one static file whose name decides its role.

mod support;

use support::{binary, skip};

#[test]
fn binary_wants_no_loader_and_no_library() {
    let Ok(output) = std::process::Command::new("readelf")
        .arg("-hld")
        .arg(binary())
        .output()
    else {
        return skip(
            "binary_wants_no_loader_and_no_library",
            "readelf is not installed",
        );
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("DYN (Position-Independent") || text.contains("DYN"),
        "{text}"
    );
    assert!(text.contains("DYN (Position-Independent"), "{text}");
    assert!(!text.contains("INTERP"), "{text}");
    assert!(!text.contains("NEEDED"), "{text}");
}
