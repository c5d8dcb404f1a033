//! What is interrupted.

/// The only VM of a cell.
pub const VM: &str = "m";
/// What it boots.
pub const IMAGE: &str = "debian-minimal";
/// The kernel that is pulled and the one that VMs boot.
const KERNEL: &str = "debian-6.1-cloud";

/// One row group of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `vm create --no-start`
    Create,
    /// `vm start`
    Start,
    /// Nothing: a VM that runs.
    Run,
    /// `vm set` on a VM that runs: a longer work disk, a memory target.
    Adjust,
    /// `vm stop`
    Stop,
    /// `vm reset`
    Reset,
    /// `vm delete`
    Delete,
    /// `vm delete` of a VM that runs.
    Remove,
    /// `kernel pull`: a download, unpacked and kept.
    Pull,
    /// `image pull`: a file system built from packages and kept.
    Build,
}

impl Operation {
    /// For the table.
    pub fn word(self) -> &'static str {
        match self {
            Operation::Create => "create",
            Operation::Start => "start",
            Operation::Run => "run",
            Operation::Adjust => "adjust",
            Operation::Stop => "stop",
            Operation::Reset => "reset",
            Operation::Delete => "delete",
            Operation::Remove => "delete running",
            Operation::Pull => "kernel pull",
            Operation::Build => "image pull",
        }
    }

    /// Whether it is about a VM.
    pub fn has_vm(self) -> bool {
        !matches!(self, Operation::Pull | Operation::Build)
    }

    /// The commands before it.
    pub fn before(self) -> Vec<Vec<&'static str>> {
        let create = Operation::Create.command();
        match self {
            Operation::Create | Operation::Pull | Operation::Build => vec![],
            Operation::Start | Operation::Reset | Operation::Delete => vec![create],
            Operation::Run | Operation::Adjust | Operation::Stop | Operation::Remove => {
                vec![create, vec!["vm", "start", VM]]
            }
        }
    }

    /// The command that is interrupted.
    pub fn command(self) -> Vec<&'static str> {
        match self {
            Operation::Create => vec![
                "vm",
                "create",
                "--no-start",
                "--name",
                VM,
                "--image",
                IMAGE,
                "--init",
                "agent",
                "--vcpu",
                "1",
                "--memory",
                "128M",
                "--disk-size",
                "1G",
            ],
            Operation::Start => vec!["vm", "start", VM],
            Operation::Run => vec!["vm", "show", VM],
            Operation::Adjust => vec![
                "vm",
                "set",
                VM,
                "--disk-size",
                "1200M",
                "--memory-target",
                "112M",
            ],
            Operation::Stop => vec!["vm", "stop", VM],
            Operation::Reset => vec!["vm", "reset", VM],
            Operation::Delete | Operation::Remove => vec!["vm", "delete", VM],
            Operation::Pull => vec!["kernel", "pull", "--force", KERNEL],
            Operation::Build => vec!["image", "pull", "--force", IMAGE],
        }
    }
}
