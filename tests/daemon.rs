//! The daemon that cannot or must not start: a store that it does not understand, a
//! configuration that cannot be read, another daemon in its place. What it says, what
//! `banger doctor` makes of it, and that nothing is changed.

mod support;

use std::path::Path;

use serde_json::Value;
use support::disk::SmallDisk;
use support::output::{ends_quietly_unread, fails_unwritable};
use support::{Banger, is_root, skip};

/// Begins a store as the program makes it, and ends its daemon.
fn store_of(banger: &Banger) -> std::path::PathBuf {
    banger.ok(&["vm", "list"]);
    banger.ok(&["daemon", "stop"]);
    banger.state().join("store.redb")
}

/// Makes a store one of this version, as a later program would leave it.
fn set_version(store: &Path, version: u64) {
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    let database = redb::Database::open(store).expect("a store of ours can be opened");
    let transaction = database.begin_write().expect("a store takes a transaction");
    {
        let mut table = transaction.open_table(meta).expect("a store has a version");
        let before = table
            .insert("schema", version)
            .expect("a version can be set");
        assert_eq!(before.map(|version| version.value()), Some(1));
    }
    transaction.commit().expect("a store takes a version");
}

/// Runs doctor, which must fail; its rows.
#[track_caller]
fn failing_doctor(banger: &Banger) -> Vec<Value> {
    let ran = banger.run(&["doctor", "--json"]);
    assert_eq!(ran.code(), Some(1), "{ran:?}");
    let text = banger.run(&["doctor"]);
    assert_eq!(text.code(), Some(1), "{text:?}");
    assert!(text.text().contains("FAIL  bangerd"), "{text:?}");
    serde_json::from_str(&ran.text()).expect("doctor prints JSON")
}

#[track_caller]
fn row<'a>(rows: &'a [Value], name: &str) -> &'a Value {
    let mut all = rows.iter();
    all.find(|row| row["name"] == name)
        .unwrap_or_else(|| panic!("no row {name} in {rows:?}"))
}

/// Every row about this machine is there, though no daemon is.
#[track_caller]
fn assert_machine_rows(rows: &[Value]) {
    for name in [
        "vmm",
        "kvm",
        "arch",
        "kernel",
        "machine",
        "qemu",
        "vhost_device_vsock",
        "firecracker",
        "mke2fs",
        "mmdebstrap",
        "apt",
        "tun",
        "nft",
        "taps",
        "cgroup",
        "disk",
        "git",
    ] {
        row(rows, name);
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused_with_both_versions_and_left_as_it_is() {
    let banger = Banger::new();
    let store = store_of(&banger);
    set_version(&store, 7);
    let before = std::fs::read(&store).unwrap();
    let ran = banger.run(&["vm", "list"]);
    assert_eq!(ran.code(), Some(74), "{ran:?}");
    let said = ran.error();
    assert!(
        said.contains("version 7") && said.contains("knows 1"),
        "{said}"
    );
    assert!(said.contains("hint: Run the newer banger"), "{said}");
    let by_hand = banger.run(&["role", "bangerd"]);
    assert_eq!(by_hand.code(), Some(74), "{by_hand:?}");
    assert!(by_hand.error().contains("version 7"), "{by_hand:?}");
    let rows = failing_doctor(&banger);
    let bangerd = row(&rows, "bangerd");
    assert_eq!(bangerd["verdict"], "FAIL");
    let detail = bangerd["detail"].as_str().unwrap();
    assert!(
        detail.contains("version 7") && detail.contains("knows 1"),
        "{detail}"
    );
    assert!(
        std::fs::read(&store).unwrap() == before,
        "the store was changed"
    );
    assert!(banger.daemon().is_none());
}

#[test]
fn doctor_tells_of_the_machine_though_the_store_is_damaged() {
    let banger = Banger::new();
    std::fs::write(banger.state().join("store.redb"), "no store at all").unwrap();
    let rows = failing_doctor(&banger);
    assert_machine_rows(&rows);
    let bangerd = row(&rows, "bangerd");
    assert!(bangerd["detail"].as_str().unwrap().contains("damaged"));
    assert!(
        bangerd["hint"]
            .as_str()
            .unwrap()
            .contains("store.redb.damaged")
    );
    assert_eq!(row(&rows, "configuration")["verdict"], "PASS");
}

#[test]
fn doctor_tells_of_the_machine_though_the_configuration_is_wrong() {
    let banger = Banger::new();
    std::fs::write(banger.config(), "\nnonsense = 1\n").unwrap();
    let rows = failing_doctor(&banger);
    assert_machine_rows(&rows);
    for name in ["configuration", "bangerd"] {
        assert_eq!(row(&rows, name)["verdict"], "FAIL");
        assert!(
            row(&rows, name)["detail"]
                .as_str()
                .unwrap()
                .contains("line 2")
        );
    }
}

#[test]
fn doctor_tells_of_the_machine_though_the_runtime_directory_cannot_be() {
    let banger = Banger::new();
    let mut command = banger.command(&["doctor", "--json"]);
    command.env("BANGER_RUNTIME_DIR", format!("/tmp/{}", "x".repeat(120)));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_machine_rows(&rows);
    let hint = row(&rows, "bangerd")["hint"].as_str().unwrap().to_owned();
    assert!(hint.contains("BANGER_RUNTIME_DIR"), "{hint}");
}

#[test]
fn a_daemon_that_cannot_read_its_configuration_says_so_when_started_by_hand() {
    let banger = Banger::new();
    std::fs::write(banger.config(), "\nnonsense = 1\n").unwrap();
    let ran = banger.run(&["role", "bangerd"]);
    assert_eq!(ran.code(), Some(2), "{ran:?}");
    assert!(ran.error().contains("line 2"), "{ran:?}");
}

/// Symptom: out of descriptors, a daemon took VMs that it could not look for as ended.
#[test]
fn a_daemon_raises_the_few_open_files_that_a_login_allows() {
    let banger = Banger::new();
    let list = banger.command(&["vm", "list"]);
    let mut command = banger.command_of("sh");
    command.args(["-c", "ulimit -Sn 64 && exec \"$@\"", "sh"]);
    command.arg(list.get_program()).args(list.get_args());
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let daemon = banger.daemon().expect("a daemon runs");
    let limits = std::fs::read_to_string(format!("/proc/{daemon}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut numbers = line.unwrap().split_whitespace().skip(3);
    let (soft, hard) = (numbers.next().unwrap(), numbers.next().unwrap());
    let most = hard.parse().unwrap_or(u64::MAX).min(1 << 16);
    assert_eq!(soft, most.to_string(), "{limits}");
}

#[test]
fn a_second_daemon_says_that_there_is_one_and_ends_while_the_first_goes_on() {
    let banger = Banger::new();
    banger.ok(&["vm", "list"]);
    let first = banger.json(&["daemon", "status"])["pid"].clone();
    let second = banger.run(&["role", "bangerd"]);
    assert_eq!(second.code(), Some(5), "{second:?}");
    let said = second.error();
    assert!(said.contains("another bangerd has it open"), "{said}");
    assert!(said.contains("banger daemon stop"), "{said}");
    let socket = banger.runtime().join("bangerd.sock");
    let socket = format!("process {first}, which listens on {}", socket.display());
    assert!(said.contains(&socket), "{said}");
    assert_eq!(banger.json(&["daemon", "status"])["pid"], first);
}

#[test]
fn a_store_that_a_daemon_with_other_sockets_has_is_refused_with_the_way_to_that_one() {
    let banger = Banger::new();
    banger.ok(&["vm", "list"]);
    let first = banger.json(&["daemon", "status"])["pid"].clone();
    let elsewhere = banger.home().join("elsewhere");
    let mut command = banger.command(&["vm", "list"]);
    command.env("BANGER_RUNTIME_DIR", &elsewhere);
    let second = command.output().unwrap();
    assert_eq!(second.status.code(), Some(5), "{second:?}");
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains(&format!("process {first}, ")), "{said}");
    let runtime = banger.runtime().display();
    let way_out = format!("`BANGER_RUNTIME_DIR={runtime} banger daemon stop`");
    assert!(said.contains(&way_out), "{said}");
}

#[test]
fn a_directory_that_cannot_be_used_is_named_with_the_cause_and_what_to_type() {
    let banger = Banger::new();
    let file = banger.home().join("file");
    std::fs::write(&file, "").unwrap();
    for (variable, name) in [
        ("BANGER_STATE_DIR", "state directory"),
        ("BANGER_CACHE_DIR", "cache directory"),
    ] {
        let below = file.join("below");
        let mut command = banger.command(&["vm", "list"]);
        let ran = command.env(variable, &below).output().unwrap();
        assert_eq!(ran.status.code(), Some(3), "{ran:?}");
        let said = String::from_utf8(ran.stderr).unwrap();
        let what = format!("make {name} {}", below.display());
        assert!(said.contains(&what), "{said}");
        assert!(said.contains("Not a directory"), "{said}");
        assert!(said.contains(&format!("`mv {}", file.display())), "{said}");
        assert!(said.contains(variable), "{said}");
    }
    let mut set = banger.command(&["config", "set", "vm_defaults.vcpu", "2"]);
    let ran = set.env("BANGER_CONFIG", file.join("c.toml")).output();
    let said = String::from_utf8(ran.unwrap().stderr).unwrap();
    let folder = format!("`ls -ld {}`", file.display());
    assert!(said.contains(&folder), "{said}");
    assert!(said.contains("BANGER_CONFIG"), "{said}");
}

#[test]
fn a_directory_on_a_read_only_file_system_is_named_with_what_to_type() {
    let name = "a_directory_on_a_read_only_file_system_is_named_with_what_to_type";
    if !is_root() {
        return skip(name, "needs root to mount one");
    }
    let disk = SmallDisk::mount(8);
    disk.remount("ro");
    let banger = Banger::with_state(&disk.path().join("state"));
    let ran = banger.run(&["vm", "list"]);
    assert_eq!(ran.code(), Some(3), "{ran:?}");
    let said = ran.error();
    let shown = disk.path().display();
    assert!(
        said.contains(&format!("state directory {shown}/state")),
        "{said}"
    );
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(said.contains(&format!("`findmnt -T {shown}`")), "{said}");
    assert!(said.contains("BANGER_STATE_DIR"), "{said}");
}

#[test]
fn a_daemon_on_the_network_of_another_says_which_settings_tell_them_apart() {
    let name = "a_daemon_on_the_network_of_another_says_which_settings_tell_them_apart";
    let (one, other) = (Banger::new(), Banger::new());
    let network = "[network]\nbridge = \"bgr-twice\"\nsubnet = \"10.213.77.0/24\"\n";
    for banger in [&one, &other] {
        std::fs::write(banger.config(), network).unwrap();
    }
    let rows = one.run(&["doctor", "--json"]).text();
    let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
    if !is_root() || row(&rows, "taps")["verdict"] != "PASS" {
        return skip(name, "this user may not make taps");
    }
    other.ok(&["vm", "list"]);
    let log = std::fs::read_to_string(other.state().join("bangerd.log")).unwrap();
    let line = log.lines().find(|line| line.contains("no resolver"));
    let line = line.unwrap_or_else(|| panic!("nothing about the resolver in {log}"));
    assert!(line.contains("10.213.77.1"), "{line}");
    assert!(
        line.contains("network.subnet") && line.contains("network.bridge"),
        "{line}"
    );
}

/// Symptom: the log only grew, and held whatever a name of a VM did to a terminal.
#[test]
fn a_full_log_is_set_aside_and_the_next_has_no_word_that_steers_a_terminal() {
    let banger = Banger::new();
    let (log, older) = ("bangerd.log", "bangerd.log.1");
    let [log, older] = [log, older].map(|name| banger.state().join(name));
    std::fs::create_dir_all(banger.state()).unwrap();
    std::fs::write(&log, "x".repeat(20 << 20)).unwrap();
    banger.run(&["vm", "show", "x\u{1b}[31m\u{202e}y"]);
    assert_eq!(std::fs::metadata(&older).unwrap().len(), 2 << 20);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("listening"), "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    // The daemon itself is in the new one, with both of its outputs.
    let status = banger.run(&["daemon", "status", "--json"]).text();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["log"], log.display().to_string());
    for output in [1, 2] {
        let output = format!("/proc/{}/fd/{output}", status["pid"]);
        assert_eq!(std::fs::read_link(output).unwrap(), log);
    }
}

/// Symptom: under a service that starts commands, the log had no time any more.
#[test]
fn a_journal_that_the_daemon_is_not_connected_to_leaves_its_log_as_it_is() {
    let banger = Banger::new();
    let mut command = banger.command(&["vm", "list"]);
    let ran = command.env("JOURNAL_STREAM", "8:12345").output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let log = std::fs::read_to_string(banger.state().join("bangerd.log")).unwrap();
    assert!(log.starts_with("20"), "{log}");
}

#[test]
fn output_that_cannot_be_written_is_a_failure_and_an_unread_one_a_quiet_end() {
    let banger = Banger::new();
    banger.ok(&["vm", "list"]);
    for words in [
        "vm run --help",
        "version",
        "vm list --json",
        "image list",
        "image list --json",
        "kernel list",
        "kernel list --json",
        "config show",
        "config get vm_defaults.nat",
        "daemon status",
        "store check",
        "store export --json",
    ] {
        fails_unwritable(&banger, words, 1);
        ends_quietly_unread(&banger, words);
    }
}

/// Who is told to install something does so and tries again.
#[test]
fn a_program_that_is_installed_while_the_daemon_runs_is_found() {
    let banger = Banger::new();
    let later = ["qemu", "vhost_device_vsock"].map(|key| (key, banger.home().join(key)));
    let mut config = String::from("[programs]\nfirecracker = \"/nonexistent\"\n");
    for (key, path) in &later {
        config += &format!("{key} = {path:?}\n");
    }
    std::fs::write(banger.config(), config).expect("the room takes a file");
    banger.ok(&["vm", "list"]);
    let daemon = banger.daemon();
    assert_eq!(row(&doctor(&banger), "vmm")["verdict"], "FAIL");
    for (_, path) in &later {
        std::os::unix::fs::symlink("/bin/true", path).expect("the home takes a link");
    }
    let rows = doctor(&banger);
    assert_ne!(row(&rows, "vmm")["verdict"], "FAIL", "{rows:?}");
    assert_eq!(banger.daemon(), daemon, "the daemon is the same");
}

fn doctor(banger: &Banger) -> Vec<Value> {
    let ran = banger.run(&["doctor", "--json"]);
    serde_json::from_str(&ran.text()).expect("doctor prints JSON")
}
