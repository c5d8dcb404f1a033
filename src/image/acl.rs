//! Turns POSIX access control lists from the kernel's form into ext4's.
//!
//! Tar archives carry what getxattr(2) gives (version 2: entries of eight bytes, see
//! linux/posix_acl_xattr.h); ext4 stores version 1, where only entries for a named user
//! or group have an id (fs/ext4/acl.h). Copied as it is, the list reads back as EINVAL.

use std::borrow::Cow;

/// The tags that carry an id: ACL_USER and ACL_GROUP of linux/posix_acl.h.
const WITH_ID: [u16; 2] = [0x02, 0x08];

/// What goes to the disk for an extended attribute; `None` if it is a damaged list.
pub fn on_disk<'v>(name: &str, value: &'v [u8]) -> Option<Cow<'v, [u8]>> {
    if !matches!(name, "system.posix_acl_access" | "system.posix_acl_default") {
        return Some(Cow::Borrowed(value));
    }
    let entries = value.strip_prefix(&2u32.to_le_bytes())?;
    if !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut disk = 1u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        disk.extend_from_slice(&entry[..4]);
        if WITH_ID.contains(&tag) {
            disk.extend_from_slice(&entry[4..]);
        }
    }
    Some(Cow::Owned(disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_users_and_groups_keep_their_id() {
        let kernel = [
            &2u32.to_le_bytes()[..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[8, 0, 5, 0, 4, 0, 0, 0],
        ]
        .concat();
        let disk = on_disk("system.posix_acl_access", &kernel).unwrap();
        let expected = [
            &1u32.to_le_bytes()[..],
            &[1, 0, 6, 0],
            &[8, 0, 5, 0, 4, 0, 0, 0],
        ]
        .concat();
        assert_eq!(*disk, expected);
    }

    #[test]
    fn a_damaged_list_is_none_and_other_attributes_stay() {
        assert_eq!(on_disk("system.posix_acl_access", b"\x02\0\0\0\x01"), None);
        assert_eq!(on_disk("system.posix_acl_default", b""), None);
        assert_eq!(&*on_disk("user.x", b"\x02").unwrap(), b"\x02");
    }
}
