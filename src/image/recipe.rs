//! How an image is made: which packages, and what is changed after they are installed.
//!
//! A recipe is data, `images/NAME/recipe.toml`, compiled in. [`Recipe::arguments`] says
//! what mmdebstrap(1) is to do; [`Recipe::finish`] changes the list of entries that came
//! out of it, so that nothing has to be quoted for a shell and all of it can be tested
//! without building anything.

use std::path::Path;

use mkext4::Meta;
use serde::Deserialize;

use super::ext4::{Entry, Node};
use crate::failure::Failure;

/// Every recipe of this binary by the name of its folder.
const RECIPES: [(&str, &str); 2] = [
    (
        "debian-bookworm",
        include_str!("../../images/debian-bookworm/recipe.toml"),
    ),
    (
        "debian-minimal",
        include_str!("../../images/debian-minimal/recipe.toml"),
    ),
];
/// Where mmdebstrap puts the sources it was given, and where Debian's own tools look.
pub const SOURCES: [&str; 2] = [
    "etc/apt/sources.list.d/0000debian.sources",
    "etc/apt/sources.list.d/debian.sources",
];
/// Makes / a merged-/usr tree from the start: otherwise perl is installed to convert it.
const MERGED_USR: &str = "/usr/share/mmdebstrap/hooks/merged-usr";

/// dpkg's own settings.
const DPKG: &str = "/etc/dpkg/dpkg.cfg.d";

/// Folders where the owners in the tree depend on who built it and where packages were
/// kept.
const ROOTS_OWN: [&str; 2] = ["var/cache/apt/archives", "var/lib/apt/lists"];

/// The data of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The Debian suite.
    pub suite: String,
    /// mmdebstrap's variant: which packages are there unasked.
    pub variant: String,
    /// Room on the disk that building takes, MiB.
    pub room_mib: u64,
    /// What is installed besides.
    pub packages: Vec<String>,
    /// dpkg's path-exclude patterns.
    #[serde(default)]
    pub exclude_paths: Vec<String>,
    /// dpkg's path-include patterns.
    #[serde(default)]
    pub include_paths: Vec<String>,
    /// What is taken away at the end.
    #[serde(default)]
    pub remove: Vec<Remove>,
    /// Links made at the end, in place of what has the name.
    #[serde(default)]
    pub link: Vec<Link>,
    /// Files written at the end, in place of what has the name.
    #[serde(default)]
    pub write: Vec<Write>,
}

/// A path that is taken away with everything below.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remove {
    /// Relative to the root; one `*` stands for any part of the last name.
    pub path: String,
    /// The reason, for readers of the recipe.
    pub why: String,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Relative to the root.
    pub path: String,
    /// Where it points.
    pub target: String,
    /// The reason, for readers of the recipe.
    pub why: String,
}

/// A file, owned by root, mode 0644.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// Relative to the root.
    pub path: String,
    /// What is in it; a line feed at the very beginning is left out.
    pub text: String,
    /// The reason, for readers of the recipe.
    pub why: String,
}

/// The recipe of this name, and its text.
///
/// # Errors
/// There is none (a fault of the catalogue).
pub fn recipe(name: &str) -> Result<(Recipe, &'static str), Failure> {
    let what = format!("read the recipe {name}");
    let (_, text) = RECIPES
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| Failure::bug(&what).because("it is not compiled in"))?;
    let recipe = parse(text).map_err(|error| Failure::bug(&what).because(error))?;
    Ok((recipe, text))
}

fn parse(text: &str) -> Result<Recipe, toml_edit::de::Error> {
    let mut recipe: Recipe = toml_edit::de::from_str(text)?;
    for write in &mut recipe.write {
        if let Some(rest) = write.text.strip_prefix('\n') {
            write.text = rest.to_owned();
        }
    }
    Ok(recipe)
}

/// Who runs mmdebstrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builder {
    /// Root: files get their owners directly.
    Root,
    /// Anybody else: files get their owners inside a user namespace.
    User,
}

impl Recipe {
    /// The arguments for mmdebstrap, which writes a tar to its standard output.
    ///
    /// `packages` is a folder of the host where packages are kept between builds.
    pub fn arguments(&self, builder: Builder, sources: &Path, packages: &Path) -> Vec<String> {
        let kept = packages.display();
        let mut arguments = vec![
            match builder {
                Builder::Root => "--mode=root".to_owned(),
                Builder::User => "--mode=unshare".to_owned(),
            },
            format!("--variant={}", self.variant),
            "--format=tar".to_owned(),
            format!("--hook-dir={MERGED_USR}"),
            "--aptopt=APT::Install-Recommends \"false\"".to_owned(),
            // Keeps the packages that sync-out is to find.
            "--skip=essential/unlink".to_owned(),
            "--setup-hook=mkdir -p \"$1/var/cache/apt/archives\"".to_owned(),
            // The tree is thrown away after a crash: no use in waiting for the disk.
            format!(
                "--setup-hook=mkdir -p \"$1{DPKG}\"; echo force-unsafe-io >\"$1{DPKG}/building\""
            ),
            format!("--customize-hook=rm \"$1{DPKG}/building\""),
            format!("--setup-hook=sync-in {kept} /var/cache/apt/archives"),
            "--customize-hook=APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\" apt-get -q autoclean"
                .to_owned(),
            format!("--customize-hook=sync-out /var/cache/apt/archives {kept}"),
        ];
        let paths =
            |option: &'static str| move |path: &String| format!("--dpkgopt={option}={path}");
        arguments.extend(self.exclude_paths.iter().map(paths("path-exclude")));
        arguments.extend(self.include_paths.iter().map(paths("path-include")));
        if !self.packages.is_empty() {
            arguments.push(format!("--include={}", self.packages.join(",")));
        }
        arguments.extend([
            self.suite.clone(),
            "-".to_owned(),
            sources.display().to_string(),
        ]);
        arguments
    }

    /// Removes, links and writes what the recipe says; returns the texts of the files
    /// written, by path.
    ///
    /// `epoch` is the time of everything new, seconds since the epoch.
    pub fn finish(&self, entries: &mut Vec<Entry>, epoch: i64) -> Vec<(String, String)> {
        for entry in entries.iter_mut() {
            if ROOTS_OWN.iter().any(|folder| matches(folder, &entry.path)) {
                (entry.meta.uid, entry.meta.gid) = (0, 0);
            }
        }
        for Remove { path, .. } in &self.remove {
            let before = entries.len();
            entries.retain(|entry| !matches(path, &entry.path));
            if entries.len() == before {
                log::info!("recipe: there is no {path} to remove");
            }
        }
        for Link { path, target, .. } in &self.link {
            let node = Node::Symlink(target.clone());
            replace(entries, path, node, 0o777, epoch);
        }
        for Write { path, text, .. } in &self.write {
            replace(entries, path, Node::File(text.len() as u64), 0o644, epoch);
        }
        let written = self.write.iter();
        written.map(|w| (w.path.clone(), w.text.clone())).collect()
    }
}

/// Puts an entry in the place of what has its name.
fn replace(entries: &mut Vec<Entry>, path: &str, node: Node, mode: u16, epoch: i64) {
    entries.retain(|entry| !matches(path, &entry.path));
    entries.push(Entry {
        path: path.to_owned(),
        node,
        meta: Meta::new(mode, 0, 0, (epoch, 0)),
        xattrs: Vec::new(),
    });
}

/// Whether a path or a folder above it fits a pattern with at most one `*`, which
/// stands for no slash.
fn matches(pattern: &str, path: &str) -> bool {
    let depth = pattern.split('/').count();
    let parts: Vec<&str> = path.splitn(depth + 1, '/').collect();
    let Some(head) = parts.get(..depth).map(|parts| parts.join("/")) else {
        return false;
    };
    match pattern.split_once('*') {
        None => head == pattern,
        Some((before, after)) => {
            head.len() >= before.len() + after.len()
                && head.starts_with(before)
                && head.ends_with(after)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str) -> Entry {
        Entry {
            path: path.to_owned(),
            node: Node::File(1),
            meta: Meta::new(0o600, 1, 1, (5, 0)),
            xattrs: Vec::new(),
        }
    }

    fn paths(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.path.as_str()).collect()
    }

    #[test]
    fn every_catalogued_recipe_reads_and_gives_reasons() {
        for entry in super::super::catalog::catalog().images {
            let (recipe, _) = recipe(&entry.recipe).unwrap();
            let reasons = (recipe.remove.iter().map(|r| &r.why))
                .chain(recipe.link.iter().map(|l| &l.why))
                .chain(recipe.write.iter().map(|w| &w.why));
            assert!(reasons.into_iter().all(|why| why.len() > 5));
            assert!(recipe.packages.iter().all(|p| !p.contains([',', ' '])));
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let text = "suite = \"x\"\nvariant = \"y\"\nroom_mib = 1\npackages = []\nhook = \"z\"\n";
        assert!(parse(text).unwrap_err().to_string().contains("hook"));
    }

    #[test]
    fn the_pattern_stands_for_one_name_and_all_below() {
        assert!(matches("etc/ssh/ssh_host_*", "etc/ssh/ssh_host_rsa_key"));
        assert!(matches("var/lib/*-old", "var/lib/x-old/below"));
        assert!(matches("a/b", "a/b/c/d"));
        assert!(!matches("a/b", "a/bc"));
        assert!(!matches("a/b", "a"));
        assert!(!matches("var/*-old", "var/lib/x-old"));
    }

    #[test]
    fn finishing_removes_links_and_writes() {
        let text = "\
suite = \"s\"
variant = \"v\"
room_mib = 1
packages = []
remove = [{ path = \"a/*\", why = \"w\" }]
link = [{ path = \"b\", target = \"/dev/null\", why = \"w\" }]
write = [{ path = \"c\", text = \"\\ntext\\n\", why = \"w\" }]
";
        let recipe = parse(text).unwrap();
        let paths_before = ["a", "a/x", "b", "b/y", ROOTS_OWN[0]];
        let mut entries: Vec<Entry> = paths_before.map(entry).to_vec();
        let written = recipe.finish(&mut entries, 9);
        assert_eq!(paths(&entries), ["a", ROOTS_OWN[0], "b", "c"]);
        assert_eq!((entries[0].meta.uid, entries[1].meta.uid), (1, 0));
        assert_eq!(entries[2].node, Node::Symlink("/dev/null".to_owned()));
        assert_eq!(entries[3].meta.mtime, (9, 0));
        assert_eq!(written, [("c".to_owned(), "text\n".to_owned())]);
    }

    #[test]
    fn the_builder_decides_the_mode() {
        let (recipe, _) = recipe("debian-minimal").unwrap();
        let arguments =
            |builder| recipe.arguments(builder, Path::new("/s.sources"), Path::new("/p"));
        assert_eq!(arguments(Builder::Root)[0], "--mode=root");
        let arguments = arguments(Builder::User);
        assert_eq!(arguments[0], "--mode=unshare");
        assert_eq!(
            arguments[arguments.len() - 3..],
            ["bookworm", "-", "/s.sources"]
        );
    }
}
