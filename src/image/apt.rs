//! Debian's archive by apt, with lists and downloads of our own.
//!
//! apt checks the signatures; we give it directories under the cache, so that it works
//! for an ordinary user, on a machine whose package lists are empty, and without
//! touching the host's. The host's sources, keyrings and proxy settings are used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::job::{Job, at};
use super::lock::{self, Locked};
use super::{program, sources};
use crate::failure::Failure;

/// Our private apt: exists while its lock is held, with fresh package lists.
pub struct Apt<'a> {
    job: &'a Job<'a>,
    root: PathBuf,
    /// The sources of the suite, as a deb822 file.
    pub sources: PathBuf,
    _lock: Locked,
}

/// A version of a package, as the archive has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl<'a> Apt<'a> {
    /// Fetches the lists of a suite and its updates from the host's mirror.
    ///
    /// # Errors
    /// No apt, no source for the suite, no network, a bad signature; cancelled.
    pub fn open(job: &'a Job<'a>, suite: &str) -> Result<Apt<'a>, Failure> {
        let root = job.layout.apt().join(suite);
        for folder in ["lists/partial", "archives/partial"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(at("create", &path))?;
        }
        let lock = lock::lock(job, &root.join("lock"), "another use of apt")?;
        let sources = root.join("debian.sources");
        let text = sources::of_this_host(suite)?;
        fs::write(&sources, text).map_err(at("write", &sources))?;
        // No package is installed on the host, as far as this apt is concerned.
        let status = root.join("status");
        fs::write(&status, "").map_err(at("write", &status))?;
        let apt = Apt {
            job,
            root,
            sources,
            _lock: lock,
        };
        job.stage("read package lists", suite);
        let mut update = apt.command("apt-get")?;
        // Without it apt 2.6 answers 0 when it could not reach the mirror.
        update.args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]);
        let what = format!("update the package lists of Debian {suite}");
        program::run(job, &what, update, None, &mut |line| {
            log::debug!("apt: {line}")
        })
        .map_err(|failure| match failure.hint {
            Some(_) => failure,
            None => failure
                .hint("Check that `apt-get update` works on this host, and the network with it."),
        })?;
        Ok(apt)
    }

    fn command(&self, name: &str) -> Result<Command, Failure> {
        let mut command = program::command(name, "apt")?;
        let root = &self.root;
        let nowhere = Path::new("/dev/null").to_path_buf();
        program::options(
            &mut command,
            [
                ("Dir::State", root.clone()),
                ("Dir::State::lists", root.join("lists")),
                ("Dir::State::status", root.join("status")),
                ("Dir::Cache", root.clone()),
                ("Dir::Cache::archives", root.join("archives")),
                ("Dir::Etc::sourcelist", self.sources.clone()),
                ("Dir::Etc::sourceparts", nowhere.clone()),
                ("Dir::Etc::preferences", nowhere.clone()),
                ("Dir::Etc::preferencesparts", nowhere),
            ],
        );
        program::options(
            &mut command,
            [
                ("APT::Architecture", "amd64"),
                // Our directories are closed to apt's own user.
                ("APT::Sandbox::User", "root"),
                // We hold a lock of our own, and take none of the host's.
                ("Debug::NoLocking", "1"),
                // Only package indexes: no icons, translations or file lists.
                ("Acquire::Languages", "none"),
                // A mirror that stalls is asked again; apt's own 120 s are a build's time.
                ("Acquire::http::Timeout", "20"),
                ("Acquire::https::Timeout", "20"),
                ("Acquire::Retries", "3"),
                (
                    "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
                    "false",
                ),
                (
                    "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled",
                    "false",
                ),
            ],
        );
        Ok(command)
    }

    /// The newest version of a package that depends on the concrete one: what a meta
    /// package such as `linux-image-cloud-amd64` points to.
    ///
    /// # Errors
    /// The archive has no such package, or it depends on nothing with that prefix.
    pub fn behind(&self, meta: &str, prefix: &str) -> Result<Package, Failure> {
        let mut show = self.command("apt-cache")?;
        show.args(["show", "--no-all-versions", meta]);
        let what = format!("look up package {meta}");
        let output = program::run(self.job, &what, show, None, &mut |_| ())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        concrete(&text, prefix).ok_or_else(|| {
            Failure::failed(what).because(format!("it depends on no package named {prefix}…"))
        })
    }

    /// Fetches the package behind `meta`, unless it is there already with the right
    /// digest; older ones are removed.
    ///
    /// # Errors
    /// No network, a wrong digest, a full disk; cancelled.
    pub fn download(&self, meta: &str, package: &Package) -> Result<PathBuf, Failure> {
        let folder = self.root.join("archives").join(meta);
        fs::create_dir_all(&folder).map_err(at("create", &folder))?;
        let Package { name, version } = package;
        self.job
            .stage("download the kernel", format!("{name} {version}"));
        let mut download = self.command("apt-get")?;
        download.current_dir(&folder);
        download.args(["-q", "download", &format!("{name}={version}")]);
        let what = format!("download package {name} {version}");
        program::run(self.job, &what, download, None, &mut |_| ())?;
        only_deb(&folder, package)
    }

    /// When the newest of the suite's lists was made: seconds since the epoch.
    ///
    /// # Errors
    /// The lists cannot be read or hold no date.
    pub fn snapshot_time(&self) -> Result<u64, Failure> {
        let folder = self.root.join("lists");
        let files = fs::read_dir(&folder).map_err(at("read", &folder))?;
        let dates = files
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().ends_with("InRelease"))
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .filter_map(|text| release_date(&text));
        dates.max().ok_or_else(|| {
            Failure::failed(format!("find a date in {}/*InRelease", folder.display()))
                .hint("Delete that folder and try again.")
        })
    }
}

/// The file that apt-get leaves for a package, downloads of other versions removed.
fn only_deb(folder: &Path, package: &Package) -> Result<PathBuf, Failure> {
    let name = format!(
        "{}_{}_amd64.deb",
        package.name,
        package.version.replace(':', "%3a")
    );
    let files = fs::read_dir(folder).map_err(at("read", folder))?;
    for entry in files.flatten() {
        if entry.file_name() != *name {
            let path = entry.path();
            fs::remove_file(&path).map_err(at("remove", &path))?;
        }
    }
    Ok(folder.join(name))
}

/// Finds `prefix… (= version)` in the Depends field of `apt-cache show`'s answer.
fn concrete(shown: &str, prefix: &str) -> Option<Package> {
    let depends = shown
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?;
    let wanted = depends
        .split(',')
        .map(str::trim)
        .find(|dependency| dependency.starts_with(prefix))?;
    let (name, version) = wanted.split_once(" (= ")?;
    Some(Package {
        name: name.to_owned(),
        version: version.strip_suffix(')')?.to_owned(),
    })
}

/// The `Date:` of a Release file, seconds since the epoch.
fn release_date(release: &str) -> Option<u64> {
    let date = release
        .lines()
        .find_map(|line| line.strip_prefix("Date:"))?
        .trim();
    let date = jiff::fmt::rfc2822::parse(&date.replace("UTC", "+0000")).ok()?;
    u64::try_from(date.timestamp().as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_names_the_concrete_one() {
        let shown = "Package: linux-image-cloud-amd64\nVersion: 6.1.7-1\nDepends: foo, linux-image-6.1.0-9-cloud-amd64 (= 6.1.7-1)\n";
        let package = concrete(shown, "linux-image-").unwrap();
        assert_eq!(package.name, "linux-image-6.1.0-9-cloud-amd64");
        assert_eq!(package.version, "6.1.7-1");
        assert_eq!(concrete("Package: x\n", "linux-image-"), None);
    }

    #[test]
    fn a_release_date_becomes_seconds() {
        let text = "Origin: Debian\nDate: Sat, 10 Jan 2026 09:58:05 UTC\n";
        assert_eq!(release_date(text), Some(1_768_039_085));
        assert_eq!(release_date("Origin: Debian\n"), None);
    }
}
