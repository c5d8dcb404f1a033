//! What VMs boot from: whether the files of an image or of a kernel are as they were made.
//!
//! Sizes, manifests and first blocks only: microseconds for an image, less than a
//! millisecond for a kernel with its modules. So it is asked before every start, for
//! every list, and before a pull says that there is nothing to do.

use crate::host::layout::Layout;
use crate::image::manifest;
use crate::model::ids::ContentId;
use crate::model::vm::{ImageRef, KernelRef};
use crate::plan::request::PullKey;
use crate::plan::step::{Fault, FaultKind};

/// What a VM boots from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Its image.
    pub image: ImageRef,
    /// Its kernel.
    pub kernel: KernelRef,
}

/// What is wrong with a content of the store; `None` when it is whole.
pub fn damage(layout: &Layout, key: &PullKey, content: &ContentId) -> Option<String> {
    let folder = match key {
        PullKey::Image(_) => layout.images().join(content.as_str()),
        PullKey::Kernel(_) => layout.kernel(content),
    };
    let checked = manifest::check(&folder, content);
    checked.err().map(|failure| failure.to_string())
}

/// Refuses a damaged base by name, before it is only a guest that never answers.
///
/// # Errors
/// The image or the kernel is damaged; the remedy makes it again.
pub fn check(layout: &Layout, base: &Base) -> Result<(), Fault> {
    let image = PullKey::Image(base.image.name.clone());
    let kernel = PullKey::Kernel(base.kernel.name.clone());
    for (key, content) in [(image, &base.image.content), (kernel, &base.kernel.content)] {
        if let Some(damage) = damage(layout, &key, content) {
            let what = format!("use {key}: it is damaged: {damage}");
            // Packages may have changed since: then what is made has another content.
            let remedy = format!(
                "Run `banger {} --force` to make it again; if that gives another content than {content}, every VM that is kept of it needs to be made again too.",
                key.pull_command()
            );
            return Err(Fault::new(FaultKind::Missing, what).remedy(Some(remedy)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_that_is_not_there_is_named_with_what_to_type() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout {
            state: folder.path().join("state"),
            cache: folder.path().join("cache"),
            runtime: folder.path().join("run"),
        };
        let base = Base {
            image: ImageRef {
                name: "debian-minimal".parse().unwrap(),
                content: "00000000000000aa".parse().unwrap(),
            },
            kernel: KernelRef {
                name: "debian-6.1-cloud".parse().unwrap(),
                content: "00000000000000bb".parse().unwrap(),
            },
        };
        let fault = check(&layout, &base).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Missing);
        assert!(fault.what.contains("image debian-minimal"), "{fault}");
        let remedy = fault.remedy.unwrap();
        assert!(
            remedy.contains("`banger image pull debian-minimal --force`"),
            "{remedy}"
        );
        // `vm run` has removed the one that it made.
        assert!(!remedy.contains("this VM"), "{remedy}");
    }
}
