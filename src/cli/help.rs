//! Makes the help of a command out of the same definitions that argh parses by.
//!
//! Pure: gives text. The doc comment of a command's struct is its description, each
//! field's doc comment is the line of its option, so help and parser cannot differ.

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality};

use super::argv::{Guest, aliases_of, guest_of};

const WIDTH: usize = 80;
const INDENT: usize = 2;

/// The help of the command with this path below `tree`; empty for the whole program.
pub fn help(tree: &CommandInfoWithArgs, path: &[String]) -> String {
    let mut node = tree;
    let mut parent = "";
    for name in path {
        let Some(child) = node.commands.iter().find(|child| child.name == name) else {
            break;
        };
        parent = node.name;
        node = &child.command;
    }
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let command = std::iter::once("banger").chain(names.iter().copied());
    let command = command.collect::<Vec<_>>().join(" ");
    let mut text = format!("{}\n\n", wrapped(node.description, 0));
    text.push_str(&format!(
        "Usage: {}\n",
        usage(node, &command, guest_of(&names))
    ));
    let aliases: Vec<&str> = aliases_of(parent, node.name).collect();
    if !aliases.is_empty() {
        text.push_str(&format!("Also: {}\n", aliases.join(", ")));
    }
    section(&mut text, "Commands", commands(node));
    section(&mut text, "Arguments", positionals(node));
    section(&mut text, "Options", options(node));
    for note in node.notes {
        text.push_str(&format!("\n{}\n", wrapped(note, 0)));
    }
    if !node.examples.is_empty() {
        text.push_str("\nExamples:\n");
        for example in node.examples {
            text.push_str(&format!("  {example}\n"));
        }
    }
    if !node.commands.is_empty() {
        text.push_str(&format!(
            "\n`{command} COMMAND --help` explains a command.\n"
        ));
    }
    text
}

fn usage(node: &CommandInfoWithArgs, command: &str, guest: Guest) -> String {
    let mut words = vec![command.to_owned()];
    if !node.commands.is_empty() {
        words.push("COMMAND".to_owned());
        return words.join(" ");
    }
    if visible(node).next().is_some() {
        words.push("[OPTIONS]".to_owned());
    }
    for positional in node.positionals {
        let name = positional.name.to_uppercase();
        words.push(match positional.optionality {
            Optionality::Required => name,
            Optionality::Optional => format!("[{name}]"),
            Optionality::Repeating | Optionality::Greedy => format!("{name}…"),
        });
    }
    match guest {
        Guest::Refused => {}
        Guest::AfterDashes => words.push("[-- COMMAND [ARG…]]".to_owned()),
        Guest::AfterPositionals(_) => words.push("-- COMMAND [ARG…]".to_owned()),
    }
    words.join(" ")
}

fn section(text: &mut String, title: &str, rows: Vec<(String, &str)>) {
    if rows.is_empty() {
        return;
    }
    let widest = rows.iter().map(|(left, _)| left.chars().count()).max();
    let column = INDENT + widest.unwrap_or(0).min(30) + 2;
    text.push_str(&format!("\n{title}:\n"));
    for (left, right) in rows {
        let used = INDENT + left.chars().count();
        text.push_str(&format!("{:INDENT$}{left}", ""));
        match used + 2 <= column {
            true => text.push_str(&" ".repeat(column - used)),
            false => text.push_str(&format!("\n{:column$}", "")),
        }
        text.push_str(wrapped(right, column).trim_start());
        text.push('\n');
    }
}

fn commands<'a>(node: &'a CommandInfoWithArgs) -> Vec<(String, &'a str)> {
    let row = |child: &'a argh::SubCommandInfo| {
        // The first sentence is the summary.
        let description = child.command.description;
        let end = description.find(". ").unwrap_or(description.len());
        (
            child.name.to_owned(),
            description[..end].trim_end_matches('.'),
        )
    };
    node.commands.iter().map(row).collect()
}

fn positionals(node: &CommandInfoWithArgs) -> Vec<(String, &str)> {
    let shown = node.positionals.iter().filter(|p| !p.hidden);
    shown
        .map(|p| (p.name.to_uppercase(), p.description))
        .collect()
}

fn visible(node: &CommandInfoWithArgs) -> impl Iterator<Item = &FlagInfo<'static>> {
    let shown = |flag: &&FlagInfo| !flag.hidden && flag.long != "--help";
    node.flags.iter().filter(shown)
}

fn options<'a>(node: &'a CommandInfoWithArgs) -> Vec<(String, &'a str)> {
    let row = |flag: &'a FlagInfo| {
        let short = flag.short.map_or("    ".to_owned(), |c| format!("-{c}, "));
        let value = match flag.kind {
            FlagInfoKind::Switch => String::new(),
            FlagInfoKind::Option { arg_name } => format!(" {}", arg_name.to_uppercase()),
        };
        (format!("{short}{}{value}", flag.long), flag.description)
    };
    let mut rows: Vec<(String, &str)> = visible(node).map(row).collect();
    rows.push(("-h, --help".to_owned(), "show this help"));
    if node.name == "banger" {
        rows.push(("-V, --version".to_owned(), "show the version"));
    }
    rows
}

/// Breaks text into lines of at most [`WIDTH`], each indented; the first one too.
fn wrapped(text: &str, indent: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut current = String::new();
    for word in text.split_whitespace() {
        let length = indent + current.chars().count() + 1 + word.chars().count();
        if !current.is_empty() && length > WIDTH {
            lines.push(std::mem::take(&mut current));
        }
        if !current.is_empty() {
            current.push(' ');
        }
        current.push_str(word);
    }
    lines.push(current);
    let indented = lines.iter().map(|line| format!("{:indent$}{line}", ""));
    indented.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::tree;

    fn every_path(node: &CommandInfoWithArgs, path: Vec<String>, all: &mut Vec<Vec<String>>) {
        all.push(path.clone());
        for child in &node.commands {
            let below = [path.clone(), vec![child.name.to_owned()]].concat();
            every_path(&child.command, below, all);
        }
    }

    #[test]
    fn every_command_has_a_description_a_usage_and_examples() {
        let tree = tree();
        let mut paths = Vec::new();
        every_path(&tree, Vec::new(), &mut paths);
        assert!(paths.len() > 30, "{}", paths.len());
        for path in paths {
            let text = help(&tree, &path);
            assert!(text.contains("Usage: banger"), "{path:?}");
            assert!(text.contains("\nExamples:\n  banger"), "{path:?}\n{text}");
            assert!(text.contains("--help"), "{path:?}");
        }
    }

    #[test]
    fn lines_of_help_fit_eighty_columns() {
        let tree = tree();
        let mut paths = Vec::new();
        every_path(&tree, Vec::new(), &mut paths);
        for path in paths {
            let text = help(&tree, &path);
            let long = text.lines().find(|line| line.chars().count() > WIDTH);
            assert_eq!(long, None, "{path:?}");
        }
    }

    #[test]
    fn run_shows_where_the_guest_command_goes() {
        let text = help(&tree(), &["vm".to_owned(), "run".to_owned()]);
        assert!(text.contains("Usage: banger vm run [OPTIONS] [PATH] [-- COMMAND [ARG…]]"));
        assert!(text.contains("-p, --publish"));
    }
}
