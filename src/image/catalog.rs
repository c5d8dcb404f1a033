//! What can be pulled by name: the two tables of catalog/, compiled in.
//!
//! It decides nothing about what is in the store.

use serde::Deserialize;

use crate::failure::Failure;
use crate::model::ids::{ImageName, KernelName};
use crate::model::nearest::nearest;

const IMAGES: &str = include_str!("../../catalog/images.toml");
const KERNELS: &str = include_str!("../../catalog/kernels.toml");

/// Everything that can be pulled, in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    /// The images.
    pub images: Vec<ImageEntry>,
    /// The kernels.
    pub kernels: Vec<KernelEntry>,
}

/// An image that can be pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageEntry {
    /// The name users type.
    pub name: ImageName,
    /// One line for people.
    pub about: String,
    /// The folder of its recipe.
    pub recipe: String,
}

/// A kernel that can be pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelEntry {
    /// The name users type.
    pub name: KernelName,
    /// One line for people.
    pub about: String,
    /// The Debian package that depends on the concrete one.
    pub package: String,
    /// The Debian suite it is taken from.
    pub suite: String,
    /// What an initrd must load, without what those need.
    pub initrd_modules: Vec<String>,
    /// What a machine that is to become a template must load besides.
    pub template_modules: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageFile {
    image: Vec<ImageRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageRow {
    name: String,
    about: String,
    recipe: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KernelFile {
    kernel: Vec<KernelRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KernelRow {
    name: String,
    about: String,
    package: String,
    suite: String,
    initrd_modules: Vec<String>,
    template_modules: Vec<String>,
}

/// The catalogue of this binary.
pub fn catalog() -> Catalog {
    parse(IMAGES, KERNELS).expect("a test reads the catalogue that is compiled in")
}

fn parse(images: &str, kernels: &str) -> Result<Catalog, Failure> {
    let bad = |file: &str, error: &dyn std::fmt::Display| {
        Failure::bug(format!("read catalog/{file}")).because(error)
    };
    let images: ImageFile =
        toml_edit::de::from_str(images).map_err(|error| bad("images.toml", &error))?;
    let kernels: KernelFile =
        toml_edit::de::from_str(kernels).map_err(|error| bad("kernels.toml", &error))?;
    let image = |row: ImageRow| {
        Ok(ImageEntry {
            name: row.name.parse().map_err(|e| bad("images.toml", &e))?,
            about: row.about,
            recipe: row.recipe,
        })
    };
    let kernel = |row: KernelRow| {
        Ok(KernelEntry {
            name: row.name.parse().map_err(|e| bad("kernels.toml", &e))?,
            about: row.about,
            package: row.package,
            suite: row.suite,
            initrd_modules: row.initrd_modules,
            template_modules: row.template_modules,
        })
    };
    Ok(Catalog {
        images: images
            .image
            .into_iter()
            .map(image)
            .collect::<Result<_, Failure>>()?,
        kernels: kernels
            .kernel
            .into_iter()
            .map(kernel)
            .collect::<Result<_, Failure>>()?,
    })
}

impl Catalog {
    /// The image of this name.
    ///
    /// # Errors
    /// There is none; the hint offers the nearest names.
    pub fn image(&self, name: &ImageName) -> Result<&ImageEntry, Failure> {
        self.images
            .iter()
            .find(|entry| entry.name == *name)
            .ok_or_else(|| {
                let known = self.images.iter().map(|entry| entry.name.as_str());
                unknown("image", name.as_str(), known.collect())
            })
    }

    /// The kernel of this name.
    ///
    /// # Errors
    /// There is none; the hint offers the nearest names.
    pub fn kernel(&self, name: &KernelName) -> Result<&KernelEntry, Failure> {
        self.kernels
            .iter()
            .find(|entry| entry.name == *name)
            .ok_or_else(|| {
                let known = self.kernels.iter().map(|entry| entry.name.as_str());
                unknown("kernel", name.as_str(), known.collect())
            })
    }
}

fn unknown(kind: &str, name: &str, known: Vec<&str>) -> Failure {
    let failure = Failure::not_found(format!("find {kind} {name} in the catalogue"));
    match nearest(name, known.iter().copied()) {
        Some(near) => failure.hint(format!(
            "Did you mean {near}? Run `banger {kind} list` to see all."
        )),
        None => failure.hint(format!(
            "The catalogue has {}. Run `banger {kind} list` to see them.",
            known.join(" and ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_compiled_in_catalogue_is_sound() {
        let catalog = parse(IMAGES, KERNELS).unwrap();
        let names: HashSet<&str> = catalog.images.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names.len(), catalog.images.len());
        // The configuration's defaults (src/config/keys.rs).
        assert!(
            catalog
                .images
                .iter()
                .any(|e| e.name.as_str() == "debian-bookworm")
        );
        assert!(
            catalog
                .kernels
                .iter()
                .any(|e| e.name.as_str() == "debian-6.1-cloud")
        );
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let text = "[[image]]\nname = \"x\"\nabout = \"\"\nrecipe = \"x\"\nurl = \"y\"\n";
        let failure = parse(text, KERNELS).unwrap_err();
        assert!(failure.to_string().contains("url"), "{failure}");
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest_or_all() {
        let catalog = catalog();
        let failure = catalog.image(&"debian-minmal".parse().unwrap());
        let hint = failure.unwrap_err().hint.unwrap();
        assert!(hint.contains("mean debian-minimal?"), "{hint}");
        let failure = catalog.kernel(&"linux".parse().unwrap()).unwrap_err();
        assert!(failure.hint.unwrap().contains("debian-6.1-cloud"));
    }
}
