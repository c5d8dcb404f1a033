//! Reads the host's apt sources, so that no mirror has to be written down in here.
//!
//! Both forms of sources.list(5) are read: one line per source, and deb822 stanzas. Of
//! all of them, [`select`] takes those that carry a Debian suite. Pure but for
//! [`of_this_host`]; it never decides whether a signature is good, which is apt's.

use std::fs;
use std::path::Path;

use crate::failure::Failure;

/// One source of packages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Where the archive is.
    pub uris: Vec<String>,
    /// Suites taken from it.
    pub suites: Vec<String>,
    /// Components of those suites.
    pub components: Vec<String>,
    /// Keyring file, fingerprint or embedded key (then of several lines).
    pub signed_by: Option<String>,
    /// The host's owner trusts it unsigned.
    pub trusted: bool,
}

/// The component that everything here is taken from.
const COMPONENT: &str = "main";

/// The host's sources for a Debian suite and its updates, as the text of a deb822 file.
///
/// # Errors
/// The host has no apt sources, or none with that suite.
pub fn of_this_host(suite: &str) -> Result<String, Failure> {
    let mut all = Vec::new();
    read(Path::new("/etc/apt/sources.list"), &mut all);
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut files: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
        files.sort();
        files.iter().for_each(|file| read(file, &mut all));
    }
    let chosen = select(all, suite);
    if chosen.is_empty() {
        return Err(Failure::failed(format!(
            "find a package source for Debian {suite}: none in /etc/apt/sources.list or /etc/apt/sources.list.d"
        ))
        .hint(format!(
            "Add a `deb` line for {suite} {COMPONENT} with your mirror to /etc/apt/sources.list.d/{suite}.list."
        )));
    }
    Ok(write(&chosen, resolve))
}

/// A file that cannot be read or is of another kind holds no source of ours.
fn read(path: &Path, all: &mut Vec<Source>) {
    let text = fs::read_to_string(path).unwrap_or_default();
    match path.extension().and_then(|e| e.to_str()) {
        Some("sources") => all.extend(stanzas(&text)),
        Some("list") => all.extend(text.lines().filter_map(one_line)),
        _ => (),
    }
}

/// Replaces a `mirror+file:` list by its first mirror: a guest does not have the list.
fn resolve(uri: &str) -> String {
    let list = uri
        .strip_prefix("mirror+file:")
        .and_then(|path| fs::read_to_string(path.trim_start_matches("//")).ok());
    let first = list.as_deref().and_then(|text| {
        text.lines()
            .filter_map(|line| line.split_whitespace().next())
            .find(|word| !word.starts_with('#'))
    });
    first.unwrap_or(uri).to_owned()
}

/// Keeps what carries `suite`, its updates or its security updates, and nothing else.
///
/// Third parties name their suites after Debian's too. Where a source is signed by
/// Debian's own keyring, those are meant; otherwise (a private mirror with keys of its
/// own) all that match.
pub fn select(all: Vec<Source>, suite: &str) -> Vec<Source> {
    let wanted = [
        suite.to_owned(),
        format!("{suite}-updates"),
        format!("{suite}-security"),
    ];
    let matching: Vec<Source> = all
        .into_iter()
        .filter(|source| source.components.iter().any(|c| c == COMPONENT))
        .map(|mut source| {
            source.suites.retain(|s| wanted.contains(s));
            source
        })
        .filter(|source| !source.suites.is_empty() && !source.uris.is_empty())
        .collect();
    let debian = |source: &Source| match &source.signed_by {
        Some(key) => key.contains("debian-archive"),
        None => true,
    };
    match matching.iter().any(debian) {
        true => matching.into_iter().filter(debian).collect(),
        false => matching,
    }
}

/// Writes deb822 stanzas that take [`COMPONENT`] only.
fn write(sources: &[Source], resolve: impl Fn(&str) -> String) -> String {
    let stanza = |source: &Source| {
        let uris: Vec<String> = source.uris.iter().map(|uri| resolve(uri)).collect();
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {COMPONENT}\n",
            uris.join(" "),
            source.suites.join(" ")
        );
        if let Some(key) = &source.signed_by {
            text += &format!("Signed-By: {key}\n");
        }
        if source.trusted {
            text += "Trusted: yes\n";
        }
        text
    };
    sources.iter().map(stanza).collect::<Vec<_>>().join("\n")
}

/// Reads `deb [option=value …] uri suite component…`.
fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line
        .strip_prefix("deb")?
        .strip_prefix([' ', '\t'])?
        .trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inside) => inside.split_once(']')?,
        None => ("", rest),
    };
    let mut source = Source::default();
    for option in options.split_whitespace() {
        match option.split_once('=') {
            Some(("signed-by", key)) => source.signed_by = Some(key.to_owned()),
            Some(("trusted", value)) => source.trusted = value == "yes",
            Some(("arch", value)) if !value.split(',').any(|a| a == "amd64") => return None,
            _ => (),
        }
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    source.uris.push(words.next()?);
    source.suites.push(words.next()?);
    source.components.extend(words);
    Some(source)
}

/// Reads the enabled binary stanzas of a deb822 file.
fn stanzas(text: &str) -> Vec<Source> {
    let mut all = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            all.extend(stanza(&std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                *value += &format!("\n {}", line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_lowercase(), value.trim().to_owned()));
        }
    }
    all
}

fn stanza(fields: &[(String, String)]) -> Option<Source> {
    let field = |name: &str| {
        let found = fields.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    };
    let words = |name: &str| -> Vec<String> {
        let text = field(name).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    };
    let refused = field("enabled").is_some_and(|v| v.eq_ignore_ascii_case("no"))
        || !words("types").iter().any(|t| t == "deb")
        || field("architectures").is_some_and(|v| !v.split_whitespace().any(|a| a == "amd64"));
    (!refused).then(|| Source {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by").map(str::to_owned),
        trusted: field("trusted").is_some_and(|v| v.eq_ignore_ascii_case("yes")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://third.example/stable
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
";

    #[test]
    fn a_third_party_with_debians_suite_name_is_left_out() {
        let text = write(&select(stanzas(DEB822), "bookworm"), str::to_owned);
        assert_eq!(
            text,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
    }

    #[test]
    fn a_private_mirror_with_its_own_key_is_taken_when_it_is_all_there_is() {
        let own = stanzas(DEB822).pop().unwrap();
        let chosen = select(vec![own], "bookworm");
        let key = chosen[0].signed_by.as_deref().unwrap();
        assert!(key.contains("\n ."), "{key:?}");
    }

    #[test]
    fn one_line_sources_are_read_with_their_options() {
        let list = "\
deb http://mirror.example/debian bookworm main non-free # comment
#deb http://mirror.example/debian sid main
deb-src http://mirror.example/debian bookworm main
deb [arch=arm64] http://mirror.example/debian bookworm main
deb [arch=amd64,i386 signed-by=/k/debian-archive.gpg] http://mirror.example/sec bookworm-security main
";
        let sources: Vec<Source> = list.lines().filter_map(one_line).collect();
        let uris: Vec<&str> = sources.iter().map(|s| s.uris[0].as_str()).collect();
        assert_eq!(
            uris,
            ["http://mirror.example/debian", "http://mirror.example/sec"]
        );
        assert_eq!(
            sources[1].signed_by.as_deref(),
            Some("/k/debian-archive.gpg")
        );
        assert_eq!(select(sources, "bookworm").len(), 2);
    }

    #[test]
    fn another_suite_or_component_gives_nothing() {
        assert_eq!(select(stanzas(DEB822), "trixie"), Vec::new());
        let contrib = one_line("deb http://x.example/debian bookworm contrib").unwrap();
        assert_eq!(select(vec![contrib], "bookworm"), Vec::new());
    }
}
