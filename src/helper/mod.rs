//! The root helper: carries out the few typed steps that need root for one user's
//! bangerd, and nothing else.
//!
//! ```text
//!  bangerd (owner) --one line--> bangerd-root --> check, derive names, host step --one line-->
//! ```
//!
//! It takes no path, interface, process or rule from anyone: a request names a VM by its
//! identity, and everything else is derived here or read from root's own configuration
//! (see `docs/privileges.md`). Requests are served one after the other; each is bounded
//! in length and time. It keeps no state: what it made is found again by name.

pub mod removal;
pub mod serve;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::Config;
use crate::failure::{Failure, FailureKind};
use crate::host::layout::Layout;
use crate::host::{RealHost, Settings};
use crate::proto::helper::SOCKET;

use serve::Helper;

/// Root's own configuration: the bridge and its network.
const CONFIG: &str = "/etc/banger/config.toml";

/// Serves until a signal ends it, or removes what VMs share.
pub fn main(arguments: &[OsString]) -> ExitCode {
    crate::logging::start("info", None);
    let outcome = match arguments {
        [first, rest @ ..] if first == "remove-network" => {
            require_root().and_then(|()| removal::run(rest))
        }
        _ => parse(arguments).and_then(|options| run(&options)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let hint = failure.hint.as_deref().unwrap_or_default();
            log::error!("{failure}. {hint}");
            ExitCode::from(failure.kind.exit_status())
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    owner: u32,
    socket: PathBuf,
    config: PathBuf,
}

fn parse(arguments: &[OsString]) -> Result<Options, Failure> {
    let usage = |what: String| {
        Failure::usage(what)
            .hint("Type `bangerd-root --owner UID [--socket PATH] [--config PATH]`.")
    };
    let (mut owner, mut socket, mut config) = (None, PathBuf::from(SOCKET), PathBuf::from(CONFIG));
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let name = word.to_string_lossy();
        let value = words
            .next()
            .ok_or_else(|| usage(format!("read option {name}: no value follows")))?;
        match name.as_ref() {
            "--owner" => {
                let text = value.to_string_lossy();
                let uid = text
                    .parse()
                    .map_err(|_| usage(format!("read owner {text:?}: not a user id")))?;
                owner = Some(uid);
            }
            "--socket" => socket = PathBuf::from(value),
            "--config" => config = PathBuf::from(value),
            other => {
                return Err(usage(format!(
                    "read option {other:?}: there is none of this name"
                )));
            }
        }
    }
    match owner {
        Some(owner) => Ok(Options {
            owner,
            socket,
            config,
        }),
        None => Err(usage(
            "start the root helper: whom it serves is not said".to_owned(),
        )),
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    require_root()?;
    let config = Config::read(&options.config)?;
    let listener = listen(options)?;
    let settings = Settings {
        bridge: config.bridge(),
        tap_owner: Some(options.owner),
        ..Settings::default()
    };
    let helper = Helper::new(
        RealHost::new(nowhere(), settings),
        config.subnet(),
        options.owner,
    );
    log::info!(owner = options.owner, socket:% = options.socket.display(); "listening");
    helper.serve(&listener)
}

fn require_root() -> Result<(), Failure> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(
            Failure::new(FailureKind::Denied, "start the root helper: not root")
                .hint("Start it by `sudo bangerd-root --owner $(id -u)`."),
        ),
    }
}

/// No step of the helper's touches a path of a layout; nothing lies in this one.
fn nowhere() -> Layout {
    let nowhere = PathBuf::from("/nonexistent");
    Layout {
        state: nowhere.clone(),
        cache: nowhere.clone(),
        runtime: nowhere,
    }
}

/// The socket belongs to the owner, 0600, in a directory of root's that everybody may
/// pass through and nobody else may write to.
fn listen(options: &Options) -> Result<UnixListener, Failure> {
    let path = &options.socket;
    let failed = |error| Failure::failed(format!("listen on {}", path.display())).because(error);
    let folder = path.parent().unwrap_or(Path::new("/"));
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(folder);
    made.map_err(failed)?;
    if UnixStream::connect(path).is_ok() {
        let what = format!("listen on {}", path.display());
        return Err(
            Failure::new(FailureKind::Busy, what).because("another root helper answers there")
        );
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Nobody may connect between bind and chmod.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener.map_err(failed)?;
    chown(path, Some(options.owner), None).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Options, Failure> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn an_owner_is_needed_and_unknown_options_are_named() {
        let told = options(&["--owner", "1000"]).unwrap();
        assert_eq!((told.owner, told.socket), (1000, PathBuf::from(SOCKET)));
        for (words, part) in [
            (&[] as &[&str], "whom it serves"),
            (&["--owner"], "no value"),
            (&["--owner", "ada"], "not a user id"),
            (&["--path", "/etc"], "--path"),
        ] {
            let failure = options(words).unwrap_err();
            assert!(failure.what.contains(part), "{failure}");
        }
    }
}
