//! A process that is born inside a control group.
//!
//! Moving a process into a group makes the kernel wait until no thread of the machine is
//! being made (`cgroup_threadgroup_rwsem`): after a pause that takes a grace period, 7 to
//! 23 ms. A process that is made there (`CLONE_INTO_CGROUP`, Linux 5.7, clone3(2)) waits
//! for nothing, and there is no moment in which it exists and is not a member.

use std::ffi::{CStr, c_char, c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::Pid;

/// `__NR_clone3`, the same on every architecture (asm-generic/unistd.h).
const CLONE3: c_long = 435;
/// linux/sched.h
const CLONE_PIDFD: u64 = 0x1000;
/// linux/sched.h
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// asm-generic/signal.h
const SIGCHLD: u64 = 17;
/// What shells say of a program that could not be executed.
const NOT_EXECUTED: c_int = 126;

/// `struct clone_args` of linux/sched.h, version 2.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

// CLONE_ARGS_SIZE_VER2
const _: () = assert!(size_of::<CloneArguments>() == 88);

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn execve(
        program: *const c_char,
        arguments: *const *const c_char,
        environment: *const *const c_char,
    ) -> c_int;
    fn _exit(status: c_int) -> !;
}

/// What to execute.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// The file.
    pub path: &'a CStr,
    /// Its arguments, its own name first.
    pub arguments: &'a [&'a CStr],
    /// `NAME=value` each.
    pub environment: &'a [&'a CStr],
    /// Its standard input, output and error. It inherits no other descriptor that is
    /// to be closed on execution.
    pub streams: [BorrowedFd<'a>; 3],
}

/// Starts a program as a member of a control group (its folder, opened); the process and
/// a descriptor of it. Handlers of signals go, the mask and what is ignored stay.
///
/// # Errors
/// `ENOSYS`, `EINVAL`: the kernel is too old. `ENODEV`, `ENOENT`: the group is gone.
/// `EACCES`, `EOPNOTSUPP`: it may not have this process. That the program cannot be
/// executed is not seen here: the process ends with status 126.
pub fn spawn_into(group: BorrowedFd<'_>, program: &Program<'_>) -> io::Result<(Pid, OwnedFd)> {
    // Above the numbers that they will be copied to.
    let high = |stream: BorrowedFd<'_>| fcntl_dupfd_cloexec(stream, 3);
    let [input, output, error] = program.streams;
    let streams = [high(input)?, high(output)?, high(error)?];
    let arguments = pointers(program.arguments);
    let environment = pointers(program.environment);
    let mut pidfd: RawFd = -1;
    let request = CloneArguments {
        flags: CLONE_PIDFD | CLONE_INTO_CGROUP,
        pidfd: &raw mut pidfd as u64,
        exit_signal: SIGCHLD,
        cgroup: group.as_raw_fd() as u64,
        ..CloneArguments::default()
    };
    // SAFETY: the structure is complete and its size is given; without CLONE_VM the child
    // has its own copy of everything, so it is a fork. `pidfd` outlives the call.
    let pid = unsafe { syscall(CLONE3, &raw const request, size_of::<CloneArguments>()) };
    match pid {
        0 => become_program(&streams, program.path, &arguments, &environment),
        -1 => Err(io::Error::last_os_error()),
        pid => {
            // SAFETY: the kernel has just opened it for us and nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            Ok((pid.expect("the kernel gave a process id"), pidfd))
        }
    }
}

/// In the child, where another thread's lock stays locked for ever: nothing here
/// allocates, prints or panics.
fn become_program(
    streams: &[OwnedFd; 3],
    path: &CStr,
    arguments: &[*const c_char],
    environment: &[*const c_char],
) -> ! {
    let [input, output, error] = streams;
    let copied = rustix::stdio::dup2_stdin(input.as_fd())
        .and_then(|()| rustix::stdio::dup2_stdout(output.as_fd()))
        .and_then(|()| rustix::stdio::dup2_stderr(error.as_fd()));
    if copied.is_ok() {
        // SAFETY: the path is closed by NUL, both lists by a null pointer, and what they
        // point to was made before the fork and lives.
        unsafe { execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    }
    // SAFETY: ends the process at once; no destructor of ours has anything to do.
    unsafe { _exit(NOT_EXECUTED) }
}

fn pointers(words: &[&CStr]) -> Vec<*const c_char> {
    let ends = std::iter::once(std::ptr::null());
    words.iter().map(|word| word.as_ptr()).chain(ends).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_folder_that_is_no_control_group_bears_nobody() {
        let nothing = File::open("/dev/null").unwrap();
        let folder = File::open("/").unwrap();
        let program = Program {
            path: c"/bin/true",
            arguments: &[c"true"],
            environment: &[],
            streams: [nothing.as_fd(), nothing.as_fd(), nothing.as_fd()],
        };
        let error = spawn_into(folder.as_fd(), &program).unwrap_err();
        // EBADF; where the call is filtered, ENOSYS or EPERM.
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}
