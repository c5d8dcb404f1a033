//! Loads the kernel modules that ride in the initrd: `/modules/order` names one file
//! of `/modules` per line, a module after those it needs. What a kernel has built in
//! is simply not in the list.

use std::fs::{self, File};
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use super::during;
use crate::failure::Failure;

const FOLDER: &str = "/modules";

/// Loads every module of the list; no list means that there is nothing to load.
///
/// # Errors
/// A module is missing, or the kernel refuses it.
pub fn load_all() -> Result<(), Failure> {
    let folder = Path::new(FOLDER);
    let list = folder.join("order");
    let order = match fs::read_to_string(&list) {
        Ok(order) => order,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(during(format!("read {}", list.display()))(error)),
    };
    names(&order).try_for_each(|name| load(&folder.join(name)))
}

fn names(order: &str) -> impl Iterator<Item = &str> {
    order.lines().map(str::trim).filter(|name| !name.is_empty())
}

fn load(path: &Path) -> Result<(), Failure> {
    let attempt = format!("load kernel module {}", path.display());
    let file = File::open(path).map_err(during(attempt.clone()))?;
    match finit_module(&file, c"", 0) {
        // EEXIST: built in under the same name, or in the list twice.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(during(attempt)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_one_name_per_line() {
        let seen: Vec<_> = names("virtio.ko\nvirtio_mmio.ko\n\n").collect();
        assert_eq!(seen, ["virtio.ko", "virtio_mmio.ko"]);
    }
}
