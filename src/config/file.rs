//! Reads the configuration file into checked values.
//!
//! Finding the file is a matter of the environment, given as a function; reading it
//! is the only I/O. Everything wrong in it is a usage failure that names the file, the line and
//! what to write instead.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, TableLike, Value};

use super::keys::{Fallback, KEYS, Key, Setting, Shape, find};
use crate::failure::Failure;
use crate::model::ids::{ImageName, KernelName};
use crate::model::limits::Limits;
use crate::model::nearest::nearest;
use crate::model::net::Subnet;
use crate::model::units::Bytes;
use crate::model::vm::RootModeRequest;

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This line of the file, from 1.
    Line(usize),
    /// The default.
    Default,
    /// Worked out from this machine.
    Machine,
}

/// What the file says; defaults hold for the rest.
#[derive(Debug, Clone, Default)]
pub struct Config {
    path: PathBuf,
    said: Vec<(&'static Key, Setting, usize)>,
}

/// The file that an environment means: `BANGER_CONFIG`, else `banger/config.toml`
/// in `XDG_CONFIG_HOME` or `~/.config`; `None` without any of them.
pub fn path(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = || {
        let xdg = set("XDG_CONFIG_HOME").filter(|dir| dir.is_absolute());
        xdg.or_else(|| set("HOME").map(|home| home.join(".config")))
    };
    set("BANGER_CONFIG").or_else(|| base().map(|base| base.join("banger/config.toml")))
}

impl Config {
    /// Reads the file at `path`; a missing one says nothing.
    ///
    /// # Errors
    /// It cannot be read, is no TOML, or says something that is not possible.
    pub fn read(path: &Path) -> Result<Config, Failure> {
        match std::fs::read(path) {
            Ok(bytes) => Config::parse(&text_of(bytes, path)?, path),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Config {
                path: path.to_owned(),
                said: Vec::new(),
            }),
            Err(error) => Err(
                Failure::failed(format!("read configuration {}", path.display()))
                    .because(error)
                    .hint("Set BANGER_CONFIG to a file that you can read."),
            ),
        }
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Config, Failure> {
        let document = Document::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, &span));
            Failure::usage(format!("configuration {}, line {line}", path.display()))
                .because(error.message())
                .hint("Correct that line; `banger config show` reads the file again.")
        })?;
        let mut reader = Reader {
            text,
            path,
            said: Vec::new(),
        };
        reader.top(document.as_table())?;
        Ok(Config {
            path: path.to_owned(),
            said: reader.said,
        })
    }

    /// The file, whether it exists or not.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key and where it comes from; `None` where the key is unset or
    /// its default depends on the machine.
    pub fn value(&self, key: &Key) -> (Option<Setting>, Origin) {
        if let Some((_, value, line)) = self.said.iter().find(|(said, ..)| said.name == key.name) {
            return (Some(value.clone()), Origin::Line(*line));
        }
        match key.fallback {
            Fallback::Text(text) => (Some(Setting::Text(text.to_owned())), Origin::Default),
            Fallback::Switch(on) => (Some(Setting::Switch(on)), Origin::Default),
            Fallback::Machine => (None, Origin::Machine),
            Fallback::Unset => (None, Origin::Default),
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        let key = find(name).expect("names in this file are keys of the table");
        self.value(key).0.map(|value| value.to_string())
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name).and_then(|text| text.parse().ok())
    }

    /// `default_image`
    pub fn default_image(&self) -> ImageName {
        self.parsed("default_image").expect("checked when read")
    }

    /// `default_kernel`
    pub fn default_kernel(&self) -> KernelName {
        self.parsed("default_kernel").expect("checked when read")
    }

    /// `log_level`
    pub fn log_level(&self) -> String {
        self.text("log_level").expect("has a default")
    }

    /// `vm_defaults.vcpu`, where the file says one.
    pub fn vcpu(&self) -> Option<u8> {
        self.parsed("vm_defaults.vcpu")
    }

    /// `vm_defaults.memory`, where the file says one.
    pub fn memory(&self) -> Option<Bytes> {
        self.parsed("vm_defaults.memory")
    }

    /// `vm_defaults.disk_size`
    pub fn disk_size(&self) -> Bytes {
        self.parsed("vm_defaults.disk_size")
            .expect("checked when read")
    }

    /// `vm_defaults.root_size`
    pub fn root_size(&self) -> Bytes {
        self.parsed("vm_defaults.root_size")
            .expect("checked when read")
    }

    /// `vm_defaults.root_mode`
    pub fn root_mode(&self) -> RootModeRequest {
        self.parsed("vm_defaults.root_mode")
            .expect("checked when read")
    }

    /// `vm_defaults.nat`
    pub fn nat(&self) -> bool {
        self.parsed("vm_defaults.nat").expect("checked when read")
    }

    /// `templates`
    pub fn templates(&self) -> bool {
        self.parsed("templates").expect("checked when read")
    }

    /// `vm_defaults.disk_iops`, `.disk_bandwidth`, `.net_bandwidth` and `.cpu_weight`.
    pub fn limits(&self) -> Limits {
        Limits {
            disk_iops: self.parsed("vm_defaults.disk_iops"),
            disk_bandwidth: self.parsed("vm_defaults.disk_bandwidth"),
            net_bandwidth: self.parsed("vm_defaults.net_bandwidth"),
            cpu_weight: self.parsed("vm_defaults.cpu_weight"),
        }
    }

    /// `network.bridge`
    pub fn bridge(&self) -> String {
        self.text("network.bridge").expect("has a default")
    }

    /// `network.subnet`
    pub fn subnet(&self) -> Subnet {
        self.parsed("network.subnet").expect("checked when read")
    }

    /// `programs.NAME`: `firecracker`, `jailer`, `qemu` or `vhost_device_vsock`; `None` means
    /// that it is looked up on PATH.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let key = find(&format!("programs.{name}"))?;
        self.value(key)
            .0
            .map(|value| PathBuf::from(value.to_string()))
    }
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    line_at(text.as_bytes(), span.start)
}

fn line_at(bytes: &[u8], at: usize) -> usize {
    let before = &bytes[..at.min(bytes.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The bytes of a file as text, which TOML is in UTF-8 only.
pub(super) fn text_of(bytes: Vec<u8>, path: &Path) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        let line = line_at(error.as_bytes(), error.utf8_error().valid_up_to());
        let path = path.display();
        Failure::usage(format!(
            "configuration {path}, line {line}: not all of it is text"
        ))
        .hint("Write that line in UTF-8; `banger config show` reads the file again.")
    })
}

struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
    said: Vec<(&'static Key, Setting, usize)>,
}

impl Reader<'_> {
    fn top(&mut self, table: &dyn TableLike) -> Result<(), Failure> {
        for (name, item) in table.iter() {
            let line = self.line(table, name);
            let is_table = KEYS.iter().any(|key| key.split().0 == name);
            match (is_table, item.as_table_like()) {
                (true, Some(inner)) => self.inner(name, inner)?,
                (true, None) => {
                    let what = format!("`{name}` is not a table");
                    return Err(self.refused(line, what, format!("Write it as `[{name}]`.")));
                }
                (false, _) => self.entry("", name, item, line)?,
            }
        }
        Ok(())
    }

    fn inner(&mut self, table_name: &str, table: &dyn TableLike) -> Result<(), Failure> {
        for (name, item) in table.iter() {
            let line = self.line(table, name);
            self.entry(table_name, name, item, line)?;
        }
        Ok(())
    }

    fn entry(&mut self, table: &str, name: &str, item: &Item, line: usize) -> Result<(), Failure> {
        let full = match table {
            "" => name.to_owned(),
            table => format!("{table}.{name}"),
        };
        let Some(key) = find(&full) else {
            return Err(self.refused(line, format!("unknown key `{full}`"), unknown_hint(&full)));
        };
        let value = item.as_value().and_then(|value| setting(key.shape, value));
        let Some(value) = value else {
            let what = format!("`{full}` is not {}", key.shape.word());
            return Err(self.refused(line, what, format!("Its meaning: {}.", key.about)));
        };
        if let Err(why) = (key.check)(&value) {
            let what = format!("`{full}` cannot be {value}: {why}");
            let hint = "Correct that line; `banger config show` reads the file again.";
            return Err(self.refused(line, what, hint.to_owned()));
        }
        self.said.push((key, value, line));
        Ok(())
    }

    fn line(&self, table: &dyn TableLike, name: &str) -> usize {
        let span = table.get_key_value(name).and_then(|(key, _)| key.span());
        span.map_or(1, |span| line_of(self.text, &span))
    }

    fn refused(&self, line: usize, what: String, hint: String) -> Failure {
        let path = self.path.display();
        Failure::usage(format!("configuration {path}, line {line}: {what}")).hint(hint)
    }
}

/// What to say of a key that does not exist: the nearest one, wherever it stands, or the
/// table that was meant.
pub fn unknown_hint(full: &str) -> String {
    if let Some(key) = KEYS.iter().find(|key| key.split().0 == full) {
        let name = key.name;
        return format!(
            "`{full}` is a table, with keys such as `{name}`. `banger config show` lists all keys."
        );
    }
    let tables_and_keys = KEYS.iter().map(Key::split);
    let near = nearest(full, tables_and_keys.flat_map(|(table, key)| [key, table]));
    // A key's own name begins with that of its table, which is then not what is wrong.
    let near = near.filter(|_| !full.contains('.'));
    if let Some(table) = near.filter(|near| KEYS.iter().any(|key| key.split().0 == *near)) {
        return format!("Did you mean `[{table}]`? `banger config show` lists all keys.");
    }
    let last = full.rsplit('.').next().unwrap_or(full);
    let by_full = nearest(full, KEYS.iter().map(|key| key.name));
    let by_last = || {
        let name = nearest(last, KEYS.iter().map(|key| key.split().1))?;
        let key = KEYS.iter().find(|key| key.split().1 == name)?;
        Some(key.name)
    };
    match by_full.or_else(by_last) {
        Some(near) => format!("Did you mean `{near}`? `banger config show` lists all keys."),
        None => "`banger config show` lists all keys.".to_owned(),
    }
}

pub(super) fn setting(shape: Shape, value: &Value) -> Option<Setting> {
    match shape {
        Shape::Text => value.as_str().map(|text| Setting::Text(text.to_owned())),
        Shape::Number => value.as_integer().map(Setting::Number),
        Shape::Switch => value.as_bool().map(Setting::Switch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Failure> {
        Config::parse(text, Path::new("/c.toml"))
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.default_image().as_str(), "debian-bookworm");
        assert_eq!(config.subnet().to_string(), "172.30.0.0/16");
        assert_eq!(config.memory(), None);
        assert_eq!(config.program("qemu"), None);
        assert!(!config.nat());
    }

    #[test]
    fn values_are_read_in_every_toml_form_with_their_line() {
        let text =
            "network = { bridge = \"br9\" }\nvm_defaults.nat = true\n\n[programs]\nqemu = \"/q\"\n";
        let config = parse(text).unwrap();
        assert_eq!(config.bridge(), "br9");
        assert!(config.nat());
        assert_eq!(config.program("qemu"), Some(PathBuf::from("/q")));
        let key = find("programs.qemu").unwrap();
        assert_eq!(config.value(key).1, Origin::Line(5));
    }

    #[test]
    fn an_unknown_key_is_refused_with_line_and_nearest_name() {
        let failure = parse("# c\n\n[vm_defaults]\nmemroy = \"1G\"\n").unwrap_err();
        assert_eq!(
            failure.what,
            "configuration /c.toml, line 4: unknown key `vm_defaults.memroy`"
        );
        assert!(failure.hint.unwrap().contains("`vm_defaults.memory`"));
        let failure = parse("memory = \"1G\"\n").unwrap_err();
        assert!(failure.hint.unwrap().contains("`vm_defaults.memory`"));
    }

    #[test]
    fn mistyped_table_is_answered_with_the_table() {
        for text in ["[vm_default]\nvcpu = 2\n", "[vm_default]\n"] {
            let hint = parse(text).unwrap_err().hint.unwrap();
            assert!(hint.contains("`[vm_defaults]`"), "{hint}");
        }
        assert!(unknown_hint("vm_defaults").contains("`vm_defaults.vcpu`"));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, b"# mine\nlog_level = \"\xff\"\n").unwrap();
        let failure = Config::read(&path).unwrap_err();
        assert!(failure.what.contains("line 2"), "{failure}");
        assert_eq!(failure.kind.exit_status(), 2);
        assert!(failure.hint.unwrap().contains("UTF-8"));
    }

    #[test]
    fn impossible_values_are_refused_with_line_and_range() {
        let cases = [
            ("[vm_defaults]\nvcpu = 0", "line 2", "1 to 32"),
            ("[vm_defaults]\nvcpu = \"2\"", "line 2", "whole number"),
            ("[vm_defaults]\nmemory = \"1K\"", "line 2", "possible"),
            (
                "[network]\nsubnet = \"10.0.0.1/8\"",
                "line 2",
                "IPv4 network",
            ),
            ("[network]\nbridge = \"a b\"", "line 2", "15 letters"),
            ("[programs]\nqemu = \"qemu\"", "line 2", "absolute"),
            ("network = 3", "line 1", "not a table"),
            ("log_level = \"loud\"", "line 1", "debug"),
        ];
        for (text, line, why) in cases {
            let failure = parse(text).unwrap_err();
            assert!(failure.what.contains(line), "{text}: {failure}");
            assert!(failure.what.contains(why), "{text}: {failure}");
        }
    }

    #[test]
    fn broken_toml_is_refused_with_its_line() {
        let failure = parse("\n\nlog_level = \n").unwrap_err();
        assert!(failure.what.contains("line 3"), "{failure}");
        assert!(parse("log_level = \"info\"\nlog_level = \"warn\"").is_err());
    }

    #[test]
    fn environment_decides_the_file() {
        let only = |name: &'static str, value: &'static str| {
            path(move |asked| (asked == name).then(|| OsString::from(value)))
        };
        assert_eq!(only("BANGER_CONFIG", "x.toml"), Some("x.toml".into()));
        assert_eq!(
            only("HOME", "/h"),
            Some("/h/.config/banger/config.toml".into())
        );
        assert_eq!(
            only("XDG_CONFIG_HOME", "/x"),
            Some("/x/banger/config.toml".into())
        );
        assert_eq!(only("NOTHING", ""), None);
    }
}
