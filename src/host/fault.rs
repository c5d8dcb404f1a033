//! How a kernel error becomes a [`Fault`]: the kind that the plan decides on, and one
//! line that names the attempt, the object and the cause.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;

use crate::plan::step::{Fault, FaultKind};

/// The fault of an attempt (`add tap bgr-01234567`) that ended with this error.
pub fn fault(attempt: impl Display, error: impl Into<io::Error>) -> Fault {
    let error = error.into();
    Fault::new(kind(&error), format!("{attempt}: {}", cause(&error)))
}

/// What the plan may decide on an error of the operating system.
pub fn kind(error: &io::Error) -> FaultKind {
    let Some(errno) = Errno::from_io_error(error) else {
        return match error.kind() {
            io::ErrorKind::NotFound => FaultKind::Missing,
            io::ErrorKind::PermissionDenied => FaultKind::Denied,
            io::ErrorKind::TimedOut => FaultKind::Timeout,
            _ => FaultKind::Other,
        };
    };
    match errno {
        Errno::BUSY | Errno::AGAIN | Errno::TXTBSY | Errno::INTR => FaultKind::Busy,
        Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::MFILE | Errno::NFILE => FaultKind::Full,
        Errno::NOENT | Errno::NODEV | Errno::NXIO => FaultKind::Missing,
        Errno::PERM | Errno::ACCESS | Errno::ROFS => FaultKind::Denied,
        Errno::TIMEDOUT => FaultKind::Timeout,
        _ => FaultKind::Other,
    }
}

/// The operating system's words without Rust's `(os error N)`, in lower case.
fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = words.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain(letters).collect()
        }
        // `I/O error`: no word that only stands first.
        (Some(_), _) => words.to_owned(),
        (None, _) => "unknown error".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_errors_become_the_kinds_that_the_plan_knows() {
        for (errno, expected) in [
            (Errno::BUSY, FaultKind::Busy),
            (Errno::NOSPC, FaultKind::Full),
            (Errno::NODEV, FaultKind::Missing),
            (Errno::PERM, FaultKind::Denied),
            (Errno::IO, FaultKind::Other),
        ] {
            assert_eq!(kind(&errno.into()), expected, "{errno}");
        }
    }

    #[test]
    fn the_text_names_attempt_and_cause_without_numbers() {
        let refused = fault("add tap bgr-0000002a", Errno::PERM);
        assert_eq!(
            refused.what,
            "add tap bgr-0000002a: operation not permitted"
        );
        let full = fault("write x", Errno::NOSPC).what;
        assert_eq!(full, "write x: no space left on device");
    }
}
