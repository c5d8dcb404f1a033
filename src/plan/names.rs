//! Names for VMs that nobody named: `calm-otter`.

use crate::model::ids::VmName;

const MANNERS: [&str; 32] = [
    "amber", "brave", "brisk", "calm", "clever", "crisp", "dapper", "eager", "early", "fond",
    "gentle", "glad", "golden", "happy", "hardy", "keen", "kind", "light", "lively", "lucky",
    "mellow", "merry", "mild", "neat", "noble", "proud", "quick", "quiet", "rapid", "sunny",
    "swift", "witty",
];
const ANIMALS: [&str; 32] = [
    "badger", "bear", "beaver", "bison", "crane", "deer", "dove", "eagle", "falcon", "finch",
    "fox", "gecko", "goose", "hare", "heron", "ibis", "koala", "lark", "lemur", "lynx", "marten",
    "mole", "newt", "otter", "owl", "panda", "raven", "robin", "seal", "stoat", "tern", "wren",
];

/// The name that these random bits mean; when it is taken, the same with a number.
pub fn generate(random: u64, is_taken: impl Fn(&VmName) -> bool) -> VmName {
    let manner = MANNERS[(random % 32) as usize];
    let animal = ANIMALS[(random / 32 % 32) as usize];
    (1_u64..)
        .map(|number| match number {
            1 => format!("{manner}-{animal}"),
            number => format!("{manner}-{animal}-{number}"),
        })
        .map(|text| text.parse().expect("lower-case words joined by hyphens"))
        .find(|name| !is_taken(name))
        .expect("there are more numbers than VMs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_makes_a_name_and_a_taken_one_gets_a_number() {
        for random in 0..1024 {
            generate(random, |_| false);
        }
        let first = generate(7, |_| false);
        let second = generate(7, |name| *name == first);
        assert_eq!(second.as_str(), format!("{first}-2"));
    }
}
