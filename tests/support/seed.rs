//! Images for tests: pulled or built once per machine, then linked into each test.
//!
//! A seed is a state directory that a daemon of the binary under test has filled. It
//! is named by what decides on its content, so that a change to a recipe, the
//! catalog or the store's rows makes a new one.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use super::{Banger, room};

/// Where images and rooms of tests are kept between runs.
pub fn cache_root() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    set("BANGER_TEST_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("banger-test")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/banger-test")))
        .unwrap_or_else(|| PathBuf::from("/var/tmp/banger-test"))
}

/// The cache directory of every seeded test: initrds, templates, packages.
pub fn shared_cache() -> PathBuf {
    cache_root().join("cache")
}

/// Where scripts/setup.sh puts what it builds.
pub fn tools() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    set("BANGER_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("banger")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/banger")))
        .unwrap_or_default()
        .join("tools/bin")
}

/// The first program of this name where banger looks for its tools.
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push(tools());
    folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// A state directory that holds these images; made if it is not there yet.
pub fn prepare(images: &[&str]) -> PathBuf {
    let folder = cache_root().join("seeds");
    fs::create_dir_all(&folder).expect("the test cache takes a folder");
    let seed = folder.join(format!("{}-{:016x}", images.join("+"), fingerprint()));
    if seed.exists() {
        // Whole since it has its name: no need to wait for whoever makes another.
        return seed;
    }
    let lock = File::create(folder.join("lock")).expect("the test cache takes a file");
    lock.lock().expect("a file of ours can be locked");
    if !seed.exists() {
        let banger = Banger::at(room(), shared_cache());
        for image in images {
            banger.ok(&["image", "pull", image]);
        }
        // A first VM brings the kernel and whatever else is fetched on demand.
        banger.ok(&["vm", "run", "--rm", "--image", images[0], "--", "true"]);
        banger.ok(&["daemon", "stop"]);
        let aside = folder.join("new");
        fs::remove_dir_all(&aside).ok();
        link_tree(&banger.state(), &aside);
        fs::rename(&aside, &seed).expect("a folder can be renamed beside itself");
    }
    seed
}

/// Copies a state directory: images and kernels, which never change, by hard link.
pub fn link_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a fresh folder can be made");
    for entry in fs::read_dir(from).expect("a seed can be read") {
        let entry = entry.expect("a seed can be read to its end");
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("an entry has a type");
        let never_changes = source
            .ancestors()
            .any(|path| path.ends_with("images") || path.ends_with("kernels"));
        match (kind.is_dir(), kind.is_file(), never_changes) {
            (true, _, _) => link_tree(&source, &target),
            (_, true, true) => {
                fs::hard_link(&source, &target).expect("rooms and seeds share a file system");
            }
            (_, true, false) => {
                fs::copy(&source, &target).expect("a file of a seed can be copied");
            }
            // Sockets and links belong to the daemon that made them.
            (false, false, _) => {}
        }
    }
}

/// Changes with whatever decides what a pull makes and how it is recorded.
fn fingerprint() -> u64 {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut hasher = DefaultHasher::new();
    let mut open: Vec<PathBuf> = ["images", "catalog", "src/image", "src/store"]
        .iter()
        .map(|folder| root.join(folder))
        .collect();
    let mut files = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => open.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    files.sort();
    for file in files {
        // Relative, so that every checkout of the same sources shares its seeds.
        let name = file.strip_prefix(root);
        name.expect("found below the root").hash(&mut hasher);
        fs::read(&file)
            .expect("a source file can be read")
            .hash(&mut hasher);
    }
    hasher.finish()
}
