//! A guest's memory, kept open past its VMM's end.
//!
//! QEMU keeps it in a memfd(2), shared with the vsock back end. A process is over only when
//! the kernel has taken back what it alone had, and to free the pages of such a file is a
//! third of the 40 ms that this takes. Whoever waits for the end need not wait for that: the
//! file is held open here and let go by a thread. A daemon that dies meanwhile lets go as
//! well.

use std::fs::{self, File};
use std::thread;

use crate::host::process::Process;

/// The memory of processes that are about to be killed; freed some time after this is dropped.
#[derive(Debug)]
pub struct Held(Vec<File>);

/// Opens what these processes have of that kind. What cannot be looked into (a process of
/// another user, one that has ended) is not held, and its end takes a little longer.
pub fn hold(processes: &[Process]) -> Held {
    Held(processes.iter().flat_map(memory_files).collect())
}

fn memory_files(process: &Process) -> Vec<File> {
    let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", process.pid())) else {
        return Vec::new();
    };
    let links = entries.flatten().map(|entry| entry.path());
    let memory = links.filter(|link| {
        fs::read_link(link).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"))
    });
    memory.filter_map(|link| File::open(link).ok()).collect()
}

impl Drop for Held {
    fn drop(&mut self) {
        let files = std::mem::take(&mut self.0);
        if !files.is_empty() {
            // Without a thread to be had they are let go here, by dropping the closure.
            let _let_go = thread::Builder::new().spawn(move || drop(files));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::process::Pid;

    use super::*;

    /// A process whose standard input is a file in memory that nobody else has.
    fn owner_of_memory(content: &[u8]) -> (std::process::Child, Process) {
        let memory = memfd_create("memory-backend", MemfdFlags::CLOEXEC).unwrap();
        let mut written = File::from(memory.try_clone().unwrap());
        written.write_all(content).unwrap();
        let mut command = Command::new("sleep");
        let child = command
            .arg("600")
            .stdin(Stdio::from(memory))
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        (child, Process::pin(pid).unwrap())
    }

    #[test]
    fn the_memory_of_a_killed_process_outlives_it_until_it_is_let_go() {
        let (mut child, process) = owner_of_memory(b"what the guest had");
        let held = hold(std::slice::from_ref(&process));
        process.kill().unwrap();
        assert!(process.ends_within(Duration::from_secs(20)));
        child.wait().unwrap();

        let [file] = &held.0[..] else {
            panic!("one file is held, not {held:?}")
        };
        let mut content = String::new();
        (&*file).read_to_string(&mut content).unwrap();
        assert_eq!(content, "what the guest had");
    }

    #[test]
    fn of_a_process_that_has_ended_nothing_is_held() {
        let (mut child, process) = owner_of_memory(b"");
        process.kill().unwrap();
        child.wait().unwrap();
        assert!(hold(&[process]).0.is_empty());
    }
}
