//! The command line as a person meets it: help, refusals, statuses, settings. Nothing
//! here may start a daemon: what is wrong on this side is refused on this side.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use support::Banger;
use support::terminal::Terminal;

/// Runs a command that must be refused with this status; what it said.
#[track_caller]
fn refused(banger: &Banger, arguments: &[&str], status: i32) -> String {
    let ran = banger.run(arguments);
    let words = arguments.join(" ");
    assert_eq!(ran.code(), Some(status), "banger {words}: {ran:?}");
    assert_eq!(ran.text(), "", "banger {words}");
    let said = ran.error();
    assert!(said.starts_with("banger: "), "banger {words}: {said}");
    assert!(said.contains("hint: "), "banger {words}: {said}");
    assert!(banger.daemon().is_none(), "banger {words} started a daemon");
    said
}

fn git(folder: &Path, arguments: &[&str]) {
    let status = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.org"])
        .args(arguments)
        .status();
    assert!(status.expect("git is installed").success());
}

/// A repository with one commit in the home directory.
fn repository(banger: &Banger) -> String {
    let folder = banger.home().join("repository");
    std::fs::create_dir(&folder).expect("a home takes a folder");
    git(&folder, &["init", "--quiet", "--initial-branch=main"]);
    for file in ["tracked", ".gitignore"] {
        std::fs::write(folder.join(file), "*.ignored\n").expect("a folder takes a file");
    }
    git(&folder, &["add", "--all"]);
    git(&folder, &["commit", "--quiet", "--message=one"]);
    std::fs::write(folder.join("untracked"), "x").expect("a folder takes a file");
    std::fs::write(folder.join("x.ignored"), "x").expect("a folder takes a file");
    folder.to_str().expect("a path of ours is text").to_owned()
}

#[test]
fn help_of_every_command_goes_to_standard_output() {
    let banger = Banger::new();
    let commands = [
        "",
        "vm",
        "vm run",
        "vm create",
        "vm exec",
        "vm shell",
        "vm list",
        "vm show",
        "vm logs",
        "vm start",
        "vm stop",
        "vm restart",
        "vm kill",
        "vm delete",
        "vm reset",
        "vm prune",
        "vm workspace",
        "vm workspace export",
        "image",
        "image list",
        "image show",
        "image pull",
        "image delete",
        "kernel",
        "kernel list",
        "kernel show",
        "kernel pull",
        "kernel delete",
        "config",
        "config show",
        "config get",
        "config set",
        "config unset",
        "doctor",
        "daemon",
        "daemon status",
        "daemon stop",
        "version",
    ];
    for command in commands {
        let mut words: Vec<&str> = command.split_whitespace().collect();
        words.push("--help");
        let ran = banger.run(&words);
        assert_eq!(ran.code(), Some(0), "{command}: {ran:?}");
        assert_eq!(ran.error(), "", "{command}");
        let usage = format!("Usage: banger {command}");
        assert!(
            ran.text().contains(usage.trim_end()),
            "{command}: {}",
            ran.text()
        );
        assert!(ran.text().contains("Examples:"), "{command}");
    }
}

#[test]
fn help_is_found_wherever_it_is_asked_for() {
    let banger = Banger::new();
    let expected = banger.ok(&["vm", "exec", "--help"]);
    for words in [
        &["--help", "vm", "exec"][..],
        &["help", "vm", "exec"],
        &["vm", "exec", "dev", "-h"],
        &["vm", "exec", "--env", "A=1", "-h", "dev", "--", "ls"],
    ] {
        assert_eq!(banger.ok(words), expected, "{words:?}");
    }
}

#[test]
fn usage_errors_are_status_two_and_name_the_nearest() {
    let banger = Banger::new();
    let cases: &[(&[&str], &str)] = &[
        (&[], "needs a command"),
        (&["vm"], "needs a command"),
        (&["vn", "run"], "`banger vm`"),
        (&["vm", "rnu"], "banger vm run"),
        (&["vm", "run", "--memroy", "1G"], "--memory"),
        (&["vm", "list", "--jsno"], "--json"),
        (&["vm", "show"], "needs NAME"),
        (&["vm", "list", "extra"], "unexpected argument"),
        (&["vm", "list", "--", "ls"], "takes no command"),
        (&["vm", "stop"], "needs NAME"),
        (&["role", "nobody"], "no command"),
    ];
    for (words, part) in cases {
        let said = refused(&banger, words, 2);
        assert!(said.contains(part), "{words:?}: {said}");
    }
}

#[test]
fn impossible_values_are_refused_before_anything_is_made() {
    let banger = Banger::new();
    let cases: &[(&[&str], &str)] = &[
        (&["--name", "Big_Name"], "only a-z, 0-9 and '-'"),
        (&["--name", ""], "1 to 63"),
        (&["--name", "-edge"], "begins or ends"),
        (&["--vcpu", "0"], "1 to 32"),
        (&["--vcpu=-1"], "1 to 32"),
        (&["--vcpu", "4000"], "1 to 32"),
        (&["--memory", "0"], "96M to"),
        (&["--memory=-5G"], "not a size"),
        (&["--memory", "9999T"], "possible"),
        (&["--disk-size", "1K"], "possible"),
        (&["--root-size", "lots"], "not a size"),
        (&["--net", "bridge"], "auto, nat, user, none"),
        (&["--vmm", "vmware"], "auto, firecracker, qemu"),
        (&["--init", "upstart"], "auto, systemd, agent"),
        (&["-p", "0:80"], "1 to 65535"),
        (&["--env", "=x"], "KEY=VALUE"),
        (&["--workdir", "relative"], "absolute"),
        (&["--image", "../etc"], "image name"),
    ];
    for (words, part) in cases {
        let said = refused(&banger, &[&["vm", "run"], *words].concat(), 2);
        assert!(said.contains(part), "{words:?}: {said}");
    }
}

#[test]
fn impossible_sizes_for_a_vm_that_is_there_are_refused_before_it_is_looked_for() {
    let banger = Banger::new();
    let cases: &[(&[&str], &str)] = &[
        (&["--memory-target", "0"], "96M to"),
        (&["--memory-target", "64M"], "96M to"),
        (&["--memory-target=-1G"], "not a size"),
        (&["--memory-target", "some"], "not a size"),
        (&["--memory-target"], "--memory-target"),
        (&["--memory-targt", "1G"], "--memory-target"),
        (&["--disk-size", "0"], "possible"),
    ];
    for (words, part) in cases {
        let said = refused(&banger, &[&["vm", "set", "dev"], *words].concat(), 2);
        assert!(said.contains(part), "{words:?}: {said}");
    }
}

#[test]
fn options_that_exclude_each_other_are_refused_with_two() {
    let banger = Banger::new();
    let cases: &[&[&str]] = &[
        &["-d", "--rm"],
        &["-d", "--", "ls"],
        &["--dry-run"],
        &["--include-untracked"],
        &["-t", "-T"],
        &["--nat", "--net", "none"],
        &["--net", "none", "-p", "80"],
        &["-p", "80:1", "-p", "80:2"],
    ];
    for words in cases {
        refused(&banger, &[&["vm", "run"], *words].concat(), 2);
    }
    refused(&banger, &["vm", "exec", "dev", "-t", "-T", "--", "ls"], 2);
    refused(&banger, &["vm", "exec", "dev"], 2);
    refused(&banger, &["vm", "shell", "dev", "-t", "-T"], 2);
    refused(&banger, &["vm", "shell", "dev", "-it", "-T"], 2);
}

#[test]
fn the_switches_of_an_interactive_session_are_taken_as_other_tools_take_them() {
    let banger = Banger::new();
    for words in [
        &["vm", "exec", "-it", "dev", "sh"][..],
        &["vm", "exec", "-i", "dev", "--", "sh"],
        &["vm", "shell", "-ti", "dev"],
    ] {
        // Understood: there can only be no daemon.
        let mut command = banger.command(words);
        command.env("BANGER_RUNTIME_DIR", "/dev/null/x");
        let status = command.output().unwrap().status.code();
        assert_eq!(status, Some(125), "{words:?}");
    }
    for command in ["run", "exec", "shell"] {
        let help = banger.ok(&["vm", command, "--help"]);
        assert!(help.contains("-i, --interactive"), "{help}");
        assert!(help.contains("`-it` means what"), "{help}");
    }
}

#[test]
fn a_session_that_has_no_daemon_is_our_own_failure_and_a_wrong_place_for_it_is_usage() {
    let banger = Banger::new();
    let status = |arguments: &[&str], runtime: &str| {
        let mut command = banger.command(arguments);
        command.env("BANGER_RUNTIME_DIR", runtime);
        command.output().unwrap().status.code()
    };
    let long = format!("/tmp/{}", "x".repeat(120));
    for words in [
        &["vm", "run", "--", "true"][..],
        &["vm", "exec", "dev", "--", "true"],
        &["vm", "shell", "dev"],
    ] {
        assert_eq!(status(words, &long), Some(2), "{words:?}");
        assert_eq!(status(words, "/dev/null/x"), Some(125), "{words:?}");
    }
}

#[test]
fn a_path_that_is_no_repository_is_refused_before_a_daemon_is_started() {
    let banger = Banger::new();
    let home = banger.home();
    let bare = home.join("bare");
    std::fs::create_dir(&bare).unwrap();
    git(&bare, &["init", "--quiet", "--bare"]);
    let plain = home.join("plain");
    std::fs::create_dir(&plain).unwrap();
    for (path, why) in [
        ("missing", "no such directory"),
        ("bare", "bare"),
        ("plain", "not a git repository"),
    ] {
        let said = refused(&banger, &["vm", "run", "--rm", path, "--", "true"], 125);
        assert!(said.contains(why), "{path}: {said}");
    }
}

#[test]
fn dry_run_lists_tracked_files_and_counts_the_rest() {
    let banger = Banger::new();
    let repository = repository(&banger);
    let ran = banger.run(&["vm", "run", "--dry-run", &repository]);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
    assert_eq!(ran.text(), ".gitignore\ntracked\n");
    assert!(
        ran.error().contains("1 untracked file left out"),
        "{}",
        ran.error()
    );
    assert!(ran.error().contains("1 ignored"), "{}", ran.error());
    let all = banger.ok(&["vm", "run", "--dry-run", "--include-untracked", &repository]);
    assert_eq!(all, ".gitignore\ntracked\nuntracked");
    assert!(banger.daemon().is_none());
}

#[test]
fn a_surrounding_git_environment_does_not_mislead() {
    let banger = Banger::new();
    let repository = repository(&banger);
    let mut command = banger.command(&["vm", "run", "--dry-run", &repository]);
    command
        .env("GIT_DIR", "/nonexistent")
        .env("GIT_INDEX_FILE", "/nonexistent");
    let output = command.output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        ".gitignore\ntracked\n"
    );
}

#[test]
fn settings_are_shown_changed_and_kept() {
    let banger = Banger::new();
    std::fs::write(banger.config(), "# mine\n[vm_defaults]\nvcpu = 1 # few\n").unwrap();
    assert_eq!(banger.ok(&["config", "get", "vm_defaults.vcpu"]), "1");
    banger.ok(&["config", "set", "vm_defaults.vcpu", "3"]);
    banger.ok(&["config", "set", "default_image", "debian-minimal"]);
    let text = std::fs::read_to_string(banger.config()).unwrap();
    assert!(
        text.contains("# mine") && text.contains("vcpu = 3 # few"),
        "{text}"
    );
    let all = banger.json(&["config", "show"]);
    let value = |key: &str| {
        let all = all.as_array().unwrap();
        all.iter().find(|view| view["key"] == key).unwrap().clone()
    };
    assert_eq!(value("vm_defaults.vcpu")["value"], "3");
    assert_eq!(value("default_image")["value"], "debian-minimal");
    assert_eq!(value("network.subnet")["from"], "default");
    assert_eq!(value("vm_defaults.memory")["from"], "machine");
}

#[test]
fn a_wrong_configuration_is_refused_with_file_line_and_nearest_key() {
    let banger = Banger::new();
    std::fs::write(banger.config(), "\n[vm_defaults]\nmemroy = \"1G\"\n").unwrap();
    let said = refused(&banger, &["config", "show"], 2);
    assert!(said.contains("config.toml, line 3"), "{said}");
    assert!(said.contains("vm_defaults.memory"), "{said}");
    let said = refused(&banger, &["vm", "create"], 2);
    assert!(said.contains("line 3"), "{said}");
    refused(&banger, &["vm", "run", "--rm", "--", "true"], 2);
    refused(&banger, &["vm", "exec", "dev", "--", "true"], 2);
    refused(&banger, &["vm", "shell", "dev"], 2);
}

#[test]
fn a_setting_that_cannot_be_is_not_written() {
    let banger = Banger::new();
    refused(&banger, &["config", "set", "vm_defaults.vcpu", "0"], 2);
    refused(&banger, &["config", "set", "vm_defaults.vpcu", "2"], 2);
    refused(&banger, &["config", "get", "nonsense"], 2);
    refused(&banger, &["config", "unset", "nonsense"], 2);
    assert!(!banger.config().exists());
}

#[test]
fn a_runtime_directory_too_long_for_sockets_is_refused_by_name() {
    let banger = Banger::new();
    let mut command = banger.command(&["vm", "list"]);
    command.env("BANGER_RUNTIME_DIR", format!("/tmp/{}", "x".repeat(120)));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("BANGER_RUNTIME_DIR"), "{said}");
}

#[test]
fn a_runtime_directory_that_others_may_write_to_is_refused() {
    let banger = Banger::new();
    let folder = banger.home().join("open");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = banger.command(&["vm", "list"]);
    command.env("BANGER_RUNTIME_DIR", format!("/proc/self/cwd/{}", "open"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}

#[test]
fn without_a_daemon_its_status_is_three_and_none_is_started() {
    let banger = Banger::new();
    let said = refused(&banger, &["daemon", "status"], 3);
    assert!(said.contains("bangerd.sock"), "{said}");
    let ran = banger.run(&["daemon", "stop"]);
    assert_eq!(ran.code(), Some(0), "{ran:?}");
}

#[test]
fn version_is_one_line_or_several() {
    let banger = Banger::new();
    let line = banger.ok(&["--version"]);
    let begins = format!("banger {}", env!("CARGO_PKG_VERSION"));
    assert!(line.starts_with(&begins) && !line.contains('\n'), "{line}");
    assert!(banger.ok(&["version"]).lines().count() > 1);
    assert_eq!(
        banger.json(&["version"])["version"],
        env!("CARGO_PKG_VERSION")
    );
}

#[test]
fn a_reader_that_goes_early_is_a_quiet_end() {
    let banger = Banger::new();
    let mut child = banger
        .command(&["vm", "run", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_terminal_gets_colour_and_a_table_that_fits_unless_no_color_is_set() {
    let banger = Banger::new();
    let shown = Terminal::start(&banger, &["config", "show"], 40, 20);
    shown.wait_for("\x1b[2mKEY\x1b[0m");
    shown.wait_for("…");
    assert_eq!(shown.finish(), Some(0));
    let no_colour = [("NO_COLOR", "1")];
    let shown = Terminal::start_with(&banger, &["config", "show"], 200, 20, &no_colour);
    shown.wait_for("KEY  ");
    assert_eq!(shown.finish(), Some(0));
    assert!(!banger.ok(&["config", "show"]).contains('\x1b'));
}
