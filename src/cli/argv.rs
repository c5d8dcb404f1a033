//! Turns what the user typed into what argh can parse, and refuses the rest.
//!
//! argh knows neither `--key=value` nor help after an option, and its errors name no
//! near word. So the words before the first `--` are walked here along the same
//! command tree that argh and the help use; what is after it is the guest command
//! and is never looked at. Pure: decides, prints nothing.

use std::ffi::OsString;

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality};

use crate::failure::Failure;
use crate::model::nearest::nearest;

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// The help of the command with this path; empty for the whole program.
    Help(Vec<String>),
    /// One line that names the version.
    Version,
    /// A command to carry out.
    Command {
        /// For argh: sub-command names, options and positionals, no `--`.
        words: Vec<String>,
        /// What came after `--`; `None` when there was no `--`.
        guest: Option<Vec<String>>,
    },
}

/// Whether and where a command takes a guest command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// Never.
    Refused,
    /// After `--` only.
    AfterDashes,
    /// After `--`, or where this many positionals have been read.
    AfterPositionals(usize),
}

/// Whether the command with this path takes a guest command.
pub fn guest_of(path: &[&str]) -> Guest {
    match path {
        ["vm", "run"] => Guest::AfterDashes,
        ["vm", "exec"] => Guest::AfterPositionals(1),
        _ => Guest::Refused,
    }
}

/// Other names of commands: parent, other name, name.
const ALIASES: &[(&str, &str, &str)] = &[
    ("vm", "ps", "list"),
    ("vm", "ls", "list"),
    ("vm", "rm", "delete"),
    ("image", "ls", "list"),
    ("image", "rm", "delete"),
    ("kernel", "ls", "list"),
    ("kernel", "rm", "delete"),
];

/// What others call a command; said to whoever types it. Parent, other name, name.
const KNOWN_ELSEWHERE: &[(&str, &str, &str)] =
    &[("config", "list", "show"), ("config", "ls", "show")];

/// The other names of a command below `parent`.
pub fn aliases_of<'a>(parent: &'a str, name: &'a str) -> impl Iterator<Item = &'static str> + 'a {
    ALIASES
        .iter()
        .filter(move |(p, _, n)| *p == parent && *n == name)
        .map(|(_, alias, _)| *alias)
}

/// Reads the words after the program's name along the command `tree`.
///
/// # Errors
/// A usage failure that names the nearest command or option.
pub fn read(words: Vec<OsString>, tree: &CommandInfoWithArgs) -> Result<Typed, Failure> {
    let split = words.iter().position(|word| word == "--");
    let (before, after) = match split {
        Some(at) => (&words[..at], Some(&words[at + 1..])),
        None => (&words[..], None),
    };
    let before = utf8(before)?;
    if let Some(path) = help_path(&before, tree) {
        return Ok(Typed::Help(path));
    }
    let mut walk = Walk::new(tree);
    let mut rest = before.iter();
    while let Some(word) = rest.next() {
        if walk.path.is_empty() && matches!(word.as_str(), "--version" | "-V") {
            return Ok(Typed::Version);
        }
        if walk.guest_begins() && !word.starts_with('-') {
            let guest = std::iter::once(word).chain(rest).cloned().collect();
            return match after {
                // The `--` belongs to the guest command: `exec dev grep -- -x`.
                Some(after) => Ok(walk.finish(Some(joined(guest, utf8(after)?)))),
                None => Ok(walk.finish(Some(guest))),
            };
        }
        walk.take(word, &mut rest)?;
    }
    walk.check_complete()?;
    let guest = match after {
        Some(after) => Some(walk.guest_after_dashes(utf8(after)?)?),
        None => None,
    };
    Ok(walk.finish(guest))
}

fn joined(mut guest: Vec<String>, after: Vec<String>) -> Vec<String> {
    guest.push("--".to_owned());
    guest.extend(after);
    guest
}

fn utf8(words: &[OsString]) -> Result<Vec<String>, Failure> {
    let text = |word: &OsString| {
        word.to_str().map(str::to_owned).ok_or_else(|| {
            let shown = word.to_string_lossy();
            Failure::usage(format!("argument {shown:?} is not valid UTF-8"))
                .hint("Put the odd bytes into a file or a script and name that instead.")
        })
    };
    words.iter().map(text).collect()
}

/// The command whose help is asked for: by `-h` or `--help` anywhere that is not
/// the value of an option, or by the word `help` where a command is to stand.
fn help_path(words: &[String], tree: &CommandInfoWithArgs) -> Option<Vec<String>> {
    let mut node = tree;
    let mut path: Vec<String> = Vec::new();
    let mut asked = words.first().is_some_and(|word| word == "help");
    let mut positionals = 0;
    let mut rest = words.iter().skip(usize::from(asked));
    while let Some(word) = rest.next() {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        if let Guest::AfterPositionals(count) = guest_of(&names)
            && positionals >= count
            && !word.starts_with('-')
        {
            break;
        }
        if matches!(word.as_str(), "-h" | "--help") {
            asked = true;
        } else if word.starts_with('-') {
            if find_flag(node, word).is_some_and(takes_value) {
                rest.next();
            }
        } else if let Some(child) = child_of(node, word) {
            node = child;
            path.push(child.name.to_owned());
        } else if word == "help" && !node.commands.is_empty() {
            asked = true;
        } else {
            positionals += 1;
        }
    }
    asked.then_some(path)
}

fn child_of<'a>(node: &'a CommandInfoWithArgs, word: &str) -> Option<&'a CommandInfoWithArgs> {
    let alias = |(parent, alias, name): &(&str, &str, &'static str)| {
        (*parent == node.name && *alias == word).then_some(*name)
    };
    let name = ALIASES.iter().find_map(alias).unwrap_or(word);
    let child = node.commands.iter().find(|child| child.name == name);
    child.map(|child| &child.command)
}

fn takes_value(flag: &FlagInfo<'_>) -> bool {
    matches!(flag.kind, FlagInfoKind::Option { .. })
}

fn find_flag<'a>(node: &'a CommandInfoWithArgs, word: &str) -> Option<&'a FlagInfo<'static>> {
    let short = |flag: &FlagInfo| {
        let mut letters = word.chars().skip(1);
        flag.short.is_some() && letters.next() == flag.short && letters.next().is_none()
    };
    let mut flags = node.flags.iter();
    flags.find(|flag| flag.long == word || (word.starts_with('-') && short(flag)))
}

/// The walk along the tree: where it is, and what argh will be given.
struct Walk<'a> {
    node: &'a CommandInfoWithArgs,
    path: Vec<&'static str>,
    words: Vec<String>,
    positionals: usize,
    seen: Vec<&'static str>,
}

impl<'a> Walk<'a> {
    fn new(tree: &'a CommandInfoWithArgs) -> Walk<'a> {
        Walk {
            node: tree,
            path: Vec::new(),
            words: Vec::new(),
            positionals: 0,
            seen: Vec::new(),
        }
    }

    fn finish(self, guest: Option<Vec<String>>) -> Typed {
        Typed::Command {
            words: self.words,
            guest,
        }
    }

    /// `banger vm run`, for messages.
    fn command(&self) -> String {
        let mut command = "banger".to_owned();
        for name in &self.path {
            command.push(' ');
            command.push_str(name);
        }
        command
    }

    fn usage(&self, what: String, near: Option<String>) -> Failure {
        let command = self.command();
        Failure::usage(what).hint(match near {
            Some(near) => format!("Did you mean `{near}`? `{command} --help` lists all."),
            None => format!("`{command} --help` shows what it takes."),
        })
    }

    /// A command where none is taken: for a sandbox that is there, another takes it.
    fn refused(&self, failure: Failure) -> Failure {
        match self.path.as_slice() {
            ["vm", "shell"] => {
                failure.hint("A shell takes no command: `banger vm exec NAME -- COMMAND` runs one.")
            }
            _ => failure,
        }
    }

    fn guest_begins(&self) -> bool {
        guest_of(&self.path) == Guest::AfterPositionals(self.positionals)
    }

    fn guest_after_dashes(&self, guest: Vec<String>) -> Result<Vec<String>, Failure> {
        if guest_of(&self.path) == Guest::Refused {
            let what = format!("`{}` takes no command after `--`", self.command());
            return Err(self.refused(self.usage(what, None)));
        }
        if guest.is_empty() {
            return Err(self.usage(
                "nothing follows `--`: a command is missing".to_owned(),
                None,
            ));
        }
        Ok(guest)
    }

    fn take(&mut self, word: &str, rest: &mut std::slice::Iter<'_, String>) -> Result<(), Failure> {
        if word.len() > 1 && word.starts_with('-') {
            self.option(word, rest)
        } else if self.node.commands.is_empty() {
            self.positional(word)
        } else {
            self.sub_command(word)
        }
    }

    fn sub_command(&mut self, word: &str) -> Result<(), Failure> {
        let Some(child) = child_of(self.node, word) else {
            let names = self.node.commands.iter().map(|child| child.name);
            let near = nearest(word, names).map(|name| format!("{} {name}", self.command()));
            let near = self.meant(word).or(near);
            let what = format!("`{}` has no command {word:?}", self.command());
            return Err(self.usage(what, near));
        };
        self.node = child;
        self.path.push(child.name);
        self.words.push(child.name.to_owned());
        Ok(())
    }

    /// What a word means that is a command, but not here: most are of sandboxes, and other
    /// tools have them without `vm`.
    fn meant(&self, word: &str) -> Option<String> {
        let node = self.node;
        let elsewhere =
            |(parent, other, _): &&(&str, &str, &str)| *parent == node.name && *other == word;
        if let Some((_, _, name)) = KNOWN_ELSEWHERE.iter().find(elsewhere) {
            return Some(format!("{} {name}", self.command()));
        }
        let vm = child_of(node, "vm").filter(|_| self.path.is_empty())?;
        child_of(vm, word).map(|child| format!("banger vm {}", child.name))
    }

    fn positional(&mut self, word: &str) -> Result<(), Failure> {
        let last = self.node.positionals.last();
        let repeats = last.is_some_and(|last| last.optionality == Optionality::Repeating);
        if self.positionals >= self.node.positionals.len() && !repeats {
            let failure = self.usage(format!("unexpected argument {word:?}"), None);
            return Err(match guest_of(&self.path) {
                Guest::Refused => self.refused(failure),
                Guest::AfterDashes | Guest::AfterPositionals(_) => {
                    failure.hint(format!("Write `--` before the command: `-- {word}`."))
                }
            });
        }
        self.positionals += 1;
        self.words.push(word.to_owned());
        Ok(())
    }

    fn option(
        &mut self,
        word: &str,
        rest: &mut std::slice::Iter<'_, String>,
    ) -> Result<(), Failure> {
        let (name, joined) = match word.split_once('=') {
            Some((name, value)) if word.starts_with("--") => (name, Some(value.to_owned())),
            _ => (word, None),
        };
        let Some(flag) = find_flag(self.node, name) else {
            if let Some((flag, value)) = self.attached(word) {
                self.note(flag)?;
                self.words.push(value.to_owned());
                return Ok(());
            }
            let mut joined = self.joined_switches(word)?.into_iter();
            return joined.try_for_each(|switch| self.note(switch));
        };
        self.note(flag)?;
        match (takes_value(flag), joined) {
            (false, None) => Ok(()),
            (false, Some(_)) => {
                Err(self.usage(format!("option `{}` takes no value", flag.long), None))
            }
            (true, joined) => match joined.or_else(|| rest.next().cloned()) {
                Some(value) => {
                    self.words.push(value);
                    Ok(())
                }
                None => Err(self.usage(format!("option `{}` needs a value", flag.long), None)),
            },
        }
    }

    fn note(&mut self, flag: &FlagInfo<'static>) -> Result<(), Failure> {
        if self.seen.contains(&flag.long) && flag.optionality != Optionality::Repeating {
            return Err(self.usage(format!("option `{}` is given twice", flag.long), None));
        }
        self.seen.push(flag.long);
        self.words.push(flag.long.to_owned());
        Ok(())
    }

    /// `-p80` is `-p 80`. What lacks only a dash to be an option is a slip: `-env A=1`.
    fn attached<'w>(&self, word: &'w str) -> Option<(&'a FlagInfo<'static>, &'w str)> {
        let node = self.node;
        let letter = word.chars().nth(1).filter(|letter| *letter != '-')?;
        let (short, value) = word.split_at(1 + letter.len_utf8());
        let flag = find_flag(node, short).filter(|flag| takes_value(flag))?;
        let name = word.split_once('=').map_or(word, |(name, _)| name);
        let slip = find_flag(node, &format!("-{name}")).is_some();
        (!slip && !value.is_empty()).then_some((flag, value))
    }

    /// `-it` is `-i -t`: letters may be joined where each is a switch. None with a value is
    /// among them: it begins with its own dash.
    fn joined_switches(&self, word: &str) -> Result<Vec<&'a FlagInfo<'static>>, Failure> {
        let node = self.node;
        let switch = |letter: char| {
            let flag = find_flag(node, &format!("-{letter}"));
            flag.filter(|flag| !takes_value(flag))
        };
        let letters = word.trim_start_matches('-');
        let switches: Option<Vec<_>> = letters.chars().map(switch).collect();
        let switches = switches.filter(|_| !word.starts_with("--"));
        switches.ok_or_else(|| self.unknown_option(word))
    }

    fn unknown_option(&self, name: &str) -> Failure {
        let mut flags = self.node.flags.iter().filter(|flag| !flag.hidden);
        let letters: Vec<char> = name.trim_start_matches('-').chars().collect();
        // `-tx`: not all are switches; offer the first one that exists.
        let slip = find_flag(self.node, &format!("-{name}")).is_some();
        let joined = !name.starts_with("--") && letters.len() <= 3 && !slip;
        let short = joined.then(|| {
            let known = |letter: &char| flags.clone().any(|flag| flag.short == Some(*letter));
            letters.iter().find(|l| known(l)).map(|l| format!("-{l}"))
        });
        let near = match short.flatten() {
            Some(short) => Some(short),
            None => {
                let name = format!("--{}", name.trim_start_matches('-'));
                let longs = flags.by_ref().map(|flag| flag.long);
                nearest(&name, longs).map(str::to_owned)
            }
        };
        let what = format!("`{}` has no option `{name}`", self.command());
        self.usage(what, near)
    }

    fn check_complete(&self) -> Result<(), Failure> {
        if !self.node.commands.is_empty() {
            let names: Vec<&str> = self.node.commands.iter().map(|child| child.name).collect();
            let what = format!("`{}` needs a command: {}", self.command(), names.join(", "));
            return Err(self.usage(what, None));
        }
        let required = |p: &&argh::PositionalInfo| p.optionality == Optionality::Required;
        let mut wanted = self.node.positionals.iter().filter(required);
        if let Some(missing) = wanted.nth(self.positionals) {
            let what = format!("`{}` needs {}", self.command(), missing.name.to_uppercase());
            return Err(self.usage(what, None));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::tree;

    fn typed(line: &str) -> Result<Typed, Failure> {
        read(
            line.split_whitespace().map(OsString::from).collect(),
            &tree(),
        )
    }

    fn words(line: &str) -> (String, Option<String>) {
        match typed(line).unwrap() {
            Typed::Command { words, guest } => (words.join(" "), guest.map(|g| g.join(" "))),
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refusal(line: &str) -> String {
        let failure = typed(line).unwrap_err();
        assert_eq!(failure.kind.exit_status(), 2);
        format!("{} / {}", failure.what, failure.hint.unwrap_or_default())
    }

    #[test]
    fn joined_values_and_aliases_become_what_argh_knows() {
        assert_eq!(words("vm run --vcpu=4").0, "vm run --vcpu 4");
        assert_eq!(words("vm ps --json").0, "vm list --json");
        assert_eq!(words("vm rm a b").0, "vm delete a b");
        assert_eq!(
            words("vm run -p 8080:80 -p 1:2 --env A=b=c").0,
            "vm run --publish 8080:80 --publish 1:2 --env A=b=c"
        );
    }

    #[test]
    fn nothing_after_the_dashes_is_touched() {
        let (before, guest) = words("vm run . -- sh -h --vcpu=4 -- x");
        assert_eq!(before, "vm run .");
        assert_eq!(guest.unwrap(), "sh -h --vcpu=4 -- x");
    }

    #[test]
    fn exec_takes_its_command_with_or_without_dashes() {
        assert_eq!(words("vm exec dev -- ls -l").1.unwrap(), "ls -l");
        assert_eq!(words("vm exec dev ls -h").1.unwrap(), "ls -h");
        assert_eq!(words("vm exec dev grep -- -x").1.unwrap(), "grep -- -x");
        let (before, guest) = words("vm exec --env A=1 dev -t ls");
        assert_eq!(before, "vm exec --env A=1 dev --tty");
        assert_eq!(guest.unwrap(), "ls");
    }

    #[test]
    fn help_is_found_anywhere_before_the_dashes() {
        let run = Typed::Help(vec!["vm".into(), "run".into()]);
        for line in [
            "vm run --help",
            "--help vm run",
            "vm -h run",
            "help vm run",
            "vm run --name x -h",
            "vm run -h -- ls",
        ] {
            assert_eq!(typed(line).unwrap(), run, "{line}");
        }
        assert_eq!(typed("-h").unwrap(), Typed::Help(Vec::new()));
        assert_eq!(typed("help").unwrap(), Typed::Help(Vec::new()));
    }

    #[test]
    fn help_as_a_value_or_a_name_is_not_a_question() {
        assert_eq!(words("vm run --env -h").0, "vm run --env -h");
        assert_eq!(words("vm show help").0, "vm show help");
    }

    #[test]
    fn version_is_asked_before_any_command() {
        assert_eq!(typed("--version").unwrap(), Typed::Version);
        assert!(typed("vm --version").is_err());
    }

    #[test]
    fn mistyped_words_are_answered_with_the_nearest() {
        assert!(refusal("vm lsit").contains("banger vm list"));
        assert!(refusal("vn run").contains("banger vm"));
        assert!(refusal("vm run --memry 1G").contains("--memory"));
        assert!(refusal("vm run -memory 1G").contains("--memory"));
        assert!(refusal("vm exec -tx dev ls").contains("`-t`"));
    }

    #[test]
    fn letters_of_switches_may_be_joined() {
        for joined in ["-it", "-ti", "-i -t"] {
            let (before, guest) = words(&format!("vm exec {joined} dev sh -it"));
            let mut before: Vec<&str> = before.split(' ').collect();
            before.sort_unstable();
            assert_eq!(before, ["--interactive", "--tty", "dev", "exec", "vm"]);
            assert_eq!(guest.unwrap(), "sh -it");
        }
        assert_eq!(
            words("vm run -dit .").0,
            "vm run --detach --interactive --tty ."
        );
        assert!(refusal("vm exec -tit dev ls").contains("given twice"));
        assert!(refusal("vm exec --it dev ls").contains("no option `--it`"));
        assert!(refusal("vm exec -ie A=1 dev ls").contains("no option `-ie`"));
        assert!(refusal("vm exec -it=1 dev ls").contains("no option `-it=1`"));
        assert!(refusal("vm exec -ih dev ls").contains("no option `-ih`"));
    }

    #[test]
    fn value_may_be_attached_to_a_letter() {
        for (line, read) in [
            ("vm run -p8080:80 .", "vm run --publish 8080:80 ."),
            ("vm run -eA=1 -w/tmp", "vm run --env A=1 --workdir /tmp"),
            (
                "vm workspace export dev -oa.patch",
                "vm workspace export dev --output a.patch",
            ),
        ] {
            assert_eq!(words(line).0, read);
        }
        let (before, guest) = words("vm exec -eA=1 dev ls");
        assert_eq!(
            (before.as_str(), guest.unwrap().as_str()),
            ("vm exec --env A=1 dev", "ls")
        );
        assert_eq!(typed("vm run -ph -h").unwrap(), typed("vm run -h").unwrap());
        assert!(refusal("vm run -namex").contains("no option `-namex`"));
        assert!(refusal("vm run -env A=1").contains("`--env`"));
    }

    #[test]
    fn command_of_sandboxes_without_vm_is_answered_with_it() {
        for (line, whole) in [
            ("run .", "`banger vm run`"),
            ("exec dev ls", "`banger vm exec`"),
            ("ls", "`banger vm list`"),
            ("ps", "`banger vm list`"),
            ("rm dev", "`banger vm delete`"),
            ("config list", "`banger config show`"),
            ("config ls", "`banger config show`"),
        ] {
            assert!(refusal(line).contains(whole), "{line}: {}", refusal(line));
        }
    }

    #[test]
    fn help_after_a_group_is_that_of_the_group() {
        assert_eq!(typed("vm help").unwrap(), Typed::Help(vec!["vm".into()]));
        let run = Typed::Help(vec!["vm".into(), "run".into()]);
        assert_eq!(typed("vm help run").unwrap(), run);
    }

    #[test]
    fn wrong_numbers_of_words_are_refused() {
        assert!(refusal("vm").contains("needs a command: run, create"));
        assert!(refusal("").contains("`banger` needs a command"));
        assert!(refusal("vm show").contains("needs NAME"));
        assert!(refusal("vm show a b").contains("unexpected argument \"b\""));
        assert!(refusal("vm run . ls").contains("Write `--` before the command"));
        assert!(refusal("vm run --name").contains("needs a value"));
        assert!(refusal("vm run --rm=yes").contains("takes no value"));
        assert!(refusal("vm run --name a --name b").contains("given twice"));
        assert!(refusal("vm run --").contains("a command is missing"));
        assert!(refusal("vm list -- ls").contains("takes no command"));
    }

    #[test]
    fn odd_bytes_are_refused_by_name() {
        use std::os::unix::ffi::OsStringExt;
        let words = vec!["vm".into(), "show".into(), OsString::from_vec(vec![0xff])];
        let failure = read(words, &tree()).unwrap_err();
        assert!(failure.what.contains("UTF-8"));
    }
}
