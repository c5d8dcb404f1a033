//! Commands whose standard output cannot be written to.

use std::process::{Output, Stdio};

use super::Banger;

/// A full device and no descriptor at all, as a shell writes them, and the cause that the
/// system names.
pub const UNWRITABLE: [(&str, &str); 2] = [
    ("> /dev/full", "No space left on device"),
    (">&-", "Bad file descriptor"),
];

/// Runs a command of the binary with its output led as the shell's words say.
pub fn led(banger: &Banger, words: &str, output: &str) -> Output {
    let script = format!("exec \"$0\" {words} {output}");
    let mut command = banger.command_of("sh");
    command.args(["-c", &script]).arg(&banger.program);
    command.output().expect("every system has a shell")
}

/// It must say why it could not write, and end with this status.
#[track_caller]
pub fn fails_unwritable(banger: &Banger, words: &str, status: i32) {
    for (output, cause) in UNWRITABLE {
        let ended = led(banger, words, output);
        assert_eq!(
            ended.status.code(),
            Some(status),
            "{words} {output}: {ended:?}"
        );
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("output"), "{words} {output}: {said}");
        assert!(said.contains(cause), "{words} {output}: {said}");
    }
}

/// Runs it with a reader that is gone already: a quiet end with status 0.
#[track_caller]
pub fn ends_quietly_unread(banger: &Banger, words: &str) {
    let words: Vec<&str> = words.split(' ').collect();
    let mut command = banger.command(&words);
    let (reader, writer) = std::io::pipe().expect("a process may have pipes");
    drop(reader);
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn();
    let ended = child.and_then(|child| child.wait_with_output());
    let ended = ended.expect("the binary can be run");
    assert_eq!(ended.status.code(), Some(0), "{words:?}: {ended:?}");
    assert!(ended.stderr.is_empty(), "{words:?}: {ended:?}");
}
