//! The smallest kernel that both VMMs boot: an ELF file with the entry point that Xen's
//! PVH protocol asks for, which writes one line to the serial port and halts.

/// The line that it writes.
pub const GREETING: &str = "the tiny kernel runs\n";

const LOAD_ADDRESS: u64 = 0x10_0000;
const HEADERS: usize = 64 + 2 * 56;
const NOTE: usize = 24;

/// 32-bit code: writes the bytes after itself to port 0x3f8 up to a NUL, then halts for
/// good (interrupts are off).
fn code() -> Vec<u8> {
    let text = u32::try_from(LOAD_ADDRESS).expect("it is 1 MiB") + CODE_LENGTH;
    let mut code = vec![0x66, 0xBA, 0xF8, 0x03, 0xBE]; // mov dx, 0x3f8; mov esi, ...
    code.extend(text.to_le_bytes()); //                    ... text
    code.extend([0xAC, 0x84, 0xC0]); //                 1: lodsb; test al, al
    code.extend([0x74, 0x03]); //                          jz 2f
    code.extend([0xEE, 0xEB, 0xF8]); //                    out dx, al; jmp 1b
    code.extend([0xF4, 0xEB, 0xFD]); //                 2: hlt; jmp 2b
    code
}
const CODE_LENGTH: u32 = 20;

/// The kernel's file.
pub fn image() -> Vec<u8> {
    let code = code();
    assert_eq!(code.len(), CODE_LENGTH as usize);
    let payload = [code.as_slice(), GREETING.as_bytes(), b"\0"].concat();
    let code_offset = (HEADERS + NOTE) as u64;
    let mut file = Vec::new();
    // Elf64_Ehdr (elf(5)): class 64, little endian; type EXEC, machine x86-64.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    words(&mut file, &[LOAD_ADDRESS, 64, 0]);
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    // PT_LOAD, readable and executable.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let length = payload.len() as u64;
    words(
        &mut file,
        &[
            code_offset,
            LOAD_ADDRESS,
            LOAD_ADDRESS,
            length,
            length,
            4096,
        ],
    );
    // PT_NOTE.
    file.extend([4, 0, 0, 0, 4, 0, 0, 0]);
    words(
        &mut file,
        &[HEADERS as u64, 0, 0, NOTE as u64, NOTE as u64, 4],
    );
    // XEN_ELFNOTE_PHYS32_ENTRY is 18 (Xen, public/elfnote.h).
    file.extend([4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0]);
    file.extend(b"Xen\0");
    words(&mut file, &[LOAD_ADDRESS]);
    file.extend(payload);
    file
}

fn words(file: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        file.extend(word.to_le_bytes());
    }
}
