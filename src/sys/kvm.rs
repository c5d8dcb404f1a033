//! The smallest guest that KVM can run: one processor in flat 32-bit mode, one page of
//! code. Not in real mode, which older processors and some nested ones leave to KVM's
//! emulator even where ordinary guests run at full speed.
//!
//! Numbers and layouts from `linux/kvm.h` and `asm/kvm.h`; see the kernel's
//! Documentation/virt/kvm/api.rst. x86-64 only.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{self, Getter, Ioctl, IoctlOutput, Opcode, Setter, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

const KVM: u8 = 0xAE;
/// Of `struct kvm_run`: where the exit reason lies.
const EXIT_REASON_OFFSET: usize = 8;
const EXIT_IO: u32 = 2;
const EXIT_HLT: u32 = 5;
const PAGE: usize = 4096;

/// The version that every kernel since 2.6.22 answers.
pub const API_VERSION: usize = 12;

/// Extensions without which no ordinary guest runs: KVM_CAP_USER_MEMORY,
/// KVM_CAP_SET_TSS_ADDR, KVM_CAP_EXT_CPUID, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD,
/// KVM_CAP_IOEVENTFD.
pub const NEEDED: [(usize, &str); 6] = [
    (3, "user memory"),
    (4, "a TSS address"),
    (7, "CPUID"),
    (0, "an interrupt controller"),
    (32, "interrupts by eventfd"),
    (36, "I/O events by eventfd"),
];

/// Why a guest stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It wrote to a port.
    Io,
    /// It halted.
    Halt,
    /// Any other reason, by its number.
    Other(u32),
}

/// `/dev/kvm`, open.
#[derive(Debug)]
pub struct Kvm(OwnedFd);

/// A virtual machine with one processor and one page of memory at address 0.
#[derive(Debug)]
pub struct TinyMachine {
    // In the order in which they must go.
    run: Mapping,
    processor: OwnedFd,
    _machine: OwnedFd,
    _memory: Mapping,
}

impl Kvm {
    /// Opens the device.
    pub fn open() -> io::Result<Kvm> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(Kvm(rustix::fs::open("/dev/kvm", flags, Mode::empty())?))
    }

    /// KVM_GET_API_VERSION.
    pub fn api_version(&self) -> io::Result<usize> {
        returning::<{ opcode::none(KVM, 0x00) }>(&self.0, 0)
    }

    /// KVM_CHECK_EXTENSION: 0 is no.
    pub fn extension(&self, number: usize) -> io::Result<usize> {
        returning::<{ opcode::none(KVM, 0x03) }>(&self.0, number)
    }

    /// Makes a machine whose processor is about to execute `code` at address 0 in 32-bit
    /// mode without paging.
    pub fn tiny_machine(&self, code: &[u8]) -> io::Result<TinyMachine> {
        let memory = Mapping::anonymous(PAGE)?;
        memory.fill(code)?;
        let machine = descriptor(returning::<{ opcode::none(KVM, 0x01) }>(&self.0, 0)?)?;
        give_memory(&machine, &memory)?;
        let processor = descriptor(returning::<{ opcode::none(KVM, 0x41) }>(&machine, 0)?)?;
        let run_size = returning::<{ opcode::none(KVM, 0x04) }>(&self.0, 0)?;
        let run = Mapping::of(&processor, run_size)?;
        start_at_zero(&processor)?;
        Ok(TinyMachine {
            run,
            processor,
            _machine: machine,
            _memory: memory,
        })
    }
}

impl TinyMachine {
    /// Lets the processor run until it stops. May take forever: only a signal that ends
    /// the process ends it.
    pub fn run(&mut self) -> io::Result<Exit> {
        returning::<{ opcode::none(KVM, 0x80) }>(&self.processor, 0)?;
        Ok(match self.run.word(EXIT_REASON_OFFSET) {
            EXIT_IO => Exit::Io,
            EXIT_HLT => Exit::Halt,
            other => Exit::Other(other),
        })
    }
}

/// `struct kvm_userspace_memory_region`.
#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    size: u64,
    address: u64,
}
const _: () = assert!(size_of::<MemoryRegion>() == 32);

/// `struct kvm_segment`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    privilege: u8,
    is_32_bit: u8,
    is_code_or_data: u8,
    is_64_bit: u8,
    in_pages: u8,
    available: u8,
    unusable: u8,
    padding: u8,
}
const _: () = assert!(size_of::<Segment>() == 24);

/// `struct kvm_sregs`: segments cs, ds, es, fs, gs, ss, tr, ldt; the two descriptor
/// tables (four words); control register 0; and what is of no interest here.
#[repr(C)]
struct SystemRegisters {
    segments: [Segment; 8],
    tables: [u64; 4],
    control: u64,
    rest: [u64; 10],
}
const _: () = assert!(size_of::<SystemRegisters>() == 312);

/// Of control register 0: protected mode (Intel SDM, volume 3, 2.5).
const PROTECTED: u64 = 1;
/// Segment types: code that may be read, data that may be written, both accessed
/// (Intel SDM, volume 3, 3.4.5.1).
const CODE: u8 = 11;
const DATA: u8 = 3;

/// All 4 GiB from address 0.
fn flat(kind: u8, selector: u16) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        kind,
        present: 1,
        privilege: 0,
        is_32_bit: 1,
        is_code_or_data: 1,
        is_64_bit: 0,
        in_pages: 1,
        available: 0,
        unusable: 0,
        padding: 0,
    }
}

/// `struct kvm_regs`: rax to r15 (16 words), rip, rflags.
#[repr(C)]
struct Registers {
    general: [u64; 16],
    instruction: u64,
    flags: u64,
}
const _: () = assert!(size_of::<Registers>() == 144);

fn give_memory(machine: &OwnedFd, memory: &Mapping) -> io::Result<()> {
    let region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_address: 0,
        size: memory.size as u64,
        address: memory.start.as_ptr() as u64,
    };
    const SET: Opcode = opcode::write::<MemoryRegion>(KVM, 0x46);
    // SAFETY: KVM_SET_USER_MEMORY_REGION reads one `struct kvm_userspace_memory_region`.
    let request = unsafe { Setter::<SET, MemoryRegion>::new(region) };
    // SAFETY: the region is a mapping of ours that `TinyMachine` keeps longer than the
    // machine.
    Ok(unsafe { ioctl::ioctl(machine, request) }?)
}

/// Takes the processor from how it comes up (real mode, at the end of memory) to 32-bit
/// code at address 0.
fn start_at_zero(processor: &OwnedFd) -> io::Result<()> {
    const GET_SYSTEM: Opcode = opcode::read::<SystemRegisters>(KVM, 0x83);
    const SET_SYSTEM: Opcode = opcode::write::<SystemRegisters>(KVM, 0x84);
    const SET: Opcode = opcode::write::<Registers>(KVM, 0x82);
    // SAFETY: KVM_GET_SREGS writes one `struct kvm_sregs`, any bytes of which are valid.
    let get = unsafe { Getter::<GET_SYSTEM, SystemRegisters>::new() };
    // SAFETY: the opcode and its argument belong together, see above.
    let mut system = unsafe { ioctl::ioctl(processor, get) }?;
    system.segments[0] = flat(CODE, 8);
    for segment in &mut system.segments[1..6] {
        *segment = flat(DATA, 16);
    }
    system.control |= PROTECTED;
    // SAFETY: KVM_SET_SREGS reads one `struct kvm_sregs`.
    let set = unsafe { Setter::<SET_SYSTEM, SystemRegisters>::new(system) };
    // SAFETY: the opcode and its argument belong together, see above.
    unsafe { ioctl::ioctl(processor, set) }?;
    let registers = Registers {
        general: [0; 16],
        instruction: 0,
        // Bit 1 is always set (Intel SDM, EFLAGS).
        flags: 2,
    };
    // SAFETY: KVM_SET_REGS reads one `struct kvm_regs`.
    let set = unsafe { Setter::<SET, Registers>::new(registers) };
    // SAFETY: the opcode and its argument belong together, see above.
    Ok(unsafe { ioctl::ioctl(processor, set) }?)
}

/// An ioctl whose argument is a number and whose answer is its return value.
struct Returning<const OPCODE: Opcode>(usize);

// SAFETY: the argument is a number, no memory is touched, and the output is the return
// value as it is.
unsafe impl<const OPCODE: Opcode> Ioctl for Returning<OPCODE> {
    type Output = usize;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        OPCODE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        ptr::without_provenance_mut(self.0)
    }

    unsafe fn output_from_ptr(
        output: IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<usize> {
        Ok(usize::try_from(output).unwrap_or_default())
    }
}

fn returning<const OPCODE: Opcode>(descriptor: impl AsFd, argument: usize) -> io::Result<usize> {
    // SAFETY: only opcodes of KVM that take a number are used with this function.
    Ok(unsafe { ioctl::ioctl(descriptor, Returning::<OPCODE>(argument)) }?)
}

fn descriptor(number: usize) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(io::Error::other)?;
    // SAFETY: KVM_CREATE_VM and KVM_CREATE_VCPU return a new descriptor that nobody else
    // knows yet.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Memory that is unmapped when it goes.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

impl Mapping {
    fn anonymous(size: usize) -> io::Result<Mapping> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), size, access, flags) }?;
        Mapping::new(start, size)
    }

    fn of(descriptor: &OwnedFd, size: usize) -> io::Result<Mapping> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap(ptr::null_mut(), size, access, flags, descriptor, 0) }?;
        Mapping::new(start, size)
    }

    fn new(start: *mut std::ffi::c_void, size: usize) -> io::Result<Mapping> {
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, size })
    }

    /// Copies bytes to its beginning.
    fn fill(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the mapping is writable and at least as long as `bytes` (checked), and
        // a slice of ours does not overlap a fresh mapping.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// The 32-bit word at a multiple of four.
    fn word(&self, offset: usize) -> u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.size);
        // SAFETY: inside the mapping and aligned (asserted). Volatile, because the kernel
        // writes there.
        unsafe {
            self.start
                .as_ptr()
                .add(offset)
                .cast::<u32>()
                .read_volatile()
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `mmap` with this size, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.size) };
    }
}
