//! The ACPI table that tells a template's kernel where its devices will be.
//!
//! QEMU describes the virtio-mmio slots that have a device, and a template has none. So the
//! slots are described here, as QEMU 7.2's `microvm` describes them (hw/i386/acpi-microvm.c):
//! slot N at 512 bytes each from 0xfeb00000, interrupt 24 + N, the last slot first, since
//! that is the first to be given a device. Linux takes further tables from the initial RAM
//! disk (Documentation/admin-guide/acpi/initrd_table_override.rst); a driver that finds a
//! slot empty leaves it alone.

/// Where the table lies in the initial RAM disk.
pub const PATH: &str = "kernel/firmware/acpi/virtio.aml";

/// Most devices of a machine: four disks, network, entropy, balloon.
pub const SLOTS: usize = 7;
/// The slot that is given a device first.
const LAST_SLOT: u8 = 23;
const FIRST_ADDRESS: u32 = 0xfeb0_0000;
const SLOT_SIZE: u32 = 512;
const FIRST_INTERRUPT: u32 = 24;

const HEADER: usize = 36;
const CHECKSUM: usize = 9;

/// The table, whole.
pub fn table() -> Vec<u8> {
    let slots: Vec<u8> = (0..SLOTS as u8)
        .flat_map(|place| device(LAST_SLOT - place))
        .collect();
    let scope = [&[0x10][..], &package(&[b"\\_SB_", &*slots].concat())].concat();
    let length = (HEADER + scope.len()) as u32;
    let mut table = Vec::new();
    table.extend(b"SSDT");
    table.extend(length.to_le_bytes());
    // Revision 2, and the checksum.
    table.extend([2, 0]);
    table.extend(b"BANGERSLOTS   ");
    table.extend(1_u32.to_le_bytes());
    table.extend(b"BNGR");
    table.extend(1_u32.to_le_bytes());
    table.extend(scope);
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[CHECKSUM] = sum.wrapping_neg();
    table
}

/// `Device (BGnn) { Name (_HID, "LNRO0005") Name (_UID, n) Name (_CCA, 1) Name (_CRS,
/// ResourceTemplate () { Memory32Fixed (ReadWrite, ...) Interrupt (ResourceConsumer, Level,
/// ActiveHigh, Exclusive) {...} }) }`
fn device(slot: u8) -> Vec<u8> {
    let number = u32::from(slot);
    let mut body = format!("BG{slot:02}").into_bytes();
    body.extend(b"\x08_HID\x0dLNRO0005\0");
    body.extend(b"\x08_UID\x0a");
    body.push(slot);
    body.extend(b"\x08_CCA\x01");
    let mut resources = vec![0x86, 9, 0, 1];
    resources.extend((FIRST_ADDRESS + SLOT_SIZE * number).to_le_bytes());
    resources.extend(SLOT_SIZE.to_le_bytes());
    resources.extend([0x89, 6, 0, 1, 1]);
    resources.extend((FIRST_INTERRUPT + number).to_le_bytes());
    resources.extend([0x79, 0]);
    let length = resources.len() as u8;
    body.extend(b"\x08_CRS\x11");
    body.extend(package(&[&[0x0a, length], &*resources].concat()));
    [&[0x5b, 0x82][..], &package(&body)].concat()
}

/// Content with its length before it, which counts itself ("PkgLength", ACPI 6.5, 20.2.4).
fn package(content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut package = match length {
        0..63 => vec![length as u8 + 1],
        _ => {
            let length = length + 2;
            assert!(length < 1 << 12, "two bytes hold the length");
            vec![0x40 | (length & 0x0f) as u8, (length >> 4) as u8]
        }
    };
    package.extend(content);
    package
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 7.2 writes for a disk in the last slot, but for the device's name
    /// (/sys/firmware/acpi/tables/DSDT of a guest).
    const QEMUS: [u8; 68] = *b"\x5b\x82\x42\x04VR23\x08_HID\x0dLNRO0005\x00\x08_UID\x0a\x17\
        \x08_CCA\x01\x08_CRS\x11\x1a\x0a\x17\x86\x09\x00\x01\x00\x2e\xb0\xfe\x00\x02\x00\x00\
        \x89\x06\x00\x01\x01\x2f\x00\x00\x00\x79\x00";

    #[test]
    fn a_slot_is_described_as_qemu_describes_it() {
        let mut ours = device(LAST_SLOT);
        assert_eq!(ours[4..8], *b"BG23");
        ours[4..8].copy_from_slice(b"VR23");
        assert_eq!(ours, QEMUS);
    }

    #[test]
    fn the_table_has_its_length_and_sums_up_to_nothing() {
        let table = table();
        assert_eq!(table.len(), HEADER + 1 + 2 + 5 + SLOTS * QEMUS.len());
        assert_eq!(table[4..8], (table.len() as u32).to_le_bytes());
        assert_eq!(
            table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
    }

    #[test]
    fn a_length_counts_itself() {
        assert_eq!(package(b"a"), b"\x02a");
        assert_eq!(package(&[7; 62])[0], 63);
        assert_eq!(package(&[7; 63])[..2], [0x41, 4]);
    }

    /// A device without a slot would not be seen by the guest, and nobody would say so.
    #[test]
    fn there_are_as_many_slots_as_a_machine_has_devices() {
        use crate::model::net::NetMode;
        use crate::model::vm::VmmKind;
        use crate::vmm::machine::tests::parts;
        use crate::vmm::{Vmm, qemu::Qemu};

        let parts = parts(VmmKind::QemuTcg, NetMode::Nat);
        let parts = parts.from_template("/p/memory".into(), "/p/state".into());
        let words = Qemu.arguments(&parts);
        let devices = words.iter().filter(|word| {
            let word = word.to_str().expect("paths of a test are text");
            word.starts_with("virtio-") && word.contains("-device")
        });
        assert_eq!(devices.count(), SLOTS);
    }
}
