//! Makes the tar stream that a guest unpacks: a shallow `.git` of its own, and the
//! working tree's files as they are now.
//!
//! The `.git` is staged by `git fetch --depth` over `file://`, which runs nothing of
//! the repository and takes only what is reachable. Its index and the record of what
//! was sent are made by `sent`.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tar::{EntryType, Header};

use super::depth::Depth;
use super::inspect::Workspace;
use super::{BASE_REF, git, sent};
use crate::failure::Failure;

/// A staged `.git`, removed when dropped; one whose process was killed is removed by
/// the next that stages, since nobody holds its lock.
#[derive(Debug)]
pub struct Staged {
    folder: PathBuf,
    _lock: OwnedFd,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Left over, it is swept by the next one.
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// Makes the `.git` for a workspace below `cache`, and reads every file that goes along.
///
/// # Errors
/// git failed, a file cannot be read, or the disk is full.
pub fn stage(workspace: &Workspace, depth: Depth, cache: &Path) -> Result<Staged, Failure> {
    let staging = cache.join("staging");
    let failed = |error: io::Error| {
        Failure::failed(format!("make a directory in {}", staging.display())).because(error)
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&staging)
        .map_err(failed)?;
    sweep(&staging);
    let staged = make_folder(&staging).map_err(failed)?;
    init(workspace, &staged.folder)?;
    match workspace.head {
        Some(_) => fetch(workspace, depth, &staged.folder)?,
        None => start_empty(&staged.folder)?,
    }
    sent::record(workspace, &staged.folder)?;
    Ok(staged)
}

fn make_folder(staging: &Path) -> io::Result<Staged> {
    let mut number = 0_u32;
    loop {
        let folder = staging.join(format!("{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {
                let lock: OwnedFd = File::open(&folder)?.into();
                rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
                return Ok(Staged {
                    folder,
                    _lock: lock,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Removes what killed processes have left.
fn sweep(staging: &Path) {
    let Ok(entries) = std::fs::read_dir(staging) else {
        return;
    };
    for entry in entries.flatten() {
        let free = File::open(entry.path()).is_ok_and(|folder| {
            rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok()
        });
        // A process between mkdir and flock has an empty folder: rmdir alone would take
        // it away too, so only what has content is swept.
        if free && std::fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_some()) {
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
}

/// An empty repository of the same kind, on the same branch, with the real origin.
fn init(workspace: &Workspace, folder: &Path) -> Result<(), Failure> {
    let format = git::run(&workspace.root, &["rev-parse", "--show-object-format"])?;
    let format = git::line(&format).unwrap_or_else(|| "sha1".to_owned());
    let format = format!("--object-format={format}");
    git::run(folder, &["init", "--quiet", "--template=", &format])?;
    if let Some(branch) = &workspace.branch {
        let head = format!("refs/heads/{branch}");
        git::run(folder, &["symbolic-ref", "HEAD", &head])?;
    }
    if let Some(origin) = &workspace.origin {
        git::run(folder, &["remote", "add", "origin", origin])?;
    }
    // How the files were written decides what git takes for a change of them.
    for key in ["core.fileMode", "core.autocrlf", "core.eol"] {
        let value = git::try_run(&workspace.root, &["config", "--get", key])?;
        match git::line(&value.stdout) {
            Some(value) => git::run(folder, &["config", key, &value])?,
            None => Vec::new(),
        };
    }
    Ok(())
}

/// Without a commit the start to be remembered is the empty tree.
fn start_empty(folder: &Path) -> Result<(), Failure> {
    let tree = git::run(folder, &["hash-object", "-w", "-t", "tree", "--stdin"])?;
    let tree = git::line(&tree).unwrap_or_default();
    git::run(folder, &["update-ref", BASE_REF, &tree])?;
    Ok(())
}

/// The other end of a fetch looks at who owns the `.git`, not the files: leave that the
/// user gave for the latter, and that `inspect` has seen, would not do for it.
const UPLOAD_PACK: &str = "--upload-pack=git -c 'safe.directory=*' upload-pack";

/// The commit that HEAD means, with some history, as the branch or detached. Not
/// `git clone`: that guesses a branch for a detached HEAD.
fn fetch(workspace: &Workspace, depth: Depth, folder: &Path) -> Result<(), Failure> {
    let depth = format!("--depth={}", depth.number());
    let url = file_url(&workspace.root);
    let refspec = format!("+HEAD:{BASE_REF}");
    git::run(
        folder,
        &[
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            UPLOAD_PACK,
            &depth,
            &url,
            &refspec,
        ],
    )?;
    match workspace.branch {
        Some(_) => git::run(folder, &["update-ref", "HEAD", BASE_REF])?,
        None => git::run(folder, &["update-ref", "--no-deref", "HEAD", BASE_REF])?,
    };
    Ok(())
}

/// `file://` with everything escaped that git would read as part of a URL.
fn file_url(path: &Path) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(byte);
    let escape = |byte: &u8| match plain(byte) {
        true => char::from(*byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    let path: String = path.as_os_str().as_bytes().iter().map(escape).collect();
    format!("file://{path}")
}

/// Writes the archive: `.git` first, then the files.
///
/// # Errors
/// A file cannot be read, or `out` takes no more.
pub fn write(workspace: &Workspace, staged: &Staged, out: impl Write) -> Result<(), Failure> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, out));
    add_folder(&mut archive, &staged.folder, Path::new(".git"))?;
    for submodule in workspace.submodules.iter().filter(|module| module.present) {
        add_empty(&mut archive, &workspace.root, &submodule.path)?;
    }
    for file in &workspace.files {
        add(&mut archive, &workspace.root, file)?;
    }
    let failed = |error| Failure::failed("pack the workspace").because(error);
    let mut out = archive.into_inner().map_err(failed)?;
    out.flush().map_err(failed)
}

fn add_folder<W: Write>(
    archive: &mut tar::Builder<W>,
    root: &Path,
    folder: &Path,
) -> Result<(), Failure> {
    let full = root.join(folder);
    add_empty(archive, root, folder)?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&full).map_err(unpacked(&full))? {
        let entry = entry.map_err(unpacked(&full))?;
        let kind = entry.file_type().map_err(unpacked(&full))?;
        names.push((entry.file_name(), kind.is_dir()));
    }
    names.sort();
    for (name, is_folder) in names {
        match is_folder {
            true => add_folder(archive, root, &folder.join(name))?,
            false => add(archive, root, &folder.join(name))?,
        }
    }
    Ok(())
}

/// A directory without what is in it.
fn add_empty<W: Write>(
    archive: &mut tar::Builder<W>,
    root: &Path,
    folder: &Path,
) -> Result<(), Failure> {
    let full = root.join(folder);
    let made = std::fs::metadata(&full).map_err(unpacked(&full))?;
    let mut header = header(EntryType::Directory, 0o755, made.mtime());
    archive
        .append_data(&mut header, folder, io::empty())
        .map_err(unpacked(&full))
}

/// What to say of a file or folder that cannot go along.
fn unpacked(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::failed(format!("pack {}", path.display())).because(error)
}

fn header(kind: EntryType, mode: u32, modified: i64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(modified).unwrap_or(0));
    header.set_size(0);
    header
}

/// Adds a file or a link. One that has gone since the list was made is left out, as
/// if it had been deleted before.
fn add<W: Write>(archive: &mut tar::Builder<W>, root: &Path, path: &Path) -> Result<(), Failure> {
    let full = root.join(path);
    let failed = unpacked(&full);
    let found = match std::fs::symlink_metadata(&full) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if found.is_symlink() {
        let target = std::fs::read_link(&full).map_err(&failed)?;
        let mut header = header(EntryType::Symlink, 0o777, found.mtime());
        return archive
            .append_link(&mut header, path, target)
            .map_err(&failed);
    }
    // NOFOLLOW and NONBLOCK: what is no regular file any more is not waited for.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(&full)
        .map_err(&failed)?;
    let found = file.metadata().map_err(&failed)?;
    if !found.is_file() {
        return Ok(());
    }
    let mut header = header(EntryType::Regular, found.mode() & 0o777, found.mtime());
    header.set_size(found.len());
    let content = Exactly {
        file,
        left: found.len(),
    };
    archive
        .append_data(&mut header, path, content)
        .map_err(&failed)
}

/// A file as long as its header says, whatever happens to it meanwhile: cut when it
/// grows, filled with zeros when it shrinks. Anything else would break the archive.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let buffer_length = buffer.len().min(most);
        let buffer = &mut buffer[..buffer_length];
        let mut count = self.file.read(buffer)?;
        if count == 0 {
            buffer.fill(0);
            count = buffer.len();
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::inspect::{Untracked, inspect};
    use crate::workspace::samples::{Repository, git, round_trip, round_trip_of};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn uncommitted_changes_arrive_as_such() {
        let repository = Repository::new();
        for file in ["same", "changed", "deleted"] {
            repository.write(file, "one\n");
        }
        repository.commit("one");
        repository.write("changed", "two\n");
        repository.write("untracked", "x");
        std::fs::remove_file(repository.path().join("deleted")).unwrap();
        let target = round_trip(&repository, Untracked::Leave);
        let status = git(target.path(), &["status", "--porcelain", "--branch"]);
        assert_eq!(status, "## main\n M changed\n D deleted\n");
        let target = round_trip(&repository, Untracked::Include);
        assert!(git(target.path(), &["status", "--porcelain"]).contains("?? untracked"));
    }

    #[test]
    fn history_is_ten_commits_and_the_start_is_remembered() {
        let repository = Repository::new();
        for number in 0..13 {
            repository.write("file", &number.to_string());
            repository.commit(&number.to_string());
        }
        let target = round_trip(&repository, Untracked::Leave);
        assert_eq!(git(target.path(), &["rev-list", "--count", "HEAD"]), "10\n");
        let base = git(target.path(), &["rev-parse", BASE_REF]);
        assert_eq!(base, git(repository.path(), &["rev-parse", "HEAD"]));
        assert!(git(target.path(), &["fsck"]).is_empty());
        assert!(git(target.path(), &["remote"]).is_empty());
    }

    #[test]
    fn depth_is_a_number_of_commits_or_all() {
        let repository = Repository::new();
        for number in 0..13 {
            repository.write("file", &number.to_string());
            repository.commit(&number.to_string());
        }
        let count = |from: &Path, depth: &str| {
            let target = round_trip_of(from, Untracked::Leave, depth.parse().unwrap());
            let shallow = target.path().join(".git/shallow").exists();
            (
                git(target.path(), &["rev-list", "--count", "HEAD"]),
                shallow,
            )
        };
        assert_eq!(count(repository.path(), "1"), ("1\n".to_owned(), true));
        assert_eq!(count(repository.path(), "all"), ("13\n".to_owned(), false));
        // What is itself only a part gives all that it has.
        let part = round_trip_of(repository.path(), Untracked::Leave, "12".parse().unwrap());
        assert_eq!(count(part.path(), "all"), ("12\n".to_owned(), true));
    }

    #[test]
    fn files_added_and_moved_at_home_are_so_in_the_guest() {
        let repository = Repository::new();
        for file in ["moved", "kept", "removed", "untracked again"] {
            repository.write(file, "one\n");
        }
        repository.commit("one");
        repository.write("new", "staged\n");
        git(repository.path(), &["add", "new"]);
        repository.write("new", "and changed\n");
        git(repository.path(), &["mv", "moved", "to"]);
        git(repository.path(), &["rm", "--quiet", "removed"]);
        git(
            repository.path(),
            &["rm", "--quiet", "--cached", "untracked again"],
        );
        let target = round_trip(&repository, Untracked::Leave);
        let status = git(target.path(), &["status", "--porcelain", "--no-renames"]);
        assert_eq!(
            status,
            "D  moved\nA  new\nD  removed\nA  to\nD  \"untracked again\"\n"
        );
        let content = git(target.path(), &["show", ":new"]);
        assert_eq!(content, "and changed\n");
        assert!(git(target.path(), &["diff", "HEAD", "--stat"]).contains("new"));
        assert!(git(target.path(), &["fsck"]).is_empty());
    }

    #[test]
    fn files_and_submodules_that_stay_are_no_changes_in_the_guest() {
        let repository = Repository::with_all_that_stays();
        let target = round_trip(&repository, Untracked::Leave);
        assert_eq!(git(target.path(), &["status", "--porcelain"]), "");
        assert!(target.path().join("module").is_dir());
        assert!(!target.path().join("module/file").exists());
        assert!(!target.path().join("sparse").exists());
        repository.write("file", "changed\n");
        let target = round_trip(&repository, Untracked::Leave);
        let identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"];
        let commit = [&identity[..], &["commit", "--quiet", "-am", "two"]].concat();
        git(target.path(), &commit);
        let changed = git(target.path(), &["diff", "--name-status", BASE_REF, "HEAD"]);
        assert_eq!(changed, "M\tfile\n");
    }

    #[test]
    fn how_files_were_written_at_home_is_known_in_the_guest() {
        let repository = Repository::new();
        git(repository.path(), &["config", "core.autocrlf", "true"]);
        git(repository.path(), &["config", "core.fileMode", "false"]);
        repository.write("file", "one\r\n");
        repository.commit("one");
        let file = repository.path().join("file");
        std::fs::set_permissions(file, PermissionsExt::from_mode(0o755)).unwrap();
        let target = round_trip(&repository, Untracked::Leave);
        assert_eq!(git(target.path(), &["status", "--porcelain"]), "");
    }

    #[test]
    fn damage_below_head_is_found_while_staging() {
        let repository = Repository::new();
        repository.write("file", "x");
        repository.commit("one");
        let tree = git(repository.path(), &["rev-parse", "HEAD^{tree}"]);
        let (folder, name) = tree.trim().split_at(2);
        let object = repository.path().join(".git/objects").join(folder);
        std::fs::remove_file(object.join(name)).unwrap();
        let workspace = inspect(repository.path(), Untracked::Leave).unwrap();
        let cache = tempfile::tempdir().unwrap();
        assert!(stage(&workspace, Depth::DEFAULT, cache.path()).is_err());
    }

    #[test]
    fn origin_is_the_real_one() {
        let repository = Repository::new();
        repository.write("file", "x");
        repository.commit("one");
        let url = "https://example.org/x.git";
        git(repository.path(), &["remote", "add", "origin", url]);
        let target = round_trip(&repository, Untracked::Leave);
        assert_eq!(
            git(target.path(), &["remote", "get-url", "origin"]).trim(),
            url
        );
    }

    #[test]
    fn modes_links_and_long_or_odd_names_survive() {
        use std::os::unix::ffi::OsStringExt;
        let repository = Repository::new();
        repository.write("run.sh", "#!/bin/sh\n");
        let script = repository.path().join("run.sh");
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("run.sh", repository.path().join("link")).unwrap();
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
        repository.write(&long, "x");
        let odd = std::ffi::OsString::from_vec(b"odd\n\xff".to_vec());
        std::fs::write(repository.path().join(&odd), "x").unwrap();
        repository.commit("one");
        let target = round_trip(&repository, Untracked::Leave);
        assert_eq!(git(target.path(), &["status", "--porcelain"]), "");
        let mode = std::fs::metadata(target.path().join("run.sh"))
            .unwrap()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(target.path().join("link").is_symlink());
        assert!(target.path().join(odd).is_file());
        assert!(target.path().join(long).is_file());
    }

    #[test]
    fn an_empty_repository_keeps_its_branch() {
        let repository = Repository::new();
        repository.write("file", "x");
        let target = round_trip(&repository, Untracked::Include);
        let status = git(target.path(), &["status", "--porcelain", "--branch"]);
        assert_eq!(status, "## No commits yet on main\n?? file\n");
        assert_eq!(git(target.path(), &["ls-tree", BASE_REF]), "");
    }

    #[test]
    fn a_detached_head_stays_detached() {
        let repository = Repository::new();
        repository.write("file", "x");
        repository.commit("one");
        git(repository.path(), &["checkout", "--quiet", "--detach"]);
        let target = round_trip(&repository, Untracked::Leave);
        assert_eq!(
            git(target.path(), &["status", "--porcelain", "--branch"]),
            "## HEAD (no branch)\n"
        );
    }

    #[test]
    fn hooks_of_the_repository_are_neither_run_nor_copied() {
        let repository = Repository::new();
        repository.write("file", "x");
        repository.commit("one");
        let hooks = repository.path().join(".git/hooks");
        std::fs::create_dir_all(&hooks).unwrap();
        let ran = repository.path().join("ran");
        for hook in [
            "post-checkout",
            "post-index-change",
            "reference-transaction",
        ] {
            let script = format!("#!/bin/sh\ntouch {}\n", ran.display());
            std::fs::write(hooks.join(hook), script).unwrap();
            std::fs::set_permissions(hooks.join(hook), PermissionsExt::from_mode(0o755)).unwrap();
        }
        let target = round_trip(&repository, Untracked::Leave);
        assert!(!ran.exists());
        assert!(!target.path().join(".git/hooks").exists());
    }

    #[test]
    fn a_repository_at_an_odd_path_can_be_fetched_from() {
        assert_eq!(
            file_url(Path::new("/a b/%41?#")),
            "file:///a%20b/%2541%3F%23"
        );
        let repository = Repository::below("with %41 and ?");
        repository.write("file", "x");
        repository.commit("one");
        let target = round_trip(&repository, Untracked::Leave);
        assert_eq!(git(target.path(), &["status", "--porcelain"]), "");
    }

    #[test]
    fn what_a_killed_process_left_is_swept() {
        let repository = Repository::new();
        let workspace = inspect(repository.path(), Untracked::Leave).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let left = cache.path().join("staging/1-0/.git");
        std::fs::create_dir_all(&left).unwrap();
        let staged = stage(&workspace, Depth::DEFAULT, cache.path()).unwrap();
        assert!(!left.exists());
        // One that is in use stays.
        drop(stage(&workspace, Depth::DEFAULT, cache.path()).unwrap());
        assert!(staged.folder.join(".git").is_dir());
    }

    #[test]
    fn a_file_that_changes_its_length_does_not_break_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        let read = |left| {
            let mut bytes = Vec::new();
            let file = File::open(&path).unwrap();
            Exactly { file, left }.read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(read(2), b"ab");
        assert_eq!(read(5), b"abc\0\0");
    }
}
