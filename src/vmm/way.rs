//! How a VMM's process is started: directly, or by a jailer; with which words and files,
//! and as whom.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::host::fault::fault;
use crate::host::identity::{self, Identity};
use crate::host::jail::Jail;
use crate::host::launch::Inherited;
use crate::model::vm::Confinement;
use crate::plan::step::{Fault, FaultKind};

use super::firecracker::jailer;
use super::machine::Parts;
use super::steps::Vmms;
use super::{Vmm, of};

/// A way to start a VMM.
pub(super) struct Way {
    /// What is executed.
    pub program: PathBuf,
    /// Its words.
    pub arguments: Vec<OsString>,
    /// What it is given open.
    pub files: Vec<Inherited>,
    /// Who it is, or becomes.
    pub identity: Option<Identity>,
    /// What it is started in.
    pub jail: Option<Jail>,
}

impl Vmms {
    /// The way of this machine, with its files made ready for it.
    pub(super) fn way(&self, parts: &Parts) -> Result<Way, Fault> {
        let vmm = of(parts.kind);
        let user = self.user_of(parts);
        let files = vmm.files(parts);
        check(&files)?;
        if let Some(user) = &user {
            admit(parts, user, vmm)?;
        }
        let program = vmm.program(self.programs())?;
        if parts.confinement == Confinement::Jailer {
            return self.by_jailer(program, parts, user);
        }
        Ok(Way {
            program,
            arguments: vmm.arguments(parts),
            files,
            identity: user.map(|user| vmm.identity(parts, user)),
            jail: None,
        })
    }

    fn by_jailer(
        &self,
        firecracker: PathBuf,
        parts: &Parts,
        user: Option<Identity>,
    ) -> Result<Way, Fault> {
        let user = user.ok_or_else(|| {
            let what = "start the jailer: this daemon may not give the VM a user of its own";
            Fault::new(FaultKind::Denied, what)
        })?;
        let work = self.layout.run_directories();
        let jailed = jailer::jailed(self.programs(), &firecracker, parts, &user, &work)?;
        Ok(Way {
            program: jailed.program,
            arguments: jailed.arguments,
            files: Vec::new(),
            identity: Some(user),
            jail: Some(jailed.jail),
        })
    }
}

/// Looks at what is going to be opened, while a fault can still name it.
fn check(files: &[Inherited]) -> Result<(), Fault> {
    for file in files {
        file.check()
            .map_err(|error| fault(format!("open {file}"), error))?;
    }
    Ok(())
}

/// Lets the VM's user in to what its VMM opens by a path of its own.
fn admit(parts: &Parts, user: &Identity, vmm: &dyn Vmm) -> Result<(), Fault> {
    for path in vmm.read_anew(parts) {
        identity::let_read(path)
            .map_err(|error| fault(format!("open {} to all", path.display()), error))?;
    }
    for path in vmm.written_anew(parts) {
        identity::let_write(path, user.gid)
            .map_err(|error| fault(format!("open {} to the vm's group", path.display()), error))?;
    }
    Ok(())
}
