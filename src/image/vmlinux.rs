//! Takes the uncompressed kernel out of a bzImage.
//!
//! A bzImage is a small program with the compressed ELF file inside. The setup header
//! (Documentation/arch/x86/boot.rst, "The real-mode kernel header") says where: the
//! payload begins `payload_offset` bytes into the protected-mode code, which begins
//! after `setup_sects` + 1 sectors. A VMM that is given the ELF file itself spares the
//! guest the unpacking: 0.3 to 0.5 s where instructions are emulated.

use std::io::{self, Read};

/// Largest kernel that is believed, bytes: bounds what a damaged payload can make us
/// write. Debian's has 60 MB.
pub const LIMIT: u64 = 512 << 20;

/// Why a file gives no kernel.
#[derive(Debug, thiserror::Error)]
pub enum BadKernel {
    /// Not a bzImage of boot protocol 2.08 or later.
    #[error("not a Linux bzImage: {0}")]
    NotBzImage(&'static str),
    /// Compressed in a way that is not known here.
    #[error("compressed by an unknown method (it begins with {0:02x?})")]
    UnknownMethod([u8; 4]),
    /// The compressed bytes are damaged.
    #[error("the {method} payload is damaged")]
    Damaged {
        /// How it is compressed.
        method: &'static str,
        /// What the decoder says.
        #[source]
        cause: io::Error,
    },
    /// Unpacked well, but not to a kernel.
    #[error("the payload is no 64-bit x86 ELF file of the size it claims")]
    NotElf,
}

/// Unpacks the ELF file in a bzImage.
///
/// # Errors
/// The file is no bzImage, damaged, or compressed by bzip2, lzma or lzo.
pub fn extract(image: &[u8]) -> Result<Vec<u8>, BadKernel> {
    let kernel = unpack(payload(image)?)?;
    let is_elf64 = kernel.starts_with(b"\x7fELF\x02\x01");
    // e_machine: EM_X86_64 of the ELF gABI.
    let is_x86 = kernel.get(18..20) == Some(&[62, 0]);
    match is_elf64 && is_x86 {
        true => Ok(kernel),
        false => Err(BadKernel::NotElf),
    }
}

/// The compressed bytes and what follows them up to `payload_length`.
fn payload(image: &[u8]) -> Result<&[u8], BadKernel> {
    let bad = BadKernel::NotBzImage;
    let word = |offset: usize| -> Option<u32> {
        let bytes = image.get(offset..offset + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(bad("no setup header"));
    }
    let version = word(0x206).ok_or(bad("too short"))? & 0xffff;
    if version < 0x0208 {
        return Err(bad("older than boot protocol 2.08"));
    }
    // Zero stands for four, by the specification.
    let sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = word(0x248).ok_or(bad("too short"))? as usize;
    let length = word(0x24c).ok_or(bad("too short"))? as usize;
    let start = (sectors + 1) * 512 + offset;
    match start
        .checked_add(length)
        .and_then(|end| image.get(start..end))
    {
        Some(payload) if payload.len() > 8 => Ok(payload),
        _ => Err(bad("the payload reaches past the end of the file")),
    }
}

fn unpack(payload: &[u8]) -> Result<Vec<u8>, BadKernel> {
    let method = method(payload)?;
    // The last four bytes are the size of the unpacked kernel: gzip's own trailer, or
    // appended by the kernel's build (scripts/Makefile.lib, size_append).
    let (body, size) = payload.split_at(payload.len() - 4);
    let size = u32::from_le_bytes(size.try_into().expect("four bytes"));
    let unpacked = match method {
        "gzip" => read(flate2::read::GzDecoder::new(payload)),
        "xz" => read(lzma_rust2::XzReader::new(body, false)),
        "zstd" => zstd(body),
        _ => lz4_legacy(body),
    };
    match unpacked {
        Ok(kernel) if kernel.len() == size as usize => Ok(kernel),
        Ok(_) => Err(BadKernel::NotElf),
        Err(cause) => Err(BadKernel::Damaged { method, cause }),
    }
}

fn method(payload: &[u8]) -> Result<&'static str, BadKernel> {
    const MAGICS: [(&[u8], &str); 4] = [
        (&[0x1f, 0x8b, 0x08], "gzip"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&LZ4_LEGACY, "LZ4"),
    ];
    let known = MAGICS.iter().find(|(magic, _)| payload.starts_with(magic));
    known.map(|(_, method)| *method).ok_or_else(|| {
        BadKernel::UnknownMethod(payload[..4].try_into().expect("longer than eight"))
    })
}

fn read(decoder: impl Read) -> io::Result<Vec<u8>> {
    let mut kernel = Vec::new();
    decoder.take(LIMIT + 1).read_to_end(&mut kernel)?;
    match kernel.len() as u64 > LIMIT {
        true => Err(io::Error::other("it unpacks to more than any kernel")),
        false => Ok(kernel),
    }
}

/// The decoder leaves the comparison of checksums to its caller.
fn zstd(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(body).map_err(io::Error::other)?;
    let kernel = read(&mut decoder)?;
    let told = decoder.decoder.get_checksum_from_data();
    match told.is_none() || told == decoder.decoder.get_calculated_checksum() {
        true => Ok(kernel),
        false => Err(io::Error::other("its checksum is another one")),
    }
}

/// Begins a file of LZ4's legacy frame format (lz4_Frame_format.md, "Legacy frame").
const LZ4_LEGACY: [u8; 4] = 0x184c_2102u32.to_le_bytes();
/// Each block of it unpacks to at most this many bytes.
const LZ4_BLOCK: usize = 8 << 20;

fn lz4_legacy(body: &[u8]) -> io::Result<Vec<u8>> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let mut rest = &body[LZ4_LEGACY.len()..];
    let mut kernel = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let packed = after.get(..length).ok_or_else(short)?;
        let count =
            lz4_flex::block::decompress_into(packed, &mut block).map_err(io::Error::other)?;
        kernel.extend_from_slice(&block[..count]);
        if kernel.len() as u64 > LIMIT {
            return Err(io::Error::other("it unpacks to more than any kernel"));
        }
        rest = &after[length..];
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// An ELF header and enough text that every method has something to do.
    fn kernel() -> Vec<u8> {
        let mut kernel = b"\x7fELF\x02\x01\x01".to_vec();
        kernel.resize(18, 0);
        kernel.extend_from_slice(&[62, 0]);
        for number in 0..200_000u32 {
            kernel.extend_from_slice(&(number / 7).to_le_bytes());
        }
        kernel
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&64u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(&[0x90; 64]);
        image.extend_from_slice(payload);
        image.extend_from_slice(b"what follows the payload");
        image
    }

    fn piped(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.stdout
    }

    fn with_size(mut packed: Vec<u8>, kernel: &[u8]) -> Vec<u8> {
        packed.extend_from_slice(&(kernel.len() as u32).to_le_bytes());
        packed
    }

    #[test]
    fn a_gzip_payload_is_unpacked() {
        let kernel = kernel();
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packer.write_all(&kernel).unwrap();
        let image = bzimage(&packer.finish().unwrap());
        assert!(extract(&image).unwrap() == kernel);
    }

    #[test]
    fn an_xz_payload_with_the_kernels_own_filter_is_unpacked() {
        let kernel = kernel();
        // As scripts/xz_wrap.sh of the kernel packs it.
        let arguments = ["--check=crc32", "--x86", "--lzma2=dict=32MiB", "-c"];
        let packed = piped("xz", &arguments, &kernel);
        let image = bzimage(&with_size(packed, &kernel));
        assert!(extract(&image).unwrap() == kernel);
    }

    #[test]
    fn a_zstd_payload_is_unpacked() {
        let kernel = kernel();
        let packed = piped("zstd", &["-22", "--ultra", "-c"], &kernel);
        let image = bzimage(&with_size(packed, &kernel));
        assert!(extract(&image).unwrap() == kernel);
    }

    #[test]
    fn an_lz4_payload_of_several_blocks_is_unpacked() {
        let mut kernel = kernel();
        kernel.resize(LZ4_BLOCK + 100_000, 0x42);
        let packed = piped("lz4", &["-l", "-9", "-c"], &kernel);
        let image = bzimage(&with_size(packed, &kernel));
        assert!(extract(&image).unwrap() == kernel);
    }

    /// LZ4's legacy format has no checksum: there, only a broken structure is seen.
    #[test]
    fn damage_is_told_by_the_method() {
        let kernel = kernel();
        let arguments = [
            ("gzip", &["-c"][..], true),
            ("xz", &["-c"], true),
            ("zstd", &["-c"], true),
            ("lz4", &["-l", "-c"], false),
        ];
        for (program, arguments, has_checksum) in arguments {
            let mut packed = with_size(piped(program, arguments, &kernel), &kernel);
            let cut = packed.len() / 2;
            let refused = extract(&bzimage(&packed[..cut])).is_err();
            assert!(refused, "{program}, cut");
            packed[cut..cut + 8].fill(0x5a);
            let refused = extract(&bzimage(&packed)).is_err();
            assert!(refused || !has_checksum, "{program}, changed");
        }
    }

    #[test]
    fn a_cut_or_foreign_file_is_refused_by_reason() {
        let image = bzimage(&[0; 100]);
        let reasons = [
            (&image[..0x220], "too short"),
            (&image[..1650], "past the end"),
            (&b"#!/bin/sh"[..], "no setup header"),
            (&image[..], "unknown method"),
        ];
        for (bytes, reason) in reasons {
            let text = extract(bytes).unwrap_err().to_string();
            assert!(text.contains(reason), "{text} / {reason}");
        }
    }

    #[test]
    fn a_payload_that_is_no_kernel_is_refused() {
        let text = b"just text, and enough of it to be packed".repeat(50);
        let packed = with_size(piped("xz", &["-c"], &text), &text);
        assert!(matches!(extract(&bzimage(&packed)), Err(BadKernel::NotElf)));
    }
}
