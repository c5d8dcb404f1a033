//! What a machine that is to become a template and its VMM agree on.

/// The port that such a guest writes to when it may be written down: that of QEMU's `pvpanic`
/// device (docs/specs/pvpanic.txt of QEMU 7.2), which stops the processors within the
/// instruction.
pub const PAUSE_PORT: u16 = 0x505;
/// What is written there: the device's bit for a panic.
pub const PAUSE: u8 = 1;
