//! End to end: everything that needs no tap, as an ordinary user without sudo.

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use support::census::processes_that_mention;
use support::events::kill_and_wait;
use support::{binary, is_root, seed, skip};

const USER: &str = "banger-test";

/// A user of this machine with the program in its home; removed when dropped.
struct User {
    home: PathBuf,
}

impl User {
    fn create() -> User {
        must(Command::new("useradd").args(["--create-home", "--shell", "/bin/bash", USER]));
        let user = User {
            home: PathBuf::from("/home").join(USER),
        };
        // Where setup.sh would have put it, had this user run it.
        let tools = user.home.join(".cache/banger/tools/bin");
        let own = ["-o", USER, "-g", USER, "-D"];
        let place =
            |from: PathBuf, to: PathBuf| must(Command::new("install").args(own).arg(from).arg(to));
        place(binary(), user.home.join("bin/banger"));
        let tool = seed::find_tool("vhost-device-vsock");
        place(
            tool.expect("scripts/setup.sh has run"),
            tools.join("vhost-device-vsock"),
        );
        must(Command::new("chown").args(["-R", USER]).arg(&user.home));
        user
    }

    /// Runs a script in a login of this user.
    fn run(&self, script: &str) -> Output {
        let mut command = Command::new("runuser");
        command.args(["--login", USER, "--command", script]);
        command.output().expect("runuser is installed")
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.run("bin/banger daemon stop");
        for pid in processes_that_mention(std::slice::from_ref(&self.home)) {
            kill_and_wait(pid);
        }
        // Without a session of its own it has its sockets in /tmp.
        if let Ok(home) = std::fs::metadata(&self.home) {
            let runtime = format!("/tmp/banger-runtime-{}", home.uid());
            std::fs::remove_dir_all(runtime).ok();
        }
        Command::new("userdel")
            .args(["--remove", USER])
            .output()
            .ok();
    }
}

fn must(command: &mut Command) {
    let output = command.output().expect("the command is installed");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[test]
fn ordinary_user_builds_an_image_and_runs_a_command_in_it() {
    if !is_root() {
        return skip(
            "ordinary_user_builds_an_image_and_runs_a_command_in_it",
            "cannot create a user",
        );
    }
    let user = User::create();

    let ran = user.run("bin/banger vm run --name mine -d --image debian-minimal && bin/banger vm exec mine -- id -u");

    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    assert!(text(&ran.stdout).trim().ends_with('0'), "{ran:?}");
    let view = user.run("bin/banger vm show mine --json");
    let view: serde_json::Value = serde_json::from_slice(&view.stdout).unwrap();
    assert_eq!(view["net"], "user", "{view}");
    let deleted = user.run("bin/banger vm delete mine");
    assert!(deleted.status.success(), "{}", text(&deleted.stderr));
    let left = user.run("bin/banger vm list --quiet");
    assert_eq!(text(&left.stdout).trim(), "", "{left:?}");
}
