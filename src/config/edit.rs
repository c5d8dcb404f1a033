//! Changes one value in the text of a configuration, or takes it out, and keeps everything
//! else: comments, blank lines, order, the spacing around the old value.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use toml_edit::{Document, DocumentMut, Item, Table, TableLike, Value};

use super::file::{Config, text_of, unknown_hint};
use super::keys::{Key, Shape, find};
use crate::failure::Failure;

/// Sets `name` to `value` in the file at `path`, which is made if missing.
///
/// # Errors
/// An unknown key, an impossible value, a file that is wrong already, or one that
/// cannot be written. The file is then as before.
pub fn set_in_file(path: &Path, name: &str, value: &str) -> Result<(), Failure> {
    let old = read(path)?;
    let new = set(&old, path, name, value)?;
    replace(path, &new).map_err(|error| write_failure(path, &error))
}

/// What became of a setting that is to be no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unset {
    /// It was taken out.
    Done,
    /// The file did not have it.
    WasNotSet,
}

/// Takes `name` out of the file at `path`.
///
/// # Errors
/// As [`set_in_file`].
pub fn unset_in_file(path: &Path, name: &str) -> Result<Unset, Failure> {
    let old = read(path)?;
    match unset(&old, path, name)? {
        None => Ok(Unset::WasNotSet),
        Some(new) => replace(path, &new)
            .map(|()| Unset::Done)
            .map_err(|error| write_failure(path, &error)),
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    match std::fs::read(path) {
        Ok(bytes) => text_of(bytes, path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(write_failure(path, &error)),
    }
}

fn write_failure(path: &Path, error: &std::io::Error) -> Failure {
    let folder = path.parent().unwrap_or(path).display();
    Failure::failed(format!("change configuration {}", path.display()))
        .because(error)
        .hint(format!(
            "It is written anew in {folder}, which must be a directory that you may write to (`ls -ld {folder}`); or set BANGER_CONFIG to a file elsewhere."
        ))
}

/// The text with `name` set to `value`; `path` is for messages.
///
/// # Errors
/// As [`set_in_file`].
pub fn set(text: &str, path: &Path, name: &str, value: &str) -> Result<String, Failure> {
    let key = known(text, path, name)?;
    let value = toml_value(key, value)?;
    let mut document: DocumentMut = text.parse().expect("it was parsed above");
    let before = keep_trailing(&mut document, key);
    let (table, last) = key.split();
    let parent: &mut Item = match table {
        "" => document.as_item_mut(),
        table => document
            .as_table_mut()
            .entry(table)
            .or_insert(Item::Table(Table::new())),
    };
    let parent = parent
        .as_table_like_mut()
        .expect("the check above refuses anything else");
    match parent.get_mut(last).and_then(Item::as_value_mut) {
        Some(old) => {
            // The comment behind a value is part of its decoration.
            let decor = old.decor().clone();
            *old = value;
            *old.decor_mut() = decor;
        }
        None => {
            parent.insert(last, Item::Value(value));
        }
    }
    Ok(format!("{before}{document}"))
}

fn known(text: &str, path: &Path, name: &str) -> Result<&'static Key, Failure> {
    let Some(key) = find(name) else {
        return Err(Failure::usage(format!("unknown key `{name}`")).hint(unknown_hint(name)));
    };
    // A file that is wrong already is reported as such, not as our change.
    Config::parse(text, path)?;
    Ok(key)
}

/// The text without `name`; `None` where it has none. The lines of the key and its value go,
/// and what stands above them stays: nobody knows whom a comment there is about.
fn unset(text: &str, path: &Path, name: &str) -> Result<Option<String>, Failure> {
    let (table, last) = known(text, path, name)?.split();
    let document = Document::parse(text).expect("it was parsed above");
    let parent: Option<&dyn TableLike> = match table {
        "" => Some(document.as_table()),
        table => document.get(table).and_then(Item::as_table_like),
    };
    let Some((key, item)) = parent.and_then(|parent| parent.get_key_value(last)) else {
        return Ok(None);
    };
    if document.get(table).is_some_and(Item::is_inline_table) {
        let mut document: DocumentMut = text.parse().expect("it was parsed above");
        let parent = document.get_mut(table).and_then(Item::as_table_like_mut);
        parent.expect("looked at above").remove(last);
        return Ok(Some(document.to_string()));
    }
    let begins = key.span().expect("it was read from a text").start;
    let ends = item.span().expect("it was read from a text").end;
    let begins = text[..begins].rfind('\n').map_or(0, |at| at + 1);
    let ends = text[ends..]
        .find('\n')
        .map_or(text.len(), |at| ends + at + 1);
    Ok(Some(format!("{}{}", &text[..begins], &text[ends..])))
}

/// Comments at the very end of a file belong to no key, and would stand after
/// whatever is added. In a file without keys they are given back, to be put first; before a new
/// table they become its own.
fn keep_trailing(document: &mut DocumentMut, key: &Key) -> String {
    let trailing = document.trailing().as_str().unwrap_or_default().to_owned();
    if document.as_table().is_empty() {
        document.set_trailing("");
        return trailing;
    }
    let (table, _) = key.split();
    if !table.is_empty() && !document.contains_key(table) && !trailing.is_empty() {
        document.set_trailing("");
        let mut added = Table::new();
        added.decor_mut().set_prefix(format!("{trailing}\n"));
        document.insert(table, Item::Table(added));
    }
    String::new()
}

fn toml_value(key: &Key, text: &str) -> Result<Value, Failure> {
    let refuse = |why: &str| {
        Failure::usage(format!("`{}` cannot be {text:?}: {why}", key.name))
            .hint(format!("Its meaning: {}.", key.about))
    };
    let value = match key.shape {
        Shape::Text => Some(Value::from(text)),
        Shape::Number => text.parse::<i64>().ok().map(Value::from),
        Shape::Switch => text.parse::<bool>().ok().map(Value::from),
    };
    let value = value.ok_or_else(|| refuse(&format!("it is not {}", key.shape.word())))?;
    let setting = super::file::setting(key.shape, &value).expect("made of this shape above");
    (key.check)(&setting).map_err(|why| refuse(&why))?;
    Ok(value)
}

/// Writes aside, then renames: a reader sees the old text or the new one. A link to
/// the real file, as people who keep their settings under version control have, stays a link.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let target = match std::fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(error),
    };
    if let Some(folder) = target.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let aside = aside(&target);
    let written = write_aside(&aside, &target, text);
    if written.is_err() {
        drop(std::fs::remove_file(&aside));
    }
    written
}

fn aside(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    PathBuf::from(name)
}

fn write_aside(aside: &Path, target: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create(aside)?;
    if let Ok(old) = std::fs::metadata(target) {
        file.set_permissions(old.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(aside, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str, name: &str, value: &str) -> String {
        set(text, Path::new("/c.toml"), name, value).unwrap()
    }

    #[test]
    fn comments_spacing_and_order_are_kept() {
        let text =
            "# mine\nlog_level  =  \"info\" # quiet\n\n[vm_defaults] # sizes\n# two\nvcpu = 2\n";
        let text = changed(text, "log_level", "debug");
        let text = changed(&text, "vm_defaults.vcpu", "4");
        assert_eq!(
            text,
            "# mine\nlog_level  =  \"debug\" # quiet\n\n[vm_defaults] # sizes\n# two\nvcpu = 4\n"
        );
    }

    #[test]
    fn missing_keys_and_tables_are_added() {
        let text = changed("", "vm_defaults.nat", "true");
        assert_eq!(text, "[vm_defaults]\nnat = true\n");
        let text = changed(&text, "default_image", "debian-minimal");
        let config = Config::parse(&text, Path::new("/c.toml")).unwrap();
        assert!(config.nat());
        assert_eq!(config.default_image().as_str(), "debian-minimal");
    }

    #[test]
    fn comments_at_the_end_stay_before_what_is_added() {
        let text = changed("log_level = \"info\"\n# end\n", "vm_defaults.vcpu", "2");
        assert_eq!(
            text,
            "log_level = \"info\"\n# end\n\n[vm_defaults]\nvcpu = 2\n"
        );
    }

    #[test]
    fn inline_tables_stay_inline() {
        let text = changed("vm_defaults = { vcpu = 2 }\n", "vm_defaults.vcpu", "3");
        assert_eq!(text, "vm_defaults = { vcpu = 3 }\n");
    }

    #[test]
    fn setting_is_taken_out_with_its_line_and_nothing_else() {
        let without = |text: &str, name: &str| unset(text, Path::new("/c.toml"), name).unwrap();
        let text = "# mine\nlog_level = \"warn\" # loud\n\n[vm_defaults] # sizes\n# two\nvcpu = 2\nmemory = \"\"\"\n1G\"\"\" # much\n# end\n";
        let text = text.replace("\n1G", "\\\n 1G");
        let left = without(&text, "vm_defaults.memory").unwrap();
        let left = without(&left, "log_level").unwrap();
        assert_eq!(
            left,
            "# mine\n\n[vm_defaults] # sizes\n# two\nvcpu = 2\n# end\n"
        );
        assert_eq!(without(&left, "log_level"), None);
        assert_eq!(without("", "vm_defaults.vcpu"), None);
        for (text, expected) in [
            (
                "vm_defaults = { vcpu = 2, nat = true }\n",
                "vm_defaults = { nat = true }\n",
            ),
            (
                "vm_defaults.nat = true\nvm_defaults.vcpu = 2",
                "vm_defaults.nat = true\n",
            ),
        ] {
            let left = without(text, "vm_defaults.vcpu").unwrap();
            assert_eq!(left, expected);
            Config::parse(&left, Path::new("/c.toml")).unwrap();
        }
        let failure = unset("", Path::new("/c.toml"), "vcpu").unwrap_err();
        assert!(failure.hint.unwrap().contains("vm_defaults.vcpu"));
    }

    #[test]
    fn impossible_changes_are_refused_by_key() {
        let refused = |name: &str, value: &str| {
            let failure = set("", Path::new("/c.toml"), name, value).unwrap_err();
            format!("{} {}", failure.what, failure.hint.unwrap())
        };
        assert!(refused("vm_defaults.vcpu", "0").contains("1 to 32"));
        assert!(refused("vm_defaults.vcpu", "many").contains("whole number"));
        assert!(refused("vm_defaults.nat", "yes").contains("true or false"));
        assert!(refused("vcpu", "2").contains("vm_defaults.vcpu"));
    }

    #[test]
    fn a_linked_file_stays_a_link_and_keeps_its_mode() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real.toml");
        let link = folder.path().join("config.toml");
        std::fs::write(&real, "# kept\n").unwrap();
        std::fs::set_permissions(&real, PermissionsExt::from_mode(0o600)).unwrap();
        symlink(&real, &link).unwrap();
        set_in_file(&link, "vm_defaults.vcpu", "2").unwrap();
        assert!(link.is_symlink());
        let text = std::fs::read_to_string(&real).unwrap();
        assert!(
            text.starts_with("# kept\n") && text.contains("vcpu = 2"),
            "{text}"
        );
        let mode = std::fs::metadata(&real).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
