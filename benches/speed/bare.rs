//! The same VMM with the same kernel, initrd, arguments and disks, started by hand: no
//! daemon, no client, nobody to answer the guest.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use banger::proto::agent::{
    AGENT_PORT, AGENT_VERSION, AgentCall, AgentRequest, CONTROL_PORT, Exec,
};
use banger::proto::frame::{Decoder, Kind, encode};

use crate::IMAGE;
use crate::support::Banger;
use crate::support::events::wait_for_folder;

/// What it takes to start that VMM again and again.
pub struct Bare {
    folder: tempfile::TempDir,
    back_end: Vec<String>,
    vmm: Vec<String>,
}

impl Bare {
    /// Boots a VM, notes the command lines of its processes and copies its disks.
    pub fn of(banger: &Banger) -> Bare {
        let folder = tempfile::Builder::new().prefix("bb-").tempdir_in("/tmp");
        let folder = folder.expect("/tmp takes a folder");
        banger.ok(&["vm", "run", "-d", "--name", "bare", "--image", IMAGE]);
        let only_entry = |folder: PathBuf| {
            let mut entries = fs::read_dir(folder).expect("the VM's folder is there");
            entries
                .next()
                .expect("one VM exists")
                .expect("it can be read")
                .path()
        };
        let run = only_entry(banger.runtime().join("vms"));
        let disks = only_entry(banger.state().join("vms"));
        let moved = |word: &str| {
            let here = folder.path().display().to_string();
            let word = word.replace(&run.display().to_string(), &here);
            word.replace(&disks.display().to_string(), &here)
        };
        let id = run.file_name().expect("a VM's folder has its id");
        let id = format!("{}/", id.to_string_lossy());
        let lines: Vec<Vec<String>> = banger.processes().into_iter().map(command_line).collect();
        let of = |program: &str| -> Vec<String> {
            let line = lines.iter().find(|line| line[0].contains(program));
            let line = line.unwrap_or_else(|| panic!("no {program} among {lines:?}"));
            // The daemon's processes work in the folder above the VM's.
            let here = format!("{}/", folder.path().display());
            line.iter()
                .map(|word| moved(word).replace(&id, &here))
                .collect()
        };
        let bare = Bare {
            back_end: of("vhost-device-vsock"),
            vmm: unattended(of("qemu-system"), &|name| {
                given(banger, folder.path(), name)
            }),
            folder,
        };
        banger.ok(&["vm", "stop", "bare"]);
        for name in ["upper.ext4", "work.ext4"] {
            let copy = Command::new("cp")
                .arg("--sparse=always")
                .arg(disks.join(name))
                .arg(bare.folder.path())
                .status();
            assert!(copy.is_ok_and(|status| status.success()), "copy {name}");
        }
        banger.ok(&["vm", "delete", "bare"]);
        bare
    }

    /// From the first process to the moment in which `/init` has the vsock up and calls.
    pub fn time_to_call(&self) -> Duration {
        let folder = self.folder.path();
        let control = folder.join(format!("vsock_{CONTROL_PORT}"));
        for name in ["vsock", "vhost.sock"] {
            fs::remove_file(folder.join(name)).ok();
        }
        fs::remove_file(&control).ok();
        let listener = UnixListener::bind(&control).expect("a socket of ours can be bound");
        let start = Instant::now();
        let mut back_end = spawn(&self.back_end);
        wait_for_folder(folder, |folder| folder.join("vhost.sock").exists());
        let mut vmm = spawn(&self.vmm);
        let called = listener.accept();
        let took = start.elapsed();
        for child in [&mut vmm, &mut back_end] {
            child.kill().expect("a child of ours can be killed");
            child.wait().expect("a child of ours can be reaped");
        }
        called.expect("the guest calls");
        took
    }
}

/// What `/init` does before it calls, which is loading modules: in a boot of its own, by its
/// own clock.
pub fn time_in_init(banger: &Banger) -> Duration {
    banger.boot("timed");
    let view = banger.json(&["vm", "show", "timed"]);
    banger.ok(&["vm", "delete", "timed"]);
    phase(&view, "modules").saturating_sub(phase(&view, "kernel"))
}

/// When a phase of the last boot ended, since the guest's kernel started.
fn phase(view: &serde_json::Value, name: &str) -> Duration {
    let phases = view["boot_phases"]
        .as_array()
        .expect("a started VM has phases");
    let phase = phases.iter().find(|phase| phase[0] == name);
    let ended = phase.and_then(|phase| phase[1].as_u64());
    Duration::from_millis(ended.unwrap_or_else(|| panic!("no phase {name} in {phases:?}")))
}

fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.trim_end_matches('\0')
        .split('\0')
        .map(str::to_owned)
        .collect()
}

/// What the daemon opens for a VMM, by the name of the disk or the option.
fn given(banger: &Banger, folder: &Path, name: &str) -> String {
    let newest = |below: PathBuf, file: Option<&str>| {
        let entries = fs::read_dir(below).expect("it has been used").flatten();
        let files = entries.map(|entry| match file {
            Some(file) => entry.path().join(file),
            None => entry.path(),
        });
        let mut files: Vec<PathBuf> = files.filter(|file| file.exists()).collect();
        files.sort_by_key(|file| fs::metadata(file).and_then(|found| found.modified()).ok());
        files.pop().expect("the store and the cache have it")
    };
    let path = match name {
        "base" => newest(banger.state().join("images"), Some("rootfs.ext4")),
        "modules" => newest(banger.state().join("kernels"), Some("modules.ext4")),
        "-kernel" => newest(banger.state().join("kernels"), Some("vmlinux")),
        "-initrd" => newest(crate::support::seed::shared_cache().join("initrd"), None),
        disk => folder.join(format!("{disk}.ext4")),
    };
    path.display().to_string()
}

/// Without what only a daemon could serve: the monitors that it passes, the files
/// that it opens, the tap that it makes, and the order to wait for it.
fn unattended(words: Vec<String>, given: &dyn Fn(&str) -> String) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-S" => {}
            "-mon" | "-add-fd" => drop(words.next()),
            "-kernel" | "-initrd" => {
                words.next();
                let path = given(&word);
                kept.extend([word, path]);
            }
            "-drive" => {
                let value = words.next().expect("an option has a value");
                let disk = value.split(',').find_map(|part| part.strip_prefix("id="));
                let path = given(disk.expect("a disk has a name"));
                let (options, _) = value.split_once("file=/dev/fdset").expect("given open");
                kept.extend([word, format!("{options}file={path}")]);
            }
            "-chardev" | "-netdev" => {
                let value = words.next().expect("an option has a value");
                match value.as_str() {
                    value if is_monitor(value) => {}
                    value if value.starts_with("tap,id=net") => {
                        kept.extend([word, "user,id=net".to_owned()]);
                    }
                    _ => kept.extend([word, value]),
                }
            }
            _ => kept.push(word),
        }
    }
    kept
}

/// Whether a character device is one of QEMU's two monitors.
fn is_monitor(device: &str) -> bool {
    let mut ids = ["control", "halts"].iter();
    ids.any(|id| device.starts_with(&format!("socket,id={id},")))
}

fn spawn(words: &[String]) -> Child {
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
        .spawn()
        .expect("the program that ran a moment ago starts")
}

/// The host's side of the vsock of the one VM that runs.
pub fn agent_socket(banger: &Banger) -> PathBuf {
    let mut runs = fs::read_dir(banger.runtime().join("vms")).expect("a VM runs");
    let run = runs
        .next()
        .expect("a VM runs")
        .expect("its folder can be read");
    run.path().join("vsock")
}

/// `true` in the guest over a stream of our own.
pub fn exec_true(socket: &Path) {
    let mut stream = UnixStream::connect(socket).expect("the back end listens");
    // In one write: the back end takes what it reads first for the whole line.
    let connect = format!("CONNECT {AGENT_PORT}\n");
    stream
        .write_all(connect.as_bytes())
        .expect("the back end reads");
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the back end answers");
        answer.push(byte[0]);
    }
    let call = AgentCall {
        version: AGENT_VERSION,
        host_time_ns: now_ns(),
        request: AgentRequest::Exec(Exec {
            argv: vec!["true".to_owned()],
            env: Vec::new(),
            workdir: None,
            terminal: None,
        }),
    };
    let mut bytes = Vec::new();
    let json = serde_json::to_vec(&call).expect("a call of ours is JSON");
    encode(Kind::Request, &json, &mut bytes);
    encode(Kind::InputEnd, &[], &mut bytes);
    stream.write_all(&bytes).expect("the agent reads");
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).expect("the agent answers");
        assert_ne!(length, 0, "the agent closed before the last frame");
        decoder.push(&buffer[..length]);
        while let Some(frame) = decoder.next_frame().expect("frames of ours") {
            if frame.kind == Kind::Exit {
                return;
            }
        }
    }
}

fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(now.expect("after 1970").as_nanos()).expect("before 2554")
}
