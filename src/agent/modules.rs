//! Loads the kernel modules that ride in the initrd: `/modules/order` names one file
//! of `/modules` per line, a module after those it needs. What a kernel has built in
//! is simply not in the list.
//!
//! They are loaded without their signatures: they came with the kernel itself, from
//! one verified package into one content-addressed store, and checking twelve RSA
//! signatures was three quarters of the time of loading them under emulation. A
//! kernel that insists gets them as they are. (The kernel notes an unsigned module in
//! /proc/sys/kernel/tainted; modules that the guest loads later are checked as ever.)

use std::fs;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::init_module;

use super::during;
use crate::failure::Failure;

const FOLDER: &str = "/modules";

/// What ends a signed module (`include/linux/module_signature.h`), after the
/// signature and `struct module_signature`.
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";
/// `sizeof(struct module_signature)`; its last four bytes are the signature's length,
/// big-endian.
const SIGNATURE_INFO: usize = 12;

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

/// Loads the driver of the balloon from the image's module tree, once nothing waits for it
/// any more. A kernel without such a module has it built in, or does without: the guest
/// is the same then, but for the memory that it gives back.
///
/// # Errors
/// The module is there and the kernel refuses it.
pub fn load_late(release: &str) -> Result<(), Failure> {
    let tree = Path::new("/lib/modules").join(release);
    let path = tree.join("kernel/drivers/virtio/virtio_balloon.ko");
    match path.is_file() {
        true => load(&path),
        false => Ok(()),
    }
}

fn names(order: &str) -> impl Iterator<Item = &str> {
    order.lines().map(str::trim).filter(|name| !name.is_empty())
}

fn load(path: &Path) -> Result<(), Failure> {
    let attempt = format!("load kernel module {}", path.display());
    let module = fs::read(path).map_err(during(attempt.clone()))?;
    let loaded = match init_module(unsigned(&module), c"") {
        Err(Errno::NOKEY | Errno::KEYREJECTED | Errno::PERM) => init_module(&module, c""),
        loaded => loaded,
    };
    match loaded {
        // EEXIST: built in under the same name, or in the list twice.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(during(attempt)(error)),
    }
}

/// The module without its signature; one without is given as it is.
fn unsigned(module: &[u8]) -> &[u8] {
    let cut = || {
        let rest = module.strip_suffix(SIGNATURE_MARK)?;
        let (rest, info) = rest.split_at_checked(rest.len().checked_sub(SIGNATURE_INFO)?)?;
        let length = u32::from_be_bytes(*info.last_chunk()?);
        rest.get(..rest.len().checked_sub(usize::try_from(length).ok()?)?)
    };
    cut().unwrap_or(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_one_name_per_line() {
        let seen: Vec<_> = names("virtio.ko\nvirtio_mmio.ko\n\n").collect();
        assert_eq!(seen, ["virtio.ko", "virtio_mmio.ko"]);
    }

    #[test]
    fn a_signature_is_cut_off_and_nothing_else() {
        let mut module = b"\x7fELF code".to_vec();
        assert_eq!(unsigned(&module), b"\x7fELF code");
        module.extend(b"sig");
        module.extend([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        module.extend(SIGNATURE_MARK);
        assert_eq!(unsigned(&module), b"\x7fELF code");
    }

    #[test]
    fn a_length_beyond_the_module_leaves_it_as_it_is() {
        let mut module = vec![0xff; SIGNATURE_INFO];
        module.extend(SIGNATURE_MARK);
        assert_eq!(unsigned(&module), module);
        assert_eq!(unsigned(SIGNATURE_MARK), SIGNATURE_MARK);
    }
}
