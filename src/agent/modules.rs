//! Loads the kernel modules that ride in the initrd: `/modules/order` names one file
//! of `/modules` per line, a module after those it needs. What a kernel has built in
//! is simply not in the list.
//!
//! They are loaded without their signatures: they came with the kernel itself, from
//! one verified package into one content-addressed store, and checking twelve RSA
//! signatures was three quarters of the time of loading them under emulation. A
//! kernel that insists gets them as they are. (The kernel notes an unsigned module in
//! /proc/sys/kernel/tainted; modules that the guest loads later are checked as ever.)
//! Neither are their types (`.BTF`) given to the kernel, which would check and keep them
//! for whoever traces these drivers: a tenth of the time that is left.

use std::borrow::Cow;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::system::init_module;

use super::during;
use crate::failure::Failure;

const FOLDER: &str = "/modules";
/// What finds the machine's devices and gives them to their drivers. No other module
/// needs it.
const BUS: &str = "virtio_mmio.ko";

/// Below a kernel's module tree: the balloon, and the machine's source of random bytes,
/// without which the pool has been seeded with what the host sent.
const LATE: [&str; 2] = [
    "kernel/drivers/virtio/virtio_balloon.ko",
    "kernel/drivers/char/hw_random/virtio-rng.ko",
];

/// What ends a signed module (`include/linux/module_signature.h`), after the
/// signature and `struct module_signature`.
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";
/// `sizeof(struct module_signature)`; its last four bytes are the signature's length,
/// big-endian.
const SIGNATURE_INFO: usize = 12;
/// The section of types (Documentation/bpf/btf.rst), its name with what ends it.
const TYPES: &[u8] = b".BTF\0";

/// The modules of the list that are not loaded yet, in its order.
#[derive(Debug)]
pub struct Modules {
    left: Vec<PathBuf>,
}

impl Modules {
    /// Reads the list; none means that there is nothing to load.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn listed() -> Result<Modules, Failure> {
        let folder = Path::new(FOLDER);
        let list = folder.join("order");
        let order = match fs::read_to_string(&list) {
            Ok(order) => order,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(during(format!("read {}", list.display()))(error)),
        };
        let left = names(&order).map(|name| folder.join(name)).collect();
        Ok(Modules { left })
    }

    /// Loads all but the one that looks for devices ([`BUS`]): the drivers then know of
    /// none.
    ///
    /// # Errors
    /// A module is missing, or the kernel refuses it.
    pub fn load_without_devices(&mut self) -> Result<(), Failure> {
        let (bus, drivers) = std::mem::take(&mut self.left)
            .into_iter()
            .partition(|path| path.ends_with(BUS));
        self.left = bus;
        let drivers: Vec<PathBuf> = drivers;
        drivers.iter().try_for_each(|path| load(path))
    }

    /// Loads what is left.
    ///
    /// # Errors
    /// A module is missing, or the kernel refuses it.
    pub fn load(self) -> Result<(), Failure> {
        self.left.iter().try_for_each(|path| load(path))
    }
}

/// Loads from the module tree what nobody waits for, once the guest is ready: see
/// [`LATE`]. A kernel without such a module has it built in, or does without: the guest is
/// the same then, but for the memory that it gives back.
///
/// # Errors
/// A module is there and the kernel refuses it.
pub fn load_late(release: &str) -> Result<(), Failure> {
    let tree = Path::new("/lib/modules").join(release);
    let paths = LATE.iter().map(|path| tree.join(path));
    paths
        .filter(|path| path.is_file())
        .try_for_each(|path| load(&path))
}

fn names(order: &str) -> impl Iterator<Item = &str> {
    order.lines().map(str::trim).filter(|name| !name.is_empty())
}

fn load(path: &Path) -> Result<(), Failure> {
    let attempt = format!("load kernel module {}", path.display());
    let module = fs::read(path).map_err(during(attempt.clone()))?;
    let bare = without_types(unsigned(&module));
    let loaded = match init_module(&bare, c"") {
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

/// The module with an empty section of types, which the kernel takes for none; one that is
/// no ELF file of 64 bits is given as it is, for the kernel to refuse. Offsets are those of
/// `Elf64_Ehdr` and `Elf64_Shdr` (elf(5)).
fn without_types(module: &[u8]) -> Cow<'_, [u8]> {
    match size_of_types(module) {
        Some(place) => {
            let mut bare = module.to_vec();
            bare[place].fill(0);
            Cow::Owned(bare)
        }
        None => Cow::Borrowed(module),
    }
}

/// Where the size of the section [`TYPES`] stands.
fn size_of_types(module: &[u8]) -> Option<Range<usize>> {
    module.strip_prefix(b"\x7fELF\x02\x01")?;
    let table = usize::try_from(number::<8>(module, 0x28)?).ok()?;
    let [length, count, names] = [0x3a, 0x3c, 0x3e].map(|at| number::<2>(module, at));
    let length = usize::try_from(length?).ok()?;
    let header = |index: u64| {
        let index = usize::try_from(index).ok()?;
        table.checked_add(index.checked_mul(length)?)
    };
    let names = number::<8>(module, header(names?)?.checked_add(0x18)?)?;
    let section = (0..count?).filter_map(header).find(|header| {
        let name = number::<4>(module, *header).and_then(|name| name.checked_add(names));
        let name = name.and_then(|name| usize::try_from(name).ok());
        let rest = name.and_then(|name| module.get(name..));
        rest.is_some_and(|rest| rest.starts_with(TYPES))
    })?;
    let size = section.checked_add(0x20)?;
    let place = size..size.checked_add(8)?;
    module.get(place.clone()).map(|_| place)
}

/// A little-endian number of so many bytes.
fn number<const BYTES: usize>(module: &[u8], at: usize) -> Option<u64> {
    let bytes: &[u8; BYTES] = module.get(at..)?.first_chunk()?;
    let mut whole = [0; 8];
    whole[..BYTES].copy_from_slice(bytes);
    Some(u64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file of a header, two names, and their two sections.
    fn elf(second: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(0x40, 0);
        let names = [b"\0.shstrtab\0", second, b"\0"].concat();
        let table = 0x40 + names.len();
        file[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        file[0x3a..0x40].copy_from_slice(&[0x40, 0, 2, 0, 0, 0]);
        file.extend(&names);
        for (name, offset) in [(1_u32, 0x40_u64), (11, 0)] {
            let mut header = [0; 0x40];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&offset.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&0x1234_u64.to_le_bytes());
            file.extend(header);
        }
        file
    }

    #[test]
    fn types_are_of_no_size_and_all_else_is_as_it_was() {
        let file = elf(b".BTF");
        let bare = without_types(&file);
        let size = file.len() - 0x20..file.len() - 0x18;
        assert_eq!(bare[size.clone()], [0; 8]);
        assert_eq!(bare[..size.start], file[..size.start]);
        assert_eq!(bare[size.end..], file[size.end..]);
    }

    #[test]
    fn a_module_without_types_or_with_a_broken_table_is_given_as_it_is() {
        let other = elf(b".BTF.ext");
        assert_eq!(*without_types(&other), other);
        let whole = elf(b".BTF");
        for length in 0..whole.len() - 0x20 {
            assert_eq!(&*without_types(&whole[..length]), &whole[..length]);
        }
        let mut far = whole;
        far[0x28..0x30].fill(0xff);
        assert_eq!(*without_types(&far), far);
    }

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
