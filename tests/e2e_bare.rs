//! End to end: an image that holds one static program and nothing else. No shell, no
//! init, no tool, not even the folders that every distribution has.

mod support;

use support::census::Census;
use support::{Banger, binary, image};

/// A state with the image `bare`: the binary under test, which is static, as `/bin/x` and
/// as `/root/tools/x`.
fn with_bare_image() -> Banger {
    let banger = Banger::with_images(&["debian-minimal"]);
    let tree = banger.home().join("tree");
    std::fs::create_dir_all(tree.join("bin")).expect("a fresh home takes a folder");
    std::fs::create_dir_all(tree.join("root/tools")).expect("and another");
    for place in ["bin/x", "root/tools/x"] {
        std::fs::copy(binary(), tree.join(place)).expect("the binary can be copied");
    }
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

#[test]
fn what_an_image_has_in_root_is_on_the_work_disk_and_stays_there() {
    let banger = with_bare_image();
    banger.ok(&["vm", "run", "-d", "--name", "a", "--image", "bare"]);
    let version = banger.ok(&["--version"]);
    let view = banger.json(&["vm", "show", "a"]);
    assert_eq!(view["warnings"].as_array().map(Vec::len), Some(0), "{view}");
    assert_eq!(banger.exec("a", &["/root/tools/x", "--version"]), version);
    banger.ok(&["vm", "stop", "a"]);
    banger.ok(&["vm", "reset", "a"]);
    banger.ok(&["vm", "start", "a"]);
    assert_eq!(banger.exec("a", &["/root/tools/x", "--version"]), version);
}
