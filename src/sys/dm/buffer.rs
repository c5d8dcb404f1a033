//! The buffer of a device-mapper call: what is written into it, what is read from it.
//!
//! Layouts from `linux/dm-ioctl.h`. Pure; what the kernel sends is checked before it is
//! believed, so a cut answer is an error and never a read past its end.

use std::io;

use super::{Device, NAME_LIMIT, State, Target};

pub(super) const DM_READONLY_FLAG: u32 = 1 << 0;
pub(super) const DM_SUSPEND_FLAG: u32 = 1 << 1;
pub(super) const DM_STATUS_TABLE_FLAG: u32 = 1 << 4;
pub(super) const DM_ACTIVE_PRESENT_FLAG: u32 = 1 << 5;
pub(super) const DM_INACTIVE_PRESENT_FLAG: u32 = 1 << 6;
pub(super) const DM_BUFFER_FULL_FLAG: u32 = 1 << 8;
pub(super) const DM_DEFERRED_REMOVE: u32 = 1 << 17;

/// `struct dm_ioctl` without its last member, which only pads.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; NAME_LIMIT + 1],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// `struct dm_target_spec`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct TargetSpec {
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target_type: [u8; 16],
}

const _: () = assert!(size_of::<Header>() == 312);
const _: () = assert!(size_of::<TargetSpec>() == 40);

const HEADER: usize = size_of::<Header>();
const SPEC: usize = size_of::<TargetSpec>();

/// The interface's version that we speak: the lowest with everything used here but the
/// deferred removal, which older kernels ignore (4.27, Linux 3.14, has that too).
const VERSION: [u32; 3] = [4, 0, 0];

pub(super) fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "device-mapper's answer is malformed",
    )
}

/// What a call says.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) name: &'a str,
    pub(super) uuid: &'a str,
    pub(super) flags: u32,
    pub(super) event_nr: u32,
    pub(super) table: &'a [Target],
    /// For the first target of a device; none if it is empty.
    pub(super) message: &'a str,
}

impl Request<'_> {
    /// As bytes, with room for so many in all.
    pub(super) fn encode(&self, room: usize) -> io::Result<Vec<u8>> {
        let mut header = Header {
            version: VERSION,
            data_size: room as u32,
            data_start: HEADER as u32,
            target_count: self.table.len() as u32,
            open_count: 0,
            flags: self.flags,
            event_nr: self.event_nr,
            padding: 0,
            dev: 0,
            name: [0; NAME_LIMIT + 1],
            uuid: [0; 129],
            data: [0; 7],
        };
        put(&mut header.name, self.name)?;
        put(&mut header.uuid, self.uuid)?;
        let mut bytes = match self.message {
            "" => encode_table(self.table)?,
            message => encode_message(message),
        };
        if HEADER + bytes.len() > room {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        bytes.splice(0..0, header.bytes());
        bytes.resize(room, 0);
        Ok(bytes)
    }
}

/// Copies a text that must leave room for its closing NUL.
fn put(target: &mut [u8], text: &str) -> io::Result<()> {
    if text.len() >= target.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    target[..text.len()].copy_from_slice(text.as_bytes());
    Ok(())
}

/// Each line: its specification, its parameters with a NUL, padding to eight bytes.
/// `next` counts from the specification's own beginning here, and from the beginning of
/// the data in answers (dm-ioctl.h).
fn encode_table(table: &[Target]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for target in table {
        let size = (SPEC + target.text.len() + 1).next_multiple_of(8);
        let mut kind = [0; 16];
        put(&mut kind, &target.kind)?;
        let from = bytes.len();
        bytes.extend(target.start.to_ne_bytes());
        bytes.extend(target.length.to_ne_bytes());
        bytes.extend(0_i32.to_ne_bytes());
        bytes.extend((size as u32).to_ne_bytes());
        bytes.extend(kind);
        bytes.extend(target.text.as_bytes());
        bytes.resize(from + size, 0);
    }
    Ok(bytes)
}

/// `struct dm_target_msg`: the sector of the target that is meant, the text, a NUL.
fn encode_message(text: &str) -> Vec<u8> {
    let mut bytes = 0_u64.to_ne_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

impl Header {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        let words = [
            self.version[0],
            self.version[1],
            self.version[2],
            self.data_size,
            self.data_start,
            self.target_count,
            self.open_count.cast_unsigned(),
            self.flags,
            self.event_nr,
            self.padding,
        ];
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(self.dev.to_ne_bytes());
        bytes.extend(self.name);
        bytes.extend(self.uuid);
        bytes.extend(self.data);
        bytes
    }
}

/// What came back.
pub(super) struct Answer {
    pub(super) header: AnswerHeader,
    pub(super) bytes: Vec<u8>,
}

/// The part of a header that is looked at.
pub(super) struct AnswerHeader {
    pub(super) version: [u32; 3],
    pub(super) data_start: usize,
    pub(super) target_count: u32,
    pub(super) open_count: u32,
    pub(super) flags: u32,
    pub(super) dev: u64,
}

impl Answer {
    pub(super) fn decode(bytes: Vec<u8>) -> Answer {
        let word = |at: usize| read_u32(&bytes, at).unwrap_or(0);
        let header = AnswerHeader {
            version: [word(0), word(4), word(8)],
            data_start: word(16) as usize,
            target_count: word(20),
            open_count: word(24),
            flags: word(28),
            dev: read_u64(&bytes, 40).unwrap_or(0),
        };
        Answer { header, bytes }
    }

    pub(super) fn data(&self) -> &[u8] {
        self.bytes.get(self.header.data_start..).unwrap_or(&[])
    }

    pub(super) fn device(&self) -> Device {
        let flags = self.header.flags;
        let live = flags & DM_ACTIVE_PRESENT_FLAG != 0
            && flags & (DM_SUSPEND_FLAG | DM_INACTIVE_PRESENT_FLAG) == 0;
        let uuid = self.bytes.get(48 + NAME_LIMIT + 1..).unwrap_or(&[]);
        Device {
            number: self.header.dev,
            uuid: text(uuid).unwrap_or_default(),
            users: self.header.open_count,
            state: match live {
                true => State::Live,
                false => State::Unfinished,
            },
            is_leaving: flags & DM_DEFERRED_REMOVE != 0,
        }
    }
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at + 8)?;
    Some(u64::from_ne_bytes(word.try_into().ok()?))
}

/// The text at the beginning of these bytes, up to its NUL.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// The lines of a table or a status; `None` for what no kernel sends.
pub(super) fn read_targets(data: &[u8], count: u32) -> Option<Vec<Target>> {
    let mut targets = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let spec = data.get(at..)?;
        targets.push(Target {
            start: read_u64(spec, 0)?,
            length: read_u64(spec, 8)?,
            kind: text(spec.get(24..SPEC)?)?,
            text: text(spec.get(SPEC..)?)?,
        });
        let next = read_u32(spec, 20)? as usize;
        if next <= at {
            break;
        }
        at = next;
    }
    (targets.len() == count as usize).then_some(targets)
}

/// The names in a list of `struct dm_name_list`: device number, offset of the next from
/// this one, name.
pub(super) fn read_names(data: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = data;
    // An empty list is one entry of device number 0.
    if read_u64(rest, 0)? == 0 {
        return Some(names);
    }
    loop {
        names.push(text(rest.get(12..)?)?);
        match read_u32(rest, 8)? as usize {
            0 => return Some(names),
            next => rest = rest.get(next..)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Vec<Target> {
        let line = |start, length, kind: &str, text: &str| Target {
            start,
            length,
            kind: kind.to_owned(),
            text: text.to_owned(),
        };
        vec![
            line(0, 2048, "linear", "7:0 0"),
            line(2048, 4096, "zero", ""),
        ]
    }

    /// The same lines as the kernel sends them: `next` from the beginning of the data.
    fn as_answered(mut bytes: Vec<u8>) -> Vec<u8> {
        let first = read_u32(&bytes, 20).unwrap();
        let second = read_u32(&bytes, first as usize + 20).unwrap();
        let at = first as usize + 20;
        bytes[at..at + 4].copy_from_slice(&(first + second).to_ne_bytes());
        bytes
    }

    #[test]
    fn a_table_reads_back_as_it_was_written() {
        let bytes = as_answered(encode_table(&table()).unwrap());
        assert_eq!(bytes.len() % 8, 0);
        assert_eq!(read_targets(&bytes, 2), Some(table()));
    }

    #[test]
    fn damaged_answers_are_refused_and_never_read_past_their_end() {
        let bytes = as_answered(encode_table(&table()).unwrap());
        for cut in 0..bytes.len() - 16 {
            let whole = read_targets(&bytes[..cut], 2);
            assert_eq!(whole, None, "cut to {cut}");
        }
        assert_eq!(read_targets(&bytes, 3), None);
        assert_eq!(read_names(&[1; 64]), None);
    }

    #[test]
    fn names_are_read_one_after_another_and_an_empty_list_has_none() {
        let mut bytes = Vec::new();
        for (number, next, name) in [(1_u64, 24_u32, "bgr-0000002a\0"), (2, 0, "other\0")] {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend(number.to_ne_bytes());
            bytes.extend(next.to_ne_bytes());
            bytes.extend(name.as_bytes());
        }
        // 12 + 13 bytes make the second begin at 32, not 24.
        bytes[8..12].copy_from_slice(&32_u32.to_ne_bytes());
        let names = read_names(&bytes).unwrap();
        assert_eq!(names, ["bgr-0000002a", "other"]);
        assert_eq!(read_names(&[0; 16]), Some(Vec::new()));
    }

    #[test]
    fn a_message_is_for_the_target_of_the_first_sector() {
        let request = Request {
            message: "mark here",
            ..Request::default()
        };
        let answer = Answer::decode(request.encode(4096).unwrap());
        assert_eq!(read_u64(answer.data(), 0), Some(0));
        assert_eq!(text(&answer.data()[8..]).unwrap(), "mark here");
    }

    #[test]
    fn a_header_lies_where_the_kernel_looks() {
        let request = Request {
            name: "bgr-0000002a",
            uuid: "banger-0000002a",
            ..Request::default()
        };
        let answer = Answer::decode(request.encode(4096).unwrap());
        assert_eq!(answer.header.data_start, 312);
        assert_eq!(text(&answer.bytes[48..]).unwrap(), "bgr-0000002a");
        assert_eq!(answer.device().uuid, "banger-0000002a");
        assert_eq!(answer.device().state, State::Unfinished);
        let long = "x".repeat(128);
        let request = Request {
            name: &long,
            ..Request::default()
        };
        assert!(request.encode(4096).is_err());
    }
}
