//! Lists a folder of the host as the entries of a file system owned by root.
//!
//! For trees of our own making (a kernel's modules): owners become 0:0, permissions
//! 0755 and 0644, times nothing later than a given one, so that it does not matter who
//! unpacked the tree and when.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mkext4::Meta;

use super::ext4::{Contents, Entry, Node};
use super::job::at;
use crate::failure::Failure;

/// A folder's entries, and the way back to its files.
pub struct Tree {
    root: PathBuf,
    /// Sorted by path, parents first.
    pub entries: Vec<Entry>,
}

impl Tree {
    /// Lists a folder; `latest` bounds every time, seconds since the epoch.
    ///
    /// # Errors
    /// Something cannot be read, is neither file, folder nor link, or has a name that
    /// is not UTF-8.
    pub fn list(root: &Path, latest: i64) -> Result<Tree, Failure> {
        let mut tree = Tree {
            root: root.to_owned(),
            entries: Vec::new(),
        };
        tree.add(String::new(), latest)?;
        Ok(tree)
    }

    fn add(&mut self, path: String, latest: i64) -> Result<(), Failure> {
        let host = self.root.join(&path);
        let facts = fs::symlink_metadata(&host).map_err(at("read", &host))?;
        let is_folder = facts.is_dir();
        let node = if is_folder {
            Node::Directory
        } else if facts.is_symlink() {
            let target = fs::read_link(&host).map_err(at("read", &host))?;
            Node::Symlink(text(target.as_os_str())?)
        } else if facts.is_file() {
            Node::File(facts.len())
        } else {
            let what = format!("list {}", host.display());
            return Err(Failure::failed(what).because("it is a device, pipe or socket"));
        };
        let mode = match node {
            Node::Directory => 0o755,
            Node::Symlink(_) => 0o777,
            _ => 0o644,
        };
        self.entries.push(Entry {
            path: path.clone(),
            node,
            meta: Meta::new(mode, 0, 0, (facts.mtime().min(latest), 0)),
            xattrs: Vec::new(),
        });
        if is_folder {
            for name in names(&host)? {
                let below = match path.is_empty() {
                    true => name,
                    false => format!("{path}/{name}"),
                };
                self.add(below, latest)?;
            }
        }
        Ok(())
    }
}

fn names(folder: &Path) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(at("read", folder))? {
        let entry = entry.map_err(at("read", folder))?;
        names.push(text(&entry.file_name())?);
    }
    names.sort();
    Ok(names)
}

fn text(name: &std::ffi::OsStr) -> Result<String, Failure> {
    name.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::failed(format!("list {}", name.display())).because("the name is not UTF-8")
    })
}

impl Contents for Tree {
    fn give(
        &mut self,
        number: usize,
        consume: &mut dyn FnMut(&mut dyn Read) -> mkext4::Result<()>,
    ) -> mkext4::Result<()> {
        consume(&mut File::open(self.root.join(&self.entries[number].path))?)
    }
}
