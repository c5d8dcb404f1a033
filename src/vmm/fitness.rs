//! Whether KVM runs ordinary guests: tried, not assumed.
//!
//! A host may offer /dev/kvm and still be of no use: where KVM is paravirtual only
//! (PVM), an ordinary guest runs a thousand times too slowly and everything that
//! trusts the device hangs. So a tiny guest runs a few thousand instructions against
//! the clock, in a process of its own (`banger role kvm-probe`), because a processor
//! that is stuck in the kernel can only be left behind, not called back.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::host::fault::fault;
use crate::host::process::{Children, Process};
use crate::sys::kvm::{API_VERSION, Exit, Kvm, NEEDED};

/// Time for the whole trial, the start of its process included.
const TRIAL_LIMIT: Duration = Duration::from_secs(1);

/// Rounds of the guest: each leaves it once, by a write to a port. The fastest counts,
/// because a busy host interrupts some.
const ROUNDS: u8 = 8;
/// What the guest executes in a round, about: two instructions for each of 1000 turns.
const INSTRUCTIONS: u32 = 2000;
/// Slower than this, in nanoseconds for an instruction, is no ordinary guest: a
/// processor of its own takes 0.5 and, where virtualisation is nested, up to 25 more
/// for this round's share of leaving the guest. Under PVM 500 were measured.
const FIT_LIMIT_NS: u128 = 100;

/// Whether KVM runs ordinary guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fitness {
    /// It does; the text says how fast.
    Fit(String),
    /// It does not; the text says why, to be shown after "KVM cannot be used: ".
    Unfit(String),
}

/// Tries, or remembers a trial of this boot from `memory`, a file of ours.
///
/// Only what a trial measured is remembered: whether the device exists and may be
/// opened can change at any time, and is quickly asked.
pub fn judge(own_program: &Path, memory: &Path) -> Fitness {
    if let Err(why) = open() {
        return Fitness::Unfit(why);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if let Some(fitness) = remembered(memory, boot.trim()) {
        return fitness;
    }
    let fitness = try_out(own_program);
    // A trial that cannot be remembered is made again next time.
    let _ = fs::write(memory, format!("{}\n{}\n", boot.trim(), fitness.line()));
    fitness
}

/// Runs the trial in a process of its own and gives it one second.
pub fn try_out(own_program: &Path) -> Fitness {
    let attempt = "start the trial of KVM";
    let spawned = Command::new(own_program)
        .arg0("banger")
        .args(["role", "kvm-probe"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .and_then(|child| Ok((Process::pin(Pid::from_child(&child))?, child)));
    let (process, mut child) = match spawned {
        Ok(both) => both,
        Err(error) => return Fitness::Unfit(fault(attempt, error).what),
    };
    if !process.ends_within(TRIAL_LIMIT) {
        // Not waited for: it may be stuck in the kernel for minutes.
        let killed = process.kill().map(|()| process.ends_within(TRIAL_LIMIT));
        let children = Children::default();
        children.adopt(process.child());
        children.reap();
        let stuck = if matches!(killed, Ok(true)) {
            ""
        } else {
            ", and cannot be killed"
        };
        return Fitness::Unfit(format!(
            "a guest of {} instructions is not done after {} s{stuck}: this host's KVM is not \
             made for ordinary guests",
            INSTRUCTIONS * u32::from(ROUNDS),
            TRIAL_LIMIT.as_secs()
        ));
    }
    let mut line = String::new();
    let read = child
        .stdout
        .take()
        .map(|mut pipe| pipe.read_to_string(&mut line));
    match (child.wait(), read) {
        (Ok(status), Some(Ok(_))) => Fitness::read(line.trim())
            .unwrap_or_else(|| Fitness::Unfit(format!("{attempt}: it ended with {status}"))),
        _ => Fitness::Unfit(format!("{attempt}: it could not be read")),
    }
}

/// The role `kvm-probe`: runs the guest here and says on standard output how it went.
pub fn run() -> ExitCode {
    let fitness = match trial() {
        Ok(round) => verdict(round),
        Err(why) => Fitness::Unfit(why),
    };
    match writeln!(std::io::stdout(), "{}", fitness.line()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn verdict(round: Duration) -> Fitness {
    let each = round.as_nanos() / u128::from(INSTRUCTIONS);
    if each > FIT_LIMIT_NS {
        return Fitness::Unfit(format!(
            "its guests take {each} ns for an instruction, hundreds of times too long: this \
             host's KVM is not made for ordinary guests"
        ));
    }
    Fitness::Fit(format!("its guests take {each} ns for an instruction"))
}

impl Fitness {
    fn line(&self) -> String {
        match self {
            Fitness::Fit(text) => format!("fit {text}"),
            Fitness::Unfit(text) => format!("unfit {text}"),
        }
    }

    fn read(line: &str) -> Option<Fitness> {
        match line.split_once(' ')? {
            ("fit", text) => Some(Fitness::Fit(text.to_owned())),
            ("unfit", text) => Some(Fitness::Unfit(text.to_owned())),
            _ => None,
        }
    }
}

fn remembered(memory: &Path, boot: &str) -> Option<Fitness> {
    let text = fs::read_to_string(memory).ok()?;
    let (of_boot, line) = text.split_once('\n')?;
    (of_boot == boot && !boot.is_empty())
        .then(|| Fitness::read(line.trim()))
        .flatten()
}

/// Opens the device and asks what can be asked without running anything.
fn open() -> Result<Kvm, String> {
    let kvm = Kvm::open().map_err(|error| fault("open /dev/kvm", error).what)?;
    let version = kvm
        .api_version()
        .map_err(|error| fault("ask KVM for its version", error).what)?;
    if version != API_VERSION {
        return Err(format!(
            "KVM speaks version {version} of its interface, not {API_VERSION}"
        ));
    }
    for (number, name) in NEEDED {
        if kvm.extension(number).unwrap_or_default() == 0 {
            return Err(format!("KVM does not offer {name} (extension {number})"));
        }
    }
    Ok(kvm)
}

/// Runs the guest; how long its fastest round took.
fn trial() -> Result<Duration, String> {
    let kvm = open()?;
    let say = |what: &str, error| fault(what, error).what;
    let mut machine = kvm
        .tiny_machine(&guest())
        .map_err(|error| say("make a guest of KVM", error))?;
    let mut fastest = Duration::MAX;
    for round in 0..=ROUNDS {
        let start = Instant::now();
        let exit = machine
            .run()
            .map_err(|error| say("run a guest of KVM", error))?;
        let expected = if round < ROUNDS { Exit::Io } else { Exit::Halt };
        if exit != expected {
            return Err(format!("a guest of KVM went astray: {exit:?}"));
        }
        if round < ROUNDS {
            fastest = fastest.min(start.elapsed());
        }
    }
    Ok(fastest)
}

/// 32-bit code: eight times, count 1000 down to 0 and write to port 0x80; then halt.
fn guest() -> [u8; 17] {
    [
        0xB3, ROUNDS, //             mov bl, ROUNDS
        0xB9, 0xE8, 0x03, 0, 0,    // 1: mov ecx, 1000
        0x49, //                   2: dec ecx
        0x75, 0xFD, //                jnz 2b
        0xE6, 0x80, //                out 0x80, al
        0xFE, 0xCB, //                dec bl
        0x75, 0xF2, //                jnz 1b
        0xF4, //                      hlt
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_survives_its_line() {
        for fitness in [
            Fitness::Fit("12 us".into()),
            Fitness::Unfit("no such file".into()),
        ] {
            assert_eq!(Fitness::read(&fitness.line()), Some(fitness));
        }
        assert_eq!(Fitness::read("perhaps so"), None);
    }

    #[test]
    fn a_guest_hundreds_of_times_too_slow_is_unfit() {
        assert!(matches!(
            verdict(Duration::from_micros(40)),
            Fitness::Fit(_)
        ));
        assert!(matches!(
            verdict(Duration::from_millis(2)),
            Fitness::Unfit(_)
        ));
    }

    #[test]
    fn only_a_verdict_of_this_boot_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let memory = folder.path().join("kvm");
        assert_eq!(remembered(&memory, "boot-1"), None);
        fs::write(&memory, "boot-1\nunfit too slow\n").unwrap();
        assert_eq!(
            remembered(&memory, "boot-1"),
            Some(Fitness::Unfit("too slow".into()))
        );
        assert_eq!(remembered(&memory, "boot-2"), None);
        assert_eq!(remembered(&memory, ""), None);
    }
}
