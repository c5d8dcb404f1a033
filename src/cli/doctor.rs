//! Judges facts about this machine: rows PASS, WARN or FAIL, each with what to do.
//!
//! Pure: facts in, rows out; `doctor_command` asks and prints. A fact is a FAIL only when
//! no sandbox can be made for want of it.

use serde::Serialize;

use super::words::stuck_advice;
use crate::failure::Failure;
use crate::proto::reply::{Fact, HostFacts, VmView};

/// How good or bad a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// Something is missing that not every sandbox needs.
    Warn,
    /// No sandbox can be made.
    Fail,
}

impl Verdict {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "PASS",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Good or bad.
    pub verdict: Verdict,
    /// What was looked at.
    pub name: String,
    /// What was found.
    pub detail: String,
    /// What to do; absent where nothing needs to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What is known of a fact: how bad its absence is, what it is for, how to get it.
struct Known {
    name: &'static str,
    missing: Verdict,
    hint: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        name: "arch",
        missing: Verdict::Fail,
        hint: "banger runs x86_64 guests on x86_64 hosts only.",
    },
    Known {
        name: "kvm",
        missing: Verdict::Warn,
        hint: "Guests run slower, translated by QEMU. With hardware virtualisation: `modprobe kvm_intel` or `kvm_amd`, and be in group kvm (`usermod -aG kvm USER`).",
    },
    Known {
        name: "firecracker",
        missing: Verdict::Warn,
        hint: "Only needed where KVM is fit: install it from its release page, or set `programs.firecracker`.",
    },
    Known {
        name: "jailer",
        missing: Verdict::Warn,
        hint: "With it a hostile VMM would see nothing of this machine's files but its VM's own: put the static `firecracker` and the `jailer` of one release side by side, or set `programs.jailer`.",
    },
    Known {
        name: "qemu",
        missing: Verdict::Warn,
        hint: "`apt install qemu-system-x86`, or set `programs.qemu`.",
    },
    Known {
        name: "vhost_device_vsock",
        missing: Verdict::Warn,
        hint: "QEMU guests need it: `cargo install vhost-device-vsock --locked`, or set `programs.vhost_device_vsock`.",
    },
    Known {
        name: "mke2fs",
        missing: Verdict::Fail,
        hint: "Disks are made with it: `apt install e2fsprogs`.",
    },
    Known {
        name: "e2fsprogs",
        missing: Verdict::Fail,
        hint: "Disks are made with it: `apt install e2fsprogs`.",
    },
    Known {
        name: "mmdebstrap",
        missing: Verdict::Warn,
        hint: "Images are built with it: `apt install mmdebstrap`.",
    },
    Known {
        name: "apt",
        missing: Verdict::Warn,
        hint: "Kernels and images are fetched with it: use a Debian or Ubuntu host.",
    },
    Known {
        name: "userns",
        missing: Verdict::Warn,
        hint: "Without root, images are built in a user namespace: `sysctl kernel.unprivileged_userns_clone=1`, and entries in /etc/subuid and /etc/subgid (`apt install uidmap`).",
    },
    Known {
        name: "tun",
        missing: Verdict::Warn,
        hint: "Guests get QEMU's user-mode network instead. For taps: `modprobe tun`, `sudo bangerd-root --owner $(id -u)`, then `banger daemon stop`.",
    },
    Known {
        name: "taps",
        missing: Verdict::Warn,
        hint: "Guests get QEMU's user-mode network instead. For taps: `modprobe tun`, `sudo bangerd-root --owner $(id -u)`, then `banger daemon stop`.",
    },
    Known {
        name: "bridge",
        missing: Verdict::Warn,
        hint: "VMs with a tap cannot start until then; `--net user` and `--net none` can.",
    },
    Known {
        name: "nft",
        missing: Verdict::Warn,
        hint: "`--nat` needs it: `apt install nftables`.",
    },
    Known {
        name: "cgroup",
        missing: Verdict::Warn,
        hint: "Memory and processes of VMs are then not limited, and without cgroup2 VMMs are found by their command lines. Boot with `systemd.unified_cgroup_hierarchy=1`, or `mount -t cgroup2 none /sys/fs/cgroup/unified`.",
    },
    Known {
        name: "users",
        missing: Verdict::Warn,
        hint: "VMs then run as root, without capabilities: give bangerd all of root's capabilities and ids, or run it as an ordinary user.",
    },
    Known {
        name: "base_extents",
        missing: Verdict::Warn,
        hint: "Roots that share this image's blocks are made and read more slowly: `banger image pull NAME --force` writes it anew, best onto a disk with room.",
    },
    Known {
        name: "git",
        missing: Verdict::Warn,
        hint: "`vm run PATH` needs it: `apt install git`.",
    },
    Known {
        name: "disk",
        missing: Verdict::Fail,
        hint: "Free space, `banger vm prune`, or set BANGER_STATE_DIR to a larger disk.",
    },
];

/// What the command line has found by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// The configuration file, read.
    pub config: Result<String, Failure>,
    /// Whether the daemon answered, started if need be.
    pub daemon: Result<(), Failure>,
    /// What this machine offers, by the daemon or by this process; `None` where neither
    /// could look.
    pub facts: Option<HostFacts>,
    /// `git --version`.
    pub git: Fact,
}

/// The report, worst rows where they are; the order is fixed.
pub fn judge(own: &Own) -> Vec<Row> {
    let mut rows = vec![found("configuration", &own.config)];
    let answers = own.daemon.clone().map(|()| "answers".to_owned());
    rows.push(found("bangerd", &answers));
    if let Some(facts) = &own.facts {
        rows.push(vmm(facts));
        rows.extend(facts.facts.iter().map(row));
    }
    if !rows.iter().any(|row| row.name == "git") {
        rows.push(row(&own.git));
    }
    rows
}

/// A row for each sandbox of which something could not be removed.
pub fn stuck(vms: &[VmView]) -> Vec<Row> {
    let stuck = vms.iter().filter(|vm| vm.phase == "stuck");
    let row = |vm: &VmView| Row {
        verdict: Verdict::Warn,
        name: "stuck".to_owned(),
        detail: format!(
            "vm {} is stuck: {}",
            vm.name,
            vm.reason.as_deref().unwrap_or("of unknown reason")
        ),
        hint: Some(stuck_advice(&vm.name, vm.retry.as_deref())),
    };
    stuck.map(row).collect()
}

/// The exit status of a report: 1 when anything fails.
pub fn status(rows: &[Row]) -> u8 {
    u8::from(rows.iter().any(|row| row.verdict == Verdict::Fail))
}

fn found(name: &str, outcome: &Result<String, Failure>) -> Row {
    match outcome {
        Ok(detail) => Row {
            verdict: Verdict::Pass,
            name: name.to_owned(),
            detail: detail.clone(),
            hint: None,
        },
        Err(failure) => Row {
            verdict: Verdict::Fail,
            name: name.to_owned(),
            detail: failure.to_string(),
            hint: failure.hint.clone(),
        },
    }
}

fn vmm(facts: &HostFacts) -> Row {
    let reason = &facts.vmm_reason;
    match &facts.vmm {
        Some(kind) => Row {
            verdict: Verdict::Pass,
            name: "vmm".to_owned(),
            detail: format!("{kind}: {reason}"),
            hint: None,
        },
        None => Row {
            verdict: Verdict::Fail,
            name: "vmm".to_owned(),
            detail: format!("no guest can run: {reason}"),
            hint: Some("`apt install qemu-system-x86` and `cargo install vhost-device-vsock --locked` are enough.".to_owned()),
        },
    }
}

fn row(fact: &Fact) -> Row {
    let name = fact.name.replace('-', "_");
    let known = KNOWN.iter().find(|known| known.name == name);
    let missing = known.map_or(Verdict::Warn, |known| known.missing);
    Row {
        verdict: if fact.ok { Verdict::Pass } else { missing },
        name: fact.name.clone(),
        detail: fact.detail.clone(),
        hint: known
            .filter(|_| !fact.ok)
            .map(|known| known.hint.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(name: &str, ok: bool) -> Fact {
        Fact {
            name: name.to_owned(),
            ok,
            detail: "d".to_owned(),
        }
    }

    fn own(facts: Vec<Fact>, vmm: Option<&str>) -> Own {
        Own {
            config: Ok("none".to_owned()),
            daemon: Ok(()),
            facts: Some(HostFacts {
                facts,
                vmm: vmm.map(str::to_owned),
                vmm_reason: "why".to_owned(),
            }),
            git: fact("git", true),
        }
    }

    #[test]
    fn a_machine_without_kvm_is_a_warning_and_not_a_failure() {
        let rows = judge(&own(
            vec![fact("kvm", false), fact("qemu", true)],
            Some("qemu-tcg"),
        ));
        assert_eq!(status(&rows), 0);
        let kvm = rows.iter().find(|row| row.name == "kvm").unwrap();
        assert_eq!(kvm.verdict, Verdict::Warn);
        assert!(kvm.hint.as_ref().unwrap().contains("group kvm"));
    }

    #[test]
    fn without_any_vmm_it_fails_and_names_the_package() {
        let rows = judge(&own(vec![fact("qemu", false)], None));
        assert_eq!(status(&rows), 1);
        let hints: String = rows.iter().filter_map(|row| row.hint.clone()).collect();
        assert!(hints.contains("qemu-system-x86"));
    }

    #[test]
    fn a_daemon_that_cannot_start_is_a_row_with_its_reason_beside_those_of_the_machine() {
        let mut own = own(vec![fact("qemu", true)], Some("qemu-tcg"));
        own.daemon = Err(Failure::failed("start bangerd").because("no space"));
        let rows = judge(&own);
        assert_eq!(status(&rows), 1);
        assert!(rows[1].detail.contains("no space"));
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["configuration", "bangerd", "vmm", "qemu", "git"]);
    }

    #[test]
    fn a_stuck_sandbox_is_a_row_with_the_command_that_tries_again() {
        let stuck_in = |retry: &str| VmView {
            phase: "stuck".to_owned(),
            reason: Some("tap is busy".to_owned()),
            retry: Some(retry.to_owned()),
            ..crate::cli::samples::vm("00000001", "dev")
        };
        let calm = crate::cli::samples::vm("00000002", "calm");
        let rows = stuck(&[
            stuck_in("stop"),
            calm,
            stuck_in("reset"),
            stuck_in("delete"),
        ]);
        let hints: Vec<&str> = rows.iter().filter_map(|row| row.hint.as_deref()).collect();
        assert_eq!(rows[0].detail, "vm dev is stuck: tap is busy");
        assert!(hints[0].starts_with("`banger vm stop dev` tries again"));
        assert!(hints[1].starts_with("`banger vm reset dev` tries again"));
        assert_eq!(hints[2], "`banger vm delete dev` tries again.");
        assert_eq!(status(&rows), 0);
    }

    #[test]
    fn an_unknown_fact_is_shown_and_never_a_failure() {
        let rows = judge(&own(vec![fact("moon", false)], Some("qemu-tcg")));
        assert_eq!(rows[3].verdict, Verdict::Warn);
        assert_eq!(status(&rows), 0);
    }
}
