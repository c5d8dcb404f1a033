//! Creates VMs: checks the request, has what is missing pulled first, reserves name
//! and address, then lets the operation begin.

use std::collections::BTreeSet;

use crate::failure::{Failure, FailureKind};
use crate::model::ids::{VmId, VmName};
use crate::model::net::{NetMode, NetRequest};
use crate::model::units::Bytes;
use crate::model::vm::{ImageRef, KernelRef, Phase, VmSpec, VmmRequest};
use crate::plan::check::{check_limits, check_net_limit, check_sizes, net_limit_note};
use crate::plan::facts::MIN_FREE;
use crate::plan::make;
use crate::plan::names;
use crate::plan::record::{Removal, VmRecord};
use crate::plan::request::{AfterCreate, ClientId, CreateRequest, Progress, PullKey};

use super::say::Waiter;
use super::work::Then;
use super::{Life, Mind, Owner, Vm};

/// A creation that waits for pulls; its name is reserved.
#[derive(Debug, Clone)]
pub(super) struct PendingCreate {
    pub(super) waiter: Waiter,
    name: VmName,
    request: CreateRequest,
    pub(super) needs: BTreeSet<PullKey>,
}

/// A creation that waits until the VM that has its name has gone.
#[derive(Debug, Clone)]
pub(super) struct BehindDeletion {
    waiter: Waiter,
    name: VmName,
    request: CreateRequest,
}

impl Mind {
    pub(super) fn create(&mut self, waiter: Waiter, request: CreateRequest) {
        if let Some(name) = request.name.clone().filter(|name| self.is_going(name)) {
            return self.behind_deletions.push(BehindDeletion {
                waiter,
                name,
                request,
            });
        }
        match self.check(&request) {
            Ok((name, needs)) if needs.is_empty() => self.create_now(waiter, name, request),
            Ok((name, needs)) => {
                for key in &needs {
                    self.want(key.clone());
                }
                self.creates.push(PendingCreate {
                    waiter,
                    name,
                    request,
                    needs,
                });
                self.advance_jobs();
            }
            Err(failure) => self.fail(waiter, failure),
        }
    }

    /// Refuses what cannot be, before anything is pulled or made.
    fn check(&self, request: &CreateRequest) -> Result<(VmName, BTreeSet<PullKey>), Failure> {
        check_sizes(
            request.vcpu,
            request.memory,
            request.work_disk,
            request.root_disk,
        )?;
        check_limits(&request.limits)?;
        let name = self.free_name(request.name.as_ref())?;
        self.facts.check_memory(request.memory).map_err(|failure| {
            Failure::new(failure.kind, format!("create vm {name}: {}", failure.what)).hint(
                "Give less with `--memory`, or with `vm_defaults.memory` in the configuration.",
            )
        })?;
        self.facts.fit_root(request.root_mode)?;
        let (net, _) = self.network(request)?;
        self.check_ports(&format!("create vm {name}"), net, request)?;
        check_net_limit(&name, net, &request.limits)?;
        self.facts
            .check_tap_limit(&name, net, request.vmm, &request.limits)?;
        self.check_space(&format!("create vm {name}"), MIN_FREE)?;
        let image = self.resolve_image(&request.image)?;
        let kernel = self.resolve_kernel(&request.kernel)?;
        let mut needs = BTreeSet::new();
        if !self.images.contains_key(&image) {
            needs.insert(PullKey::Image(image));
        }
        if !self.kernels.contains_key(&kernel) {
            needs.insert(PullKey::Kernel(kernel));
        }
        Ok((name, needs))
    }

    /// Refuses `what` where less than `needed` is free for VMs' disks.
    pub(super) fn check_space(&self, what: &str, needed: Bytes) -> Result<(), Failure> {
        let free = self.moment.state_free;
        if free >= needed {
            return Ok(());
        }
        let why = format!("{free} are free for the state directory, {needed} are needed");
        Err(Failure::failed(format!("{what}: the disk is full"))
            .because(why)
            .hint("Free space, for example with `banger vm prune`."))
    }

    fn network(&self, request: &CreateRequest) -> Result<(NetMode, Option<String>), Failure> {
        let wanted = match (request.net, request.vmm) {
            (NetRequest::User, VmmRequest::Auto) => VmmRequest::Qemu,
            (_, vmm) => vmm,
        };
        let choice = self.facts.choose_vmm(wanted)?;
        self.facts.choose_net(request.net, choice.kind)
    }

    fn free_name(&self, wanted: Option<&VmName>) -> Result<VmName, Failure> {
        let Some(name) = wanted else {
            return Ok(names::generate(self.moment.random, |name| {
                self.is_taken(name)
            }));
        };
        if !self.is_taken(name) {
            return Ok(name.clone());
        }
        Err(Failure::new(
            FailureKind::Busy,
            format!("create vm {name}: the name is taken"),
        )
        .hint(format!(
            "Choose another with `--name`, or run `banger vm delete {name}` first."
        )))
    }

    /// Whether the VM of this name is on its way to not being there.
    fn is_going(&self, name: &VmName) -> bool {
        let mut named = self.vms.values().filter(|vm| vm.record.spec.name == *name);
        named.any(|vm| vm.is_going())
    }

    fn is_taken(&self, name: &VmName) -> bool {
        self.vms.values().any(|vm| vm.record.spec.name == *name)
            || self.creates.iter().any(|pending| pending.name == *name)
    }

    fn create_now(&mut self, waiter: Waiter, name: VmName, request: CreateRequest) {
        let then = match request.then {
            AfterCreate::Rest => Then::Rest,
            AfterCreate::Start => Then::Start,
        };
        let (record, note) = match self.record(name, &request) {
            Ok(made) => made,
            Err(failure) => return self.fail(waiter, failure),
        };
        let id = record.id;
        let waiters = vec![waiter];
        let named = Progress::Named {
            vm: id,
            name: record.spec.name.clone(),
        };
        self.progress(&waiters, &named);
        // Of this machine and not of this VM: once is enough, and `vm show` has it.
        let news = note.filter(|note| self.notes_said.insert(note.clone()));
        let notes = news
            .into_iter()
            .chain(self.facts.weight_note(&request.limits))
            .chain(net_limit_note(record.spec.net, &request.limits));
        for note in notes {
            self.progress(&waiters, &Progress::Note(note));
        }
        let owner = match request.removal {
            Removal::Keep => None,
            Removal::WithClient => Some(Owner::Connection(waiters[0].owner())),
        };
        let vm = Vm {
            owner,
            is_durable: false,
            ..Vm::at_rest(record)
        };
        self.vms.insert(id, vm);
        self.begin_create(id, waiters, then);
    }

    fn record(
        &mut self,
        name: VmName,
        request: &CreateRequest,
    ) -> Result<(VmRecord, Option<String>), Failure> {
        let (net, note) = self.network(request)?;
        let image = self.resolve_image(&request.image)?;
        let kernel = self.resolve_kernel(&request.kernel)?;
        let content = |found: Option<_>, key| found.ok_or_else(|| Mind::absent_here(&key));
        let base = self.images.get(&image).map_or(Bytes(0), |image| image.size);
        let root_mode = self
            .facts
            .choose_root(request.root_mode, request.root_disk, base)?;
        let spec = VmSpec {
            name,
            image: ImageRef {
                content: content(
                    self.images.get(&image).map(|image| image.content.clone()),
                    PullKey::Image(image.clone()),
                )?,
                name: image,
            },
            kernel: KernelRef {
                content: content(
                    self.kernels
                        .get(&kernel)
                        .map(|kernel| kernel.content.clone()),
                    PullKey::Kernel(kernel.clone()),
                )?,
                name: kernel,
            },
            vcpu: request.vcpu,
            memory: request.memory,
            memory_target: None,
            work_disk: request.work_disk,
            root_disk: request.root_disk,
            root_mode,
            net,
            publish: request.publish.clone(),
            init: request.init,
            vmm: request.vmm,
            env: request.env.clone(),
            workdir: request.workdir.clone(),
            limits: request.limits,
        };
        let id = self.fresh_id();
        let lease = match net.has_tap() {
            true => Some(self.leases.take(id, self.facts.subnet)?),
            false => None,
        };
        let record = VmRecord {
            id,
            disk_plan: make::disk_plan(id, &spec),
            spec,
            lease,
            phase: Phase::Creating,
            stuck: None,
            reason: None,
            net_reason: note.clone(),
            git: request.git.clone(),
            removal: request.removal,
            grows: false,
            run_plan: Vec::new(),
            vmm: None,
            boot: None,
            created_at: self.moment.unix_s,
            started_at: None,
        };
        Ok((record, note))
    }

    /// An identity whose user on the host is no other VM's either.
    fn fresh_id(&self) -> VmId {
        let mut bits = (self.moment.random >> 32) as u32;
        let is_taken = |id: VmId| self.vms.keys().any(|vm| vm.user_bits() == id.user_bits());
        while is_taken(VmId::from_bits(bits)) {
            bits = bits.wrapping_add(1);
        }
        VmId::from_bits(bits)
    }

    /// A pull brought this: creations that waited for it last begin.
    pub(super) fn creates_have(&mut self, key: &PullKey) {
        for pending in &mut self.creates {
            pending.needs.remove(key);
        }
        let all = std::mem::take(&mut self.creates);
        let (ready, waiting): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|pending| pending.needs.is_empty());
        self.creates = waiting;
        for pending in ready {
            self.create_now(pending.waiter, pending.name, pending.request);
        }
    }

    /// A pull failed: so do the creations that waited for it.
    pub(super) fn creates_lack(&mut self, key: &PullKey, failure: &Failure) {
        let all = std::mem::take(&mut self.creates);
        let (failed, waiting): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|pending| pending.needs.contains(key));
        self.creates = waiting;
        for pending in failed {
            self.fail(pending.waiter, failure.clone());
        }
        self.cancel_unwanted();
    }

    /// Something on the VM of this name has come to its end: creations that waited for its
    /// deletion begin, or are refused if it stays after all.
    pub(super) fn creates_after(&mut self, name: &VmName) {
        if self.life != Life::Serving || self.is_going(name) {
            return;
        }
        let all = std::mem::take(&mut self.behind_deletions);
        let (ready, waiting): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|behind| behind.name == *name);
        self.behind_deletions = waiting;
        for behind in ready {
            self.create(behind.waiter, behind.request);
        }
    }

    /// No new work: what has not begun will not.
    pub(super) fn refuse_creates_behind(&mut self) {
        for behind in std::mem::take(&mut self.behind_deletions) {
            self.refuse(behind.waiter, "the daemon is ending");
        }
    }

    pub(super) fn forget_creates_of(&mut self, client: ClientId) {
        self.creates
            .retain(|pending| !pending.waiter.is_client(client));
        self.behind_deletions
            .retain(|behind| !behind.waiter.is_client(client));
    }
}

impl Vm {
    /// A VM of the store, with nothing under way.
    pub(super) fn at_rest(record: VmRecord) -> Vm {
        Vm {
            record,
            is_durable: true,
            work: None,
            queued: None,
            watchers: Vec::new(),
            owner: None,
            run: None,
            listening: false,
        }
    }
}
