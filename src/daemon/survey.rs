//! What of ours is on this machine, by derived names, tags and marks: for
//! `banger doctor --fix`, which compares it with the rows.
//!
//! Names alone do not tell whose a thing is: another user's daemon, or one with another
//! state directory, names its objects in the same way. So each kind has a sign of *this*
//! installation:
//!
//! | thing | ours if |
//! |---|---|
//! | folder | it lies in our state or runtime directory |
//! | process | it has a VM's marker, works in our runtime directory or has a VM's file of ours open, and none of another's |
//! | tap | its alias carries our mark; without any alias: perhaps |
//! | control group | empty for a while, or all that is in it is ours |
//! | loop device | the file behind it lies in our state directory |
//! | device-mapper device | so do its loop devices |
//! | firewall elements | nobody's VM has them: their tap does not exist |
//!
//! What is certainly somebody else's is not listed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::cgroup::Groups;
use crate::host::fault::fault;
use crate::host::layout::Layout;
use crate::host::link::{Link, Links};
use crate::host::process::{self, Process};
use crate::host::{console, dm, identity, loopdev};
use crate::model::ids::VmId;
use crate::model::vm::VmmKind;
use crate::plan::step::{Fault, StepKind};
use crate::vmm::{self, vsock_backend};

/// An empty group this old waits for no process: a start takes seconds from one to the
/// other.
const SETTLED: Duration = Duration::from_secs(60);
/// How long killed processes may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Something that has a VM's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The VM it is named after.
    pub vm: VmId,
    /// What kind of step makes such a thing.
    pub kind: StepKind,
    /// For people: `tap bgr-0000002a`.
    pub what: String,
    /// Whether it is certainly of this installation.
    pub whose: Whose,
}

/// Whether something may be removed when no row names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// Nobody else needs it.
    Ours,
    /// It is not known, or it holds what cannot be made again: what to type.
    Ask(String),
}

/// What a look needs.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// Where things of ours lie.
    pub layout: &'a Layout,
    /// The name of our bridge.
    pub bridge: &'a str,
    /// Control groups of VMs, where there are any.
    pub groups: Option<&'a Groups>,
}

/// Everything found, and what could not be looked at.
pub fn survey(look: &Look<'_>) -> (Vec<Found>, Vec<Fault>) {
    let (mut all, mut faults) = (Vec::new(), Vec::new());
    let mut add = |part: Result<Vec<Found>, Fault>| match part {
        Ok(found) => all.extend(found),
        Err(fault) => faults.push(fault),
    };
    add(processes(look));
    add(groups(look));
    add(taps(look));
    add(devices(look));
    add(folders(look));
    (all, faults)
}

/// Ends the processes of a VM that is not known any more.
///
/// # Errors
/// One outlives its signal, or they cannot be listed.
pub fn end_processes(look: &Look<'_>, vm: VmId) -> Result<(), Fault> {
    let attempt = format!("end the processes of vm {vm}");
    let failed = |error: io::Error| fault(&attempt, error);
    let ours = of_vm(look, vm).map_err(failed)?;
    let late = process::kill_all(ours, KILL_LIMIT).map_err(failed)?;
    match late.first() {
        None => Ok(()),
        Some(_) => Err(failed(rustix::io::Errno::BUSY.into())),
    }
}

fn folders(look: &Look<'_>) -> Result<Vec<Found>, Fault> {
    let layout = look.layout;
    let mut all = Vec::new();
    for vm in named_in(&layout.run_directory(VmId::from_bits(0)))? {
        let path = layout.run_directory(vm);
        let users = with_markers(look, vm).map_err(|error| fault("list processes", error))?;
        let stranger = users.iter().find(|user| {
            let traces = Traces::of(user.pid());
            traces.are_in_runtime_of(layout) && !traces.are_of(layout)
        });
        let whose = match stranger {
            None => Whose::Ours,
            Some(user) => Whose::Ask(format!(
                "process {} of another state directory uses it: stop that VM with its own BANGER_STATE_DIR",
                user.pid()
            )),
        };
        all.push(Found {
            vm,
            kind: StepKind::RunDirectory,
            what: format!("folder {}", path.display()),
            whose,
        });
    }
    for vm in named_in(&layout.vm_directory(VmId::from_bits(0)))? {
        let path = layout.vm_directory(vm);
        all.push(Found {
            vm,
            kind: StepKind::VmDirectory,
            what: format!("folder {}", path.display()),
            // It was saved before it was made: so its row was lost, and this is all there is.
            whose: Whose::Ask(format!(
                "it may hold the only copy of somebody's work: look at it, then `rm -r {}`",
                path.display()
            )),
        });
    }
    Ok(all)
}

/// The VMs that the folder around this one has folders of.
fn named_in(example: &Path) -> Result<Vec<VmId>, Fault> {
    let folder = example.parent().unwrap_or(example);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| fault(format!("list {}", folder.display()), error))?,
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect())
}

fn processes(look: &Look<'_>) -> Result<Vec<Found>, Fault> {
    let failed = |error: io::Error| fault("list processes", error);
    let mut vms = BTreeSet::new();
    for line in process::command_lines().map_err(failed)? {
        vms.extend(ids_in(&line));
    }
    let mut all = Vec::new();
    for vm in vms {
        let own = of_vm(look, vm).map_err(failed)?;
        all.extend(own.iter().map(|process| Found {
            vm,
            kind: StepKind::Vmm,
            what: format!("process {} of vm {vm}", process.pid()),
            whose: Whose::Ours,
        }));
    }
    Ok(all)
}

/// What could be a VM's id in a command line; whether it is one its markers tell.
fn ids_in(line: &[u8]) -> BTreeSet<VmId> {
    let text = String::from_utf8_lossy(line).into_owned();
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
    words.filter_map(|word| word.parse().ok()).collect()
}

/// The live processes with a VM's markers that are of this installation.
fn of_vm(look: &Look<'_>, vm: VmId) -> io::Result<Vec<Process>> {
    let mut found = with_markers(look, vm)?;
    found.retain(|process| Traces::of(process.pid()).are_of(look.layout));
    Ok(found)
}

/// The same, of whatever installation.
fn with_markers(look: &Look<'_>, vm: VmId) -> io::Result<Vec<Process>> {
    let layout = look.layout;
    let vsock = layout.vsock(vm);
    let markers = [
        vmm::of(VmmKind::Firecracker).marker(vm),
        vmm::of(VmmKind::QemuTcg).marker(vm),
        vsock_backend::marker(&layout.as_seen_at_work(&vsock)),
        vsock_backend::marker(&vsock),
        console::marker(&layout.console_log(vm)),
    ];
    process::find(&markers, &identity::owners(vm), None)
}

/// Where a process works and which VMs' folders it has to do with.
#[derive(Debug, Default, PartialEq, Eq)]
struct Traces {
    works_in: PathBuf,
    /// What stands before `/vms/<id>` in its arguments and in the names of its open files.
    roots: BTreeSet<PathBuf>,
}

impl Traces {
    /// Of a process that has ended, or is not for us to look at: none.
    fn of(pid: u32) -> Traces {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        let open = fs::read_dir(folder.join("fd")).into_iter().flatten();
        let files = open
            .flatten()
            .filter_map(|one| fs::read_link(one.path()).ok());
        let words = line.split(|byte| [0, b',', b'='].contains(byte));
        let words = words.map(|word| PathBuf::from(String::from_utf8_lossy(word).into_owned()));
        Traces {
            works_in: fs::read_link(folder.join("cwd")).unwrap_or_default(),
            roots: words
                .chain(files)
                .filter_map(|path| root_of(&path))
                .collect(),
        }
    }

    /// Who is jailed works nowhere, but names its sockets whole.
    fn are_in_runtime_of(&self, layout: &Layout) -> bool {
        let runtime = real(&layout.runtime);
        self.works_in == work_directory(layout)
            || self.roots.iter().any(|root| real(root) == runtime)
    }

    /// Something of this installation, and nothing of another.
    fn are_of(&self, layout: &Layout) -> bool {
        let own = [real(&layout.state), real(&layout.runtime)];
        let works_here = self.works_in == work_directory(layout);
        (works_here || !self.roots.is_empty())
            && self.roots.iter().all(|root| own.contains(&real(root)))
    }
}

/// `ROOT` of `ROOT/vms/<id>/…`. In a jail files have the names that they have here.
fn root_of(path: &Path) -> Option<PathBuf> {
    let text = path.to_str()?;
    let (root, rest) = text.split_once("/vms/")?;
    rest.split('/').next()?.parse::<VmId>().ok()?;
    Some(PathBuf::from(root))
}

/// Where VMMs work, as the kernel names it.
fn work_directory(layout: &Layout) -> PathBuf {
    let example = layout.run_directory(VmId::from_bits(0));
    real(example.parent().unwrap_or(&example))
}

/// Without symbolic links; what does not exist has none.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn groups(look: &Look<'_>) -> Result<Vec<Found>, Fault> {
    let Some(groups) = look.groups else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for vm in named_in(&groups.path(VmId::from_bits(0)))? {
        let path = groups.path(vm);
        let members = process::members_below(&path);
        let members =
            members.map_err(|error| fault(format!("look at {}", path.display()), error))?;
        let idle = members.is_empty() && is_settled(&path);
        let own = !members.is_empty()
            && members
                .iter()
                .all(|pid| Traces::of(*pid).are_of(look.layout));
        if idle || own {
            all.push(Found {
                vm,
                kind: StepKind::Cgroup,
                what: format!("control group {}", path.display()),
                whose: Whose::Ours,
            });
        }
    }
    Ok(all)
}

fn is_settled(path: &Path) -> bool {
    let changed = fs::metadata(path).and_then(|seen| seen.modified());
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > SETTLED))
}

fn taps(look: &Look<'_>) -> Result<Vec<Found>, Fault> {
    let failed = |error: io::Error| fault("list taps", error);
    let links = Links::open()
        .and_then(|links| links.all())
        .map_err(failed)?;
    let bridge = links.iter().find(|link| link.name == look.bridge);
    let bridge = bridge.map(|bridge| bridge.index);
    let mark = look.layout.mark();
    let found = links.iter().filter_map(|link| {
        let vm = VmId::of_tap(&link.name)?;
        Some(Found {
            vm,
            kind: StepKind::Tap,
            what: format!("tap {}", link.name),
            whose: whose_tap(link, bridge, &mark)?,
        })
    });
    Ok(found.collect())
}

/// `None`: somebody else's.
fn whose_tap(link: &Link, bridge: Option<u32>, mark: &str) -> Option<Whose> {
    if link.kind.as_deref() != Some("tun") {
        return None;
    }
    match link.alias.as_deref() {
        Some(alias) if alias == mark => Some(Whose::Ours),
        Some(_) => None,
        // Made by an older version or the root helper; a process has it: somebody's VM.
        None if link.carrier || bridge.is_none() || link.master != bridge => None,
        None => Some(Whose::Ask(format!(
            "it does not say whose it is: if no other daemon uses the bridge, `ip link delete {}`",
            link.name
        ))),
    }
}

/// Loop devices over files of ours, and the snapshots on them.
fn devices(look: &Look<'_>) -> Result<Vec<Found>, Fault> {
    let failed = |error: io::Error| fault("list loop devices", error);
    let tagged = loopdev::tagged().map_err(failed)?;
    let ours: Vec<_> = tagged
        .into_iter()
        .filter(|(_, _, file)| file.starts_with(&look.layout.state))
        .collect();
    let vms: BTreeSet<VmId> = ours.iter().map(|(vm, _, _)| *vm).collect();
    let mut all: Vec<Found> = ours
        .into_iter()
        .map(|(vm, role, _)| Found {
            vm,
            kind: match role {
                loopdev::Role::Base => StepKind::BaseLoop,
                loopdev::Role::Cow => StepKind::CowLoop,
            },
            what: format!("loop device {}", loopdev::tag(vm, role)),
            whose: Whose::Ours,
        })
        .collect();
    let snapshots = dm::ours()?.into_iter();
    all.extend(
        snapshots
            .filter(|(vm, _)| vms.contains(vm))
            .map(|(vm, name)| Found {
                vm,
                kind: StepKind::DmSnapshot,
                what: format!("device-mapper device {name}"),
                whose: Whose::Ours,
            }),
    );
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout {
            state: "/s/banger".into(),
            cache: "/c".into(),
            runtime: "/run/banger".into(),
        }
    }

    #[test]
    fn a_process_is_ours_if_all_its_traces_are() {
        let traces = |works_in: &str, files: &[&str]| Traces {
            works_in: works_in.into(),
            roots: files
                .iter()
                .filter_map(|file| root_of(Path::new(file)))
                .collect(),
        };
        let ours = "/run/banger/vms";
        for (traces, expected) in [
            (traces(ours, &["/s/banger/vms/0000002a/upper.ext4"]), true),
            (traces(ours, &[]), true),
            (traces("/", &["/run/banger/vms/0000002a/vsock"]), true),
            (traces(ours, &["/other/vms/0000002a/upper.ext4"]), false),
            (traces("/other/vms", &[]), false),
            (traces("/", &["/s/banger/bangerd.log"]), false),
        ] {
            assert_eq!(traces.are_of(&layout()), expected, "{traces:?}");
        }
    }

    #[test]
    fn ids_are_found_wherever_they_stand_in_a_command_line() {
        let line = b"qemu\0-name\0banger-0000002a\0--uds-path\x000000002b/vsock\0";
        let found: Vec<u32> = ids_in(line).into_iter().map(VmId::bits).collect();
        assert_eq!(found, [0x2a, 0x2b]);
    }

    fn tap(alias: Option<&str>, master: Option<u32>) -> Link {
        Link {
            index: 9,
            name: "bgr-0000002a".to_owned(),
            up: true,
            running: false,
            carrier: false,
            master,
            kind: Some("tun".to_owned()),
            alias: alias.map(str::to_owned),
            mac: None,
            isolated: true,
            persistent: true,
        }
    }

    #[test]
    fn a_tap_is_ours_by_its_mark_alone() {
        let mark = layout().mark();
        let whose = |link: &Link| whose_tap(link, Some(3), &mark);
        assert_eq!(whose(&tap(Some(&mark), None)), Some(Whose::Ours));
        assert_eq!(whose(&tap(Some("banger 00000000"), Some(3))), None);
        assert!(matches!(whose(&tap(None, Some(3))), Some(Whose::Ask(_))));
        assert_eq!(whose(&tap(None, Some(4))), None);
        let in_use = Link {
            carrier: true,
            ..tap(None, Some(3))
        };
        assert_eq!(whose(&in_use), None);
        let bridge = Link {
            kind: Some("bridge".to_owned()),
            ..tap(Some(&mark), None)
        };
        assert_eq!(whose(&bridge), None);
    }
}
