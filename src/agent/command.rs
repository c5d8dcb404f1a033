//! Which program a command means: environment, search along PATH, login shell,
//! working directory. The image is asked by its files only.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::proto::agent::{AgentFailure, AgentFailureKind};

/// Debian's PATH for root; a superset of what other images need.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Root's home.
pub const HOME: &str = "/root";
/// Tried after what /etc/passwd says.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// The environment of a command.
pub type Environment = BTreeMap<String, String>;

/// A program to execute and the name it is called by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Path of the program.
    pub program: PathBuf,
    /// Its argument 0.
    pub arg0: OsString,
}

/// The base environment with later lists over earlier ones; `term` only with a terminal.
pub fn environment(over: &[&[(String, String)]], term: Option<&str>) -> Environment {
    let base = [
        ("PATH", PATH),
        ("HOME", HOME),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("LANG", "C.UTF-8"),
    ];
    let mut environment: Environment = base
        .into_iter()
        .chain(term.map(|term| ("TERM", term)))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let usable = over.iter().copied().flatten().filter(|(name, value)| {
        !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
    });
    environment.extend(usable.cloned());
    environment
}

/// Finds the program that the first argument means; an empty list means root's shell.
///
/// # Errors
/// [`AgentFailureKind::NotFound`] or [`AgentFailureKind::NotExecutable`], as a shell
/// tells them apart.
pub fn find(argv: &[String], environment: &Environment) -> Result<Launch, AgentFailure> {
    let Some(name) = argv.first() else {
        return login_shell(Path::new("/etc/passwd"));
    };
    let plain = |program: PathBuf| Launch {
        program,
        arg0: name.into(),
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        return check(&path).map(|()| plain(path));
    }
    let mut refused = not_found(name);
    if name.is_empty() {
        return Err(refused);
    }
    let path = environment.get("PATH").map_or(PATH, String::as_str);
    for folder in path.split(':') {
        let candidate = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(plain(candidate)),
            Err(failure) if failure.kind == AgentFailureKind::NotExecutable => refused = failure,
            _ => {}
        }
    }
    Err(refused)
}

/// What an error of executing an existing program means.
pub fn explain(program: &Path, error: &io::Error) -> AgentFailure {
    let why = match error.kind() {
        // It was found a moment ago, so what is missing is what it names.
        io::ErrorKind::NotFound => "its interpreter or loader does not exist".to_owned(),
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            "it is neither a program for this machine nor a script with #!".to_owned()
        }
        _ => error.to_string(),
    };
    AgentFailure {
        kind: AgentFailureKind::NotExecutable,
        what: format!("execute {}: {why}", program.display()),
    }
}

/// The directory that a command starts in. The request's own must exist; the VM's may
/// have gone, or not be there yet.
///
/// # Errors
/// [`AgentFailureKind::Workdir`].
pub fn directory(wanted: Option<&str>, of_vm: Option<&str>) -> Result<PathBuf, AgentFailure> {
    if let Some(wanted) = wanted {
        let is_fit = wanted.starts_with('/') && Path::new(wanted).is_dir();
        return match is_fit {
            true => Ok(PathBuf::from(wanted)),
            false => Err(AgentFailure {
                kind: AgentFailureKind::Workdir,
                what: format!("enter {wanted}: it is no directory of the guest"),
            }),
        };
    }
    let found = of_vm
        .into_iter()
        .chain([HOME])
        .find(|path| Path::new(path).is_dir());
    Ok(PathBuf::from(found.unwrap_or("/")))
}

fn check(path: &Path) -> Result<(), AgentFailure> {
    let Ok(found) = fs::metadata(path) else {
        return Err(not_found(&path.display().to_string()));
    };
    let refuse = |why: &str| {
        Err(AgentFailure {
            kind: AgentFailureKind::NotExecutable,
            what: format!("execute {}: {why}", path.display()),
        })
    };
    match (found.is_file(), found.permissions().mode() & 0o111) {
        (true, 0) => refuse("it has no permission to be executed"),
        (true, _) => Ok(()),
        (false, _) => refuse("it is no file"),
    }
}

fn not_found(name: &str) -> AgentFailure {
    AgentFailure {
        kind: AgentFailureKind::NotFound,
        what: format!("execute {name}: there is no such program in the guest"),
    }
}

/// A login shell is told so by a dash before its name.
fn login_shell(passwd: &Path) -> Result<Launch, AgentFailure> {
    let text = fs::read_to_string(passwd).unwrap_or_default();
    let of_root = text.lines().find(|line| line.starts_with("root:"));
    let configured = of_root.and_then(|line| line.split(':').nth(6));
    let shell = configured
        .into_iter()
        .chain(SHELLS)
        .map(PathBuf::from)
        .find(|path| path.is_absolute() && check(path).is_ok());
    let program = shell.ok_or_else(|| AgentFailure {
        kind: AgentFailureKind::NotFound,
        what: "start a shell: the image has none; name a program to run".to_owned(),
    })?;
    let name = program.file_name().expect("a checked file has a name");
    let mut arg0 = OsString::from("-");
    arg0.push(name);
    Ok(Launch { program, arg0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn later_environments_win_and_the_base_is_there() {
        let vm = list(&[("EDITOR", "vi"), ("LANG", "de_DE.UTF-8")]);
        let request = list(&[("EDITOR", "ed"), ("BAD=NAME", "x"), ("", "y")]);
        let environment = environment(&[&vm, &request], Some("xterm-256color"));
        assert_eq!(environment["EDITOR"], "ed");
        assert_eq!(environment["LANG"], "de_DE.UTF-8");
        assert_eq!(environment["HOME"], "/root");
        assert_eq!(environment["TERM"], "xterm-256color");
        assert!(!environment.contains_key("BAD=NAME"));
    }

    #[test]
    fn programs_are_searched_along_the_given_path() {
        let environment = environment(&[], None);
        let launch = find(&["sh".to_owned()], &environment).unwrap();
        assert!(launch.program.ends_with("sh") && launch.program.is_absolute());
        let failure = find(&["no-such-program".to_owned()], &environment).unwrap_err();
        assert_eq!(failure.kind, AgentFailureKind::NotFound);
        assert_eq!(
            find(&[String::new()], &environment).unwrap_err().kind,
            AgentFailureKind::NotFound
        );
    }

    #[test]
    fn a_file_without_permission_and_a_folder_are_not_executable() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plain");
        fs::write(&file, "").unwrap();
        let by_path = [file.to_str().unwrap().to_owned()];
        let environment = list(&[("PATH", dir.path().to_str().unwrap())])
            .into_iter()
            .collect();
        for argv in [by_path, ["plain".to_owned()], ["/usr".to_owned()]] {
            let failure = find(&argv, &environment).unwrap_err();
            assert_eq!(failure.kind, AgentFailureKind::NotExecutable, "{argv:?}");
        }
    }

    #[test]
    fn roots_shell_is_taken_from_passwd_when_it_can_be_executed() {
        let dir = tempfile::tempdir().unwrap();
        let passwd = dir.path().join("passwd");
        fs::write(
            &passwd,
            "daemon:x:1:1::/:/none\nroot:x:0:0:root:/root:/bin/sh\n",
        )
        .unwrap();
        assert_eq!(login_shell(&passwd).unwrap().arg0, "-sh");
        fs::write(&passwd, "root:x:0:0:root:/root:/none\n").unwrap();
        assert_eq!(login_shell(&passwd).unwrap().arg0, "-bash");
    }

    #[test]
    fn a_wanted_directory_must_exist_and_the_vms_may_have_gone() {
        let failure = directory(Some("/no/such"), None).unwrap_err();
        assert_eq!(failure.kind, AgentFailureKind::Workdir);
        assert!(directory(Some("usr"), None).is_err());
        assert_eq!(directory(None, Some("/usr")).unwrap(), Path::new("/usr"));
        assert_ne!(
            directory(None, Some("/no/such")).unwrap(),
            Path::new("/no/such")
        );
    }
}
