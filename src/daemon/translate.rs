//! The wire's requests in the mind's words.

use crate::model::units::Bytes;
use crate::plan::record::{GitIdentity, Removal};
use crate::plan::request::{AfterCreate, Changes, CreateRequest, Force, Refresh, Request};
use crate::proto::request::{self as wire, NewVm};

/// What the mind is asked on behalf of a wire request; `None` where the daemon
/// answers without it.
pub fn request(asked: &wire::Request) -> Option<Request> {
    let vm = String::clone;
    Some(match asked {
        wire::Request::Repair { .. }
        | wire::Request::HostFacts {}
        | wire::Request::StoreCopy {} => return None,
        wire::Request::Sweep {} => Request::Sweep,
        wire::Request::Status {} => Request::Status,
        wire::Request::Shutdown {} => Request::Shutdown,
        wire::Request::VmRun {
            vm,
            start,
            delete_on_disconnect,
        } => Request::Create(Box::new(create(vm, *start, *delete_on_disconnect))),
        wire::Request::VmStart { vm: target } => Request::Start { target: vm(target) },
        wire::Request::VmStop { vm: target } => Request::Stop { target: vm(target) },
        wire::Request::VmRestart { vm: target } => Request::Restart { target: vm(target) },
        wire::Request::VmKill { vm: target } => Request::Kill { target: vm(target) },
        wire::Request::VmDelete { vm: target, force } => Request::Delete {
            target: vm(target),
            force: if *force { Force::Kill } else { Force::Refuse },
        },
        wire::Request::VmReset { vm: target } => Request::Reset { target: vm(target) },
        wire::Request::VmSet {
            vm: target,
            changes,
        } => Request::Set {
            target: vm(target),
            changes: read_changes(*changes),
        },
        wire::Request::VmList {} => Request::List,
        wire::Request::VmShow { vm: target } | wire::Request::VmOpenLog { vm: target, .. } => {
            Request::Show { target: vm(target) }
        }
        wire::Request::VmWait { vm: target } => Request::Wait { target: vm(target) },
        wire::Request::VmDial { vm: target } => Request::Dial { target: vm(target) },
        wire::Request::ImageList {} => Request::ImageList,
        wire::Request::ImageShow { name } => Request::ImageShow {
            name: name.to_string(),
        },
        wire::Request::ImagePull { name, force } => Request::ImagePull {
            name: name.to_string(),
            refresh: refresh(*force),
        },
        wire::Request::ImageDelete { name } => Request::ImageDelete {
            name: name.to_string(),
        },
        wire::Request::KernelList {} => Request::KernelList,
        wire::Request::KernelShow { name } => Request::KernelShow {
            name: name.to_string(),
        },
        wire::Request::KernelPull { name, force } => Request::KernelPull {
            name: name.to_string(),
            refresh: refresh(*force),
        },
        wire::Request::KernelDelete { name } => Request::KernelDelete {
            name: name.to_string(),
        },
    })
}

fn read_changes(wire: wire::Changes) -> Changes {
    Changes {
        vcpu: wire.vcpu,
        memory: wire.memory.map(Bytes),
        work_disk: wire.work_disk.map(Bytes),
        root_disk: wire.root_disk.map(Bytes),
        memory_target: wire.memory_target.map(Bytes),
    }
}

fn refresh(force: bool) -> Refresh {
    if force { Refresh::Again } else { Refresh::Keep }
}

fn create(vm: &NewVm, start: bool, delete_on_disconnect: bool) -> CreateRequest {
    CreateRequest {
        name: vm.name.clone(),
        image: vm.image.to_string(),
        kernel: vm.kernel.to_string(),
        vcpu: vm.vcpu,
        memory: vm.memory,
        work_disk: vm.work_disk,
        root_disk: vm.root_disk,
        root_mode: vm.root_mode,
        net: vm.net,
        publish: vm.publish.clone(),
        init: vm.init,
        vmm: vm.vmm,
        env: vm.env.clone(),
        workdir: vm.workdir.clone(),
        limits: vm.limits.into(),
        git: vm.git_identity.as_ref().map(|git| GitIdentity {
            name: git.name.clone(),
            email: git.email.clone(),
        }),
        removal: if delete_on_disconnect {
            Removal::WithClient
        } else {
            Removal::Keep
        },
        then: if start {
            AfterCreate::Start
        } else {
            AfterCreate::Rest
        },
    }
}
