//! Requests that change nothing, and the split of all the others.

use crate::failure::Failure;
use crate::model::ids::VmId;
use crate::model::net::Subnet;
use crate::model::vm::Phase;
use crate::plan::admit::Wish;
use crate::plan::record::VmRecord;
use crate::plan::request::{Force, PullKey, Reply, Request, Status};

use super::say::Waiter;
use super::work::Work;
use super::{Mind, Vm};

impl Mind {
    /// A VM's record.
    pub fn vm(&self, vm: VmId) -> Option<&VmRecord> {
        self.vms.get(&vm).map(|vm| &vm.record)
    }

    /// Every VM's record.
    pub fn vms(&self) -> impl Iterator<Item = &VmRecord> {
        self.vms.values().map(|vm| &vm.record)
    }

    /// Whether nothing is under way on a VM.
    pub fn is_at_rest(&self, vm: VmId) -> bool {
        self.vms.get(&vm).is_some_and(|vm| vm.work.is_none())
    }

    /// The network of our bridge.
    pub fn subnet(&self) -> Subnet {
        self.facts.subnet
    }

    pub(super) fn serve(&mut self, waiter: Waiter, request: Request) {
        match request {
            Request::Create(request) => self.create(waiter, *request),
            Request::Start { target } => self.ask(waiter, &target, Wish::Start),
            Request::Stop { target } => self.ask(waiter, &target, Wish::Stop),
            Request::Restart { target } => self.ask(waiter, &target, Wish::Restart),
            Request::Kill { target } => self.ask(waiter, &target, Wish::Kill),
            Request::Delete { target, force } => {
                let wish = match force {
                    Force::Refuse => Wish::Delete,
                    Force::Kill => Wish::ForceDelete,
                };
                self.ask(waiter, &target, wish);
            }
            Request::Reset { target } => self.ask(waiter, &target, Wish::Reset),
            Request::Set { target, changes } => self.set(waiter, &target, changes),
            Request::Wait { target } => match self.resolve(&target) {
                Ok(vm) => self.wait_for_rest(vm, waiter),
                Err(failure) => self.fail(waiter, failure),
            },
            Request::Dial { target } => self.ask(waiter, &target, Wish::Dial),
            Request::ImagePull { name, refresh } => match self.resolve_image(&name) {
                Ok(name) => self.pull(waiter, PullKey::Image(name), refresh),
                Err(failure) => self.fail(waiter, failure),
            },
            Request::KernelPull { name, refresh } => match self.resolve_kernel(&name) {
                Ok(name) => self.pull(waiter, PullKey::Kernel(name), refresh),
                Err(failure) => self.fail(waiter, failure),
            },
            Request::ImageDelete { name } => match self.resolve_image(&name) {
                Ok(name) => self.delete_image(waiter, &name),
                Err(failure) => self.fail(waiter, failure),
            },
            Request::KernelDelete { name } => match self.resolve_kernel(&name) {
                Ok(name) => self.delete_kernel(waiter, &name),
                Err(failure) => self.fail(waiter, failure),
            },
            Request::Sweep => self.sweep(waiter),
            Request::Shutdown => {
                self.reply(waiter, Reply::Done);
                self.shut_down();
            }
            Request::List
            | Request::Show { .. }
            | Request::ImageList
            | Request::ImageShow { .. }
            | Request::KernelList
            | Request::KernelShow { .. }
            | Request::Status => {
                let reply = self.answer(&request).unwrap_or_else(Reply::Failed);
                self.reply(waiter, reply);
            }
        }
    }

    fn answer(&self, query: &Request) -> Result<Reply, Failure> {
        Ok(match query {
            Request::List => Reply::Vms(self.list()),
            Request::Show { target } => Reply::Vm(Box::new(self.show(self.resolve(target)?))),
            Request::ImageList => Reply::Images(self.images.values().cloned().collect()),
            Request::KernelList => Reply::Kernels(self.kernels.values().cloned().collect()),
            Request::ImageShow { name } => {
                let name = self.resolve_image(name)?;
                let image = self.images.get(&name).cloned();
                Reply::Image(image.ok_or_else(|| Mind::absent_here(&PullKey::Image(name)))?)
            }
            Request::KernelShow { name } => {
                let name = self.resolve_kernel(name)?;
                let kernel = self.kernels.get(&name).cloned();
                Reply::Kernel(kernel.ok_or_else(|| Mind::absent_here(&PullKey::Kernel(name)))?)
            }
            _ => Reply::Status(self.status()),
        })
    }

    fn list(&self) -> Vec<VmRecord> {
        let mut vms: Vec<VmRecord> = self.vms.values().map(Vm::shown).collect();
        vms.sort_by_key(|vm| (vm.created_at, vm.id));
        vms
    }

    pub(super) fn show(&self, id: crate::model::ids::VmId) -> VmRecord {
        self.vms.get(&id).map(Vm::shown).expect("resolved just now")
    }

    fn status(&self) -> Status {
        let count = |phase| {
            self.vms
                .values()
                .filter(|vm| vm.record.phase == phase)
                .count()
        };
        Status {
            running: count(Phase::Running),
            vms: self.vms.len(),
            stuck: count(Phase::Stuck),
            operations: self.vms.values().filter(|vm| vm.work.is_some()).count(),
            pulls: self.pulls.count(),
        }
    }
}

impl Vm {
    /// The record as shown: a VM on its way down is never shown as usable.
    fn shown(&self) -> VmRecord {
        let mut record = self.record.clone();
        if matches!(self.work, Some(Work::PoweringOff { .. })) {
            record.phase = Phase::Stopping;
        }
        record
    }
}
