//! What exists on this host: taken before and after, so that a test sees a leak.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Banger;

/// Every object of a kind that banger makes, by name.
#[derive(Debug, PartialEq, Eq)]
pub struct Census {
    objects: BTreeSet<String>,
}

impl Census {
    /// Counts what is there now: links, their settings that we change, loop and
    /// device-mapper devices, mounts, nftables elements, control groups, and of this banger: its processes, sockets and files of
    /// VMs, contents of images and kernels with those that are being made.
    pub fn take(banger: &Banger) -> Census {
        let mut objects = BTreeSet::new();
        let mut add = |kind: &str, names: Vec<String>| {
            objects.extend(names.into_iter().map(|name| format!("{kind} {name}")));
        };
        add("link", links());
        add("setting", settings());
        add("dm", device_mapper());
        add("loop", loops());
        add("mount", mounts());
        add("nft", nft_lines());
        add("cgroup", control_groups());
        add("file", files_below(&banger.state().join("vms")));
        add("file", files_below(banger.runtime()));
        for folder in ["images", "kernels"] {
            add(folder, names_in(&banger.state().join(folder)));
        }
        add("process", processes(banger));
        Census { objects }
    }

    /// The same with more objects.
    pub fn with(mut self, more: impl IntoIterator<Item = String>) -> Census {
        self.objects.extend(more);
        self
    }

    /// Without the objects that are not `wanted`.
    pub fn keep(mut self, wanted: impl Fn(&str) -> bool) -> Census {
        self.objects.retain(|object| wanted(object));
        self
    }

    /// With another word for a name that differs from run to run.
    pub fn rename(self, from: &str, to: &str) -> Census {
        let objects = self.objects.into_iter();
        Census {
            objects: objects.map(|object| object.replace(from, to)).collect(),
        }
    }

    /// What is in `later` and not here, and the other way round.
    pub fn changes(&self, later: &Census) -> Vec<String> {
        let appeared = later
            .objects
            .difference(&self.objects)
            .map(|o| format!("+ {o}"));
        let vanished = self
            .objects
            .difference(&later.objects)
            .map(|o| format!("- {o}"));
        appeared.chain(vanished).collect()
    }
}

/// Processes whose arguments or environment name one of these paths, or that work there.
pub fn processes_that_mention(marks: &[PathBuf]) -> Vec<u32> {
    let ours = std::process::id();
    let pids = names_in(Path::new("/proc"))
        .into_iter()
        .filter_map(|name| name.parse().ok());
    pids.filter(|pid| *pid != ours)
        .filter(|pid| {
            let place = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            let works_there = marks.iter().any(|mark| place.starts_with(mark));
            works_there
                || ["cmdline", "environ"].iter().any(|file| {
                    // Gone meanwhile, or not ours to read: then it is not ours at all.
                    let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                    marks
                        .iter()
                        .any(|mark| contains(&bytes, mark.as_os_str().as_bytes()))
                })
        })
        .collect()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Of this network namespace, as /sys/class/net need not be.
pub fn links() -> Vec<String> {
    let table = fs::read_to_string("/proc/net/dev").expect("proc is mounted");
    let names = table.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// Which interfaces of this network namespace forward, and which let loopback addresses
/// pass: `forwarding eth0`.
pub fn settings() -> Vec<String> {
    let folder = Path::new("/proc/sys/net/ipv4/conf");
    let mut found = Vec::new();
    for interface in names_in(folder) {
        for setting in ["forwarding", "route_localnet"] {
            let value = fs::read_to_string(folder.join(&interface).join(setting));
            if value.is_ok_and(|value| value.trim() != "0") {
                found.push(format!("{setting} {interface}"));
            }
        }
    }
    found.sort();
    found
}

fn device_mapper() -> Vec<String> {
    let blocks = names_in(Path::new("/sys/block")).into_iter();
    let name = |block: String| fs::read_to_string(format!("/sys/block/{block}/dm/name")).ok();
    blocks
        .filter_map(name)
        .map(|name| name.trim().to_owned())
        .collect()
}

fn files_below(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            found.push(entry.path().display().to_string());
        }
    }
    found
}

fn loops() -> Vec<String> {
    let blocks = names_in(Path::new("/sys/block")).into_iter();
    let backing = |name: &String| {
        let file = format!("/sys/block/{name}/loop/backing_file");
        Some(format!(
            "{name} of {}",
            fs::read_to_string(file).ok()?.trim()
        ))
    };
    blocks.filter_map(|name| backing(&name)).collect()
}

fn mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(str::to_owned).collect()
}

/// The lines of every table of ours; none without nft or the right to ask.
fn nft_lines() -> Vec<String> {
    let Ok(output) = Command::new("nft").args(["list", "ruleset"]).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut ours = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with("table ") {
            ours = line.contains("banger");
        }
        // Counters move by themselves.
        if ours && !line.contains("counter") {
            found.push(line.trim().to_owned());
        }
    }
    found
}

/// The paths of all control groups of ours, in the v2 hierarchy.
pub fn control_groups() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    let is_v2 = |line: &&str| line.contains(" - cgroup2 ");
    let root = table
        .lines()
        .find(is_v2)
        .and_then(|line| line.split(' ').nth(4));
    let Some(root) = root else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(root)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
        let name = folder.to_string_lossy().into_owned();
        if name.contains("banger") {
            found.push(name);
        }
    }
    found
}

/// Processes of this banger by their program; ids would differ from run to run.
fn processes(banger: &Banger) -> Vec<String> {
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut names: Vec<String> = banger.processes().iter().map(name).collect();
    names.sort();
    let numbered = names.iter().enumerate();
    numbered
        .map(|(n, name)| format!("{} {n}", name.trim()))
        .collect()
}
