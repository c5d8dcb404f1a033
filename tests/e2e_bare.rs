//! End to end: an image that holds one static program and nothing else. No shell, no
//! init, no tool, not even the folders that every distribution has.

mod support;

use support::census::Census;
use support::{Banger, binary, image};

/// A state with the image `bare`: `/bin/x`, the binary under test, which is static.
fn with_bare_image() -> Banger {
    let banger = Banger::with_images(&["debian-minimal"]);
    let tree = banger.home().join("tree");
    std::fs::create_dir_all(tree.join("bin")).expect("a fresh home takes a folder");
    std::fs::copy(binary(), tree.join("bin/x")).expect("the binary can be copied");
    image::add(&banger, "bare", &tree);
    banger
}

#[test]
fn image_of_one_static_program_boots_runs_it_stops_and_leaves_nothing() {
    let banger = with_bare_image();
    banger.ok(&["vm", "run", "--rm", "--image", "bare", "--", "/bin/x", "-h"]);
    let before = Census::take(&banger);
    banger.ok(&["vm", "run", "-d", "--name", "a", "--image", "bare"]);

    let version = banger.exec("a", &["/bin/x", "--version"]);
    assert_eq!(version, banger.ok(&["--version"]));
    // Found by the PATH that every command gets, though no profile set one.
    assert_eq!(banger.exec("a", &["x", "--version"]), version);
    // The streams and the status are the program's own: a usage error of the binary.
    let ran = banger.run(&["vm", "exec", "a", "--", "/bin/x", "no-such-command"]);
    assert_eq!((ran.code(), ran.text().as_str()), (Some(2), ""), "{ran:?}");
    assert!(ran.error().contains("no-such-command"), "{ran:?}");
    let view = banger.json(&["vm", "show", "a"]);
    assert_eq!(view["init"], "agent", "{view}");

    // What is not there is said, and is no trouble of the VM's.
    let ran = banger.run(&["vm", "shell", "a"]);
    assert_eq!(ran.code(), Some(127), "{ran:?}");
    assert!(ran.error().contains("shell"), "{ran:?}");
    assert_eq!(banger.phase("a"), "running");

    banger.ok(&["vm", "restart", "a"]);
    assert_eq!(banger.exec("a", &["/bin/x", "--version"]), version);
    banger.ok(&["vm", "stop", "a"]);
    banger.ok(&["vm", "delete", "a"]);
    assert_eq!(before.changes(&Census::take(&banger)), [""; 0]);
}
