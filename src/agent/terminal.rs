//! A pseudo-terminal for a command.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{
    InputModes, OptionalActions, SpecialCodeIndex, Winsize, tcgetattr, tcsetattr, tcsetwinsize,
};

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    /// Ours.
    pub master: OwnedFd,
    /// The command's.
    pub slave: OwnedFd,
}

/// Opens a terminal of the given size that knows UTF-8, so that erasing a character
/// in a line erases all its bytes.
///
/// # Errors
/// /dev/pts is not mounted, or there is no terminal left.
pub fn open(columns: u16, rows: u16) -> io::Result<Pty> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    let mut attributes = tcgetattr(&slave)?;
    attributes.input_modes |= InputModes::IUTF8;
    tcsetattr(&slave, OptionalActions::Now, &attributes)?;
    resize(&master, columns, rows)?;
    Ok(Pty { master, slave })
}

/// Gives the terminal another size; the kernel tells its foreground group.
///
/// # Errors
/// The descriptor is no terminal.
pub fn resize(master: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}

/// The byte that ends input on this terminal as it is set now (Ctrl-D unless changed).
pub fn end_of_input(master: impl AsFd) -> u8 {
    const CTRL_D: u8 = 4;
    tcgetattr(master).map_or(CTRL_D, |set| set.special_codes[SpecialCodeIndex::VEOF])
}
