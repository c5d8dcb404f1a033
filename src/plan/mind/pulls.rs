//! Images and kernels: pulls that several may wait for, deletions, and the sweep of
//! contents that nothing names.
//!
//! A pull of what the store has already looks first whether it is whole, and makes it
//! again if it is not.
//!
//! Two requests for the same pull share one job; it is cancelled when the last waiter
//! leaves. A sweep and a pull never overlap: a pull's content has no row until it is
//! done, so a sweep would take it for left-over.

use std::collections::{BTreeMap, BTreeSet};

use crate::failure::{Failure, FailureKind};
use crate::model::ids::{ContentId, ImageName, KernelName};
use crate::plan::event::{Action, JobId, JobResult, JobWork};
use crate::plan::planted::{Bug, planted};
use crate::plan::record::{RowChange, Stuck};
use crate::plan::request::{ClientId, Progress, PullKey, PullProgress, Refresh, Reply};

use super::say::Waiter;
use super::{Life, Mind};

/// Jobs under way and asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulls {
    pulls: BTreeMap<PullKey, Pull>,
    sweep: Sweep,
    sweep_waiters: Vec<Waiter>,
    /// Something lost its name while a sweep ran that still knew it.
    sweep_again: bool,
}

#[derive(Debug, Clone, Default)]
struct Pull {
    /// `None`: waits until no sweep runs.
    job: Option<JobId>,
    cancelled: bool,
    /// What the store has of it, which is enough if it is whole; `None`: to be made.
    stored: Option<ContentId>,
    waiters: Vec<Waiter>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Sweep {
    #[default]
    NotNeeded,
    Wanted,
    UnderWay(JobId),
}

impl Pulls {
    pub(super) fn count(&self) -> usize {
        self.pulls.len()
    }

    pub(super) fn is_any_under_way(&self) -> bool {
        self.pulls.values().any(|pull| pull.job.is_some())
            || matches!(self.sweep, Sweep::UnderWay(_))
    }

    fn key_of(&self, job: JobId) -> Option<PullKey> {
        let mut pulls = self.pulls.iter();
        pulls
            .find(|(_, pull)| pull.job == Some(job))
            .map(|(key, _)| key.clone())
    }
}

impl Mind {
    pub(super) fn pull(&mut self, waiter: Waiter, key: PullKey, refresh: Refresh) {
        let stored = match (refresh, &key) {
            (Refresh::Again, _) => None,
            (Refresh::Keep, PullKey::Image(name)) => self.images.get(name).map(|i| &i.content),
            (Refresh::Keep, PullKey::Kernel(name)) => self.kernels.get(name).map(|k| &k.content),
        };
        let stored = stored.cloned();
        let pull = self.pulls.pulls.entry(key).or_insert_with(|| Pull {
            stored: stored.clone(),
            ..Pull::default()
        });
        if stored.is_none() {
            // Also for those who only want it whole: they wait for what is made.
            pull.stored = None;
        }
        pull.waiters.push(waiter);
        self.advance_jobs();
    }

    fn stored(&self, key: &PullKey) -> Option<Reply> {
        match key {
            PullKey::Image(name) => self.images.get(name).cloned().map(Reply::Image),
            PullKey::Kernel(name) => self.kernels.get(name).cloned().map(Reply::Kernel),
        }
    }

    /// Notes that somebody wants this; the caller lets the jobs advance.
    pub(super) fn want(&mut self, key: PullKey) {
        self.pulls.pulls.entry(key).or_default();
    }

    /// Starts the jobs that may run now.
    pub(super) fn advance_jobs(&mut self) {
        if self.life != Life::Serving || matches!(self.pulls.sweep, Sweep::UnderWay(_)) {
            return;
        }
        let none_pulled = self.pulls.pulls.values().all(|pull| pull.job.is_none())
            || planted(Bug::SweepBesidePull);
        if self.pulls.sweep == Sweep::Wanted && none_pulled {
            return self.start_sweep();
        }
        let idle = self
            .pulls
            .pulls
            .iter()
            .filter(|(_, pull)| pull.job.is_none());
        let keys: Vec<PullKey> = idle.map(|(key, _)| key.clone()).collect();
        for key in keys {
            let job = JobId(self.number());
            let pull = self.pulls.pulls.get_mut(&key).expect("listed just now");
            pull.job = Some(job);
            pull.cancelled = false;
            let work = match pull.stored.clone() {
                Some(content) => JobWork::Check { key, content },
                None => JobWork::Pull(key),
            };
            self.out.push(Action::StartJob { job, work });
        }
    }

    /// Asks for the removal of contents that nothing names.
    pub(super) fn want_sweep(&mut self) {
        match self.pulls.sweep {
            Sweep::NotNeeded | Sweep::Wanted => self.pulls.sweep = Sweep::Wanted,
            Sweep::UnderWay(_) => self.pulls.sweep_again = true,
        }
        self.advance_jobs();
    }

    /// A client asks for it, and waits for its end.
    pub(super) fn sweep(&mut self, waiter: Waiter) {
        self.pulls.sweep_waiters.push(waiter);
        match self.images.is_empty() && self.kernels.is_empty() {
            true => self.end_sweep(Err(unknown_contents())),
            false => self.want_sweep(),
        }
    }

    fn start_sweep(&mut self) {
        let Some((images, kernels)) = self.named_contents() else {
            self.pulls.sweep = Sweep::NotNeeded;
            self.end_sweep(Err(unknown_contents()));
            return self.advance_jobs();
        };
        let job = JobId(self.number());
        self.pulls.sweep = Sweep::UnderWay(job);
        let work = JobWork::Sweep { images, kernels };
        self.out.push(Action::StartJob { job, work });
    }

    fn end_sweep(&mut self, result: Result<(), Failure>) {
        let waiters = std::mem::take(&mut self.pulls.sweep_waiters);
        let reply = match result {
            Ok(()) => Reply::Done,
            Err(failure) => Reply::Failed(failure),
        };
        self.reply_all(waiters, &reply);
    }

    /// The contents of images and of kernels that rows name; `None` where a row cannot be
    /// read, so that nothing is left over for sure.
    pub fn named_contents(&self) -> Option<(BTreeSet<ContentId>, BTreeSet<ContentId>)> {
        let mut records = self.vms.values().map(|vm| &vm.record);
        if records.any(|record| record.stuck == Some(Stuck::Unreadable)) {
            return None;
        }
        let specs = || self.vms.values().map(|vm| &vm.record.spec);
        let images = (self.images.values().map(|image| &image.content))
            .chain(specs().map(|spec| &spec.image.content))
            .cloned()
            .collect();
        let kernels = (self.kernels.values().map(|kernel| &kernel.content))
            .chain(specs().map(|spec| &spec.kernel.content))
            .cloned()
            .collect();
        Some((images, kernels))
    }

    /// The same for somebody who only looks: nothing while a pull is under way, whose
    /// content has no row yet, and nothing from a store that is new, or lost.
    pub fn settled_contents(&self) -> Option<(BTreeSet<ContentId>, BTreeSet<ContentId>)> {
        let known = !(self.images.is_empty() && self.kernels.is_empty());
        let pulled = self.pulls.is_any_under_way();
        self.named_contents().filter(|_| known && !pulled)
    }

    pub(super) fn job_progress(&mut self, job: JobId, progress: &PullProgress) {
        let Some(key) = self.pulls.key_of(job) else {
            return;
        };
        let waiters = self.waiters_of(&key);
        self.progress(&waiters, &Progress::Pull(progress.clone()));
    }

    fn waiters_of(&self, key: &PullKey) -> Vec<Waiter> {
        let asked = self.pulls.pulls.get(key).into_iter();
        let creates = self
            .creates
            .iter()
            .filter(|create| create.needs.contains(key));
        asked
            .flat_map(|pull| pull.waiters.iter())
            .chain(creates.map(|create| &create.waiter))
            .cloned()
            .collect()
    }

    pub(super) fn job_done(&mut self, job: JobId, result: Result<JobResult, Failure>) {
        if self.pulls.sweep == Sweep::UnderWay(job) {
            self.pulls.sweep = match std::mem::take(&mut self.pulls.sweep_again) {
                true => Sweep::Wanted,
                false => Sweep::NotNeeded,
            };
            if let Err(failure) = &result {
                self.log(None, None, format!("left-over contents stay: {failure}"));
            }
            self.end_sweep(result.map(drop));
        } else if let Some(key) = self.pulls.key_of(job) {
            self.pull_done(key, result);
        }
        self.advance_jobs();
    }

    /// A look at what the store has is done: that is all, unless it is damaged or somebody
    /// came meanwhile who wants it made in any case.
    fn checked(&mut self, key: PullKey, damage: Option<String>) {
        let waiters = self.waiters_of(&key);
        let stored = self.stored(&key);
        let pull = self.pulls.pulls.get_mut(&key).expect("its job just ended");
        let enough = damage.is_none() && pull.stored.is_some();
        match stored.filter(|_| enough || waiters.is_empty()) {
            Some(reply) => {
                self.pulls.pulls.remove(&key);
                self.reply_all(waiters, &reply);
            }
            None => {
                (pull.job, pull.stored) = (None, None);
                if let Some(damage) = damage {
                    let note = format!("{key} is damaged and made again: {damage}");
                    self.log(None, None, note.clone());
                    self.progress(&waiters, &Progress::Note(note));
                }
            }
        }
    }

    fn pull_done(&mut self, key: PullKey, result: Result<JobResult, Failure>) {
        if let Ok(JobResult::Checked(damage)) = result {
            return self.checked(key, damage);
        }
        let wanted_again = !self.waiters_of(&key).is_empty();
        let pull = self.pulls.pulls.get_mut(&key).expect("its job just ended");
        if result.is_err() && pull.cancelled && wanted_again {
            pull.job = None;
            return;
        }
        let waiters = std::mem::take(&mut pull.waiters);
        self.pulls.pulls.remove(&key);
        match result.and_then(|brought| self.keep(&key, brought)) {
            Ok(reply) => {
                self.log(None, None, format!("pulled {key}"));
                self.reply_all(waiters, &reply);
                self.creates_have(&key);
            }
            Err(failure) => {
                self.log(None, None, format!("pull {key}: {failure}"));
                self.reply_all(waiters, &Reply::Failed(failure.clone()));
                self.creates_lack(&key, &failure);
                self.sweep_after_failure();
            }
        }
    }

    /// A pull can fail when its content has its name already. In a store without any row
    /// the next pull finds it there.
    fn sweep_after_failure(&mut self) {
        if !(self.images.is_empty() && self.kernels.is_empty()) {
            self.want_sweep();
        }
    }

    /// Makes what a pull brought durable under the name that was asked for.
    fn keep(&mut self, key: &PullKey, brought: JobResult) -> Result<Reply, Failure> {
        match (key, brought) {
            (PullKey::Image(name), JobResult::Image(image)) if *name == image.name => {
                self.out
                    .push(Action::Save(vec![RowChange::PutImage(image.clone())]));
                let before = self.images.insert(name.clone(), image.clone());
                if before.is_some_and(|before| before.content != image.content) {
                    self.want_sweep();
                }
                Ok(Reply::Image(image))
            }
            (PullKey::Kernel(name), JobResult::Kernel(kernel)) if *name == kernel.name => {
                self.out
                    .push(Action::Save(vec![RowChange::PutKernel(kernel.clone())]));
                let before = self.kernels.insert(name.clone(), kernel.clone());
                if before.is_some_and(|before| before.content != kernel.content) {
                    self.want_sweep();
                }
                Ok(Reply::Kernel(kernel))
            }
            (key, _) => Err(Failure::bug(format!(
                "pull {key}: the job brought something else"
            ))),
        }
    }

    pub(super) fn forget_pulls_of(&mut self, client: ClientId) {
        for pull in self.pulls.pulls.values_mut() {
            pull.waiters.retain(|waiter| !waiter.is_client(client));
        }
        self.cancel_unwanted();
    }

    /// Cancels the pulls that nobody waits for any more.
    pub(super) fn cancel_unwanted(&mut self) {
        let keys: Vec<PullKey> = self.pulls.pulls.keys().cloned().collect();
        for key in keys {
            if self.waiters_of(&key).is_empty() {
                self.cancel_pull(&key);
            }
        }
    }

    pub(super) fn cancel_all_pulls(&mut self) {
        let keys: Vec<PullKey> = self.pulls.pulls.keys().cloned().collect();
        for key in keys {
            self.cancel_pull(&key);
        }
    }

    fn cancel_pull(&mut self, key: &PullKey) {
        let Some(pull) = self.pulls.pulls.get_mut(key) else {
            return;
        };
        match pull.job {
            Some(job) if !pull.cancelled => {
                pull.cancelled = true;
                self.out.push(Action::CancelJob { job });
            }
            Some(_) => {}
            None => {
                self.pulls.pulls.remove(key);
            }
        }
    }

    pub(super) fn delete_image(&mut self, waiter: Waiter, name: &ImageName) {
        let key = PullKey::Image(name.clone());
        let Some(image) = self.images.get(name) else {
            return self.fail(waiter, Mind::absent_here(&key));
        };
        let content = image.content.clone();
        let users = self.users(|spec| spec.image.content == content);
        if let Err(failure) = self.is_unused(&key, &users) {
            return self.fail(waiter, failure);
        }
        self.images.remove(name);
        self.drop_row(waiter, RowChange::DropImage(name.clone()));
    }

    pub(super) fn delete_kernel(&mut self, waiter: Waiter, name: &KernelName) {
        let key = PullKey::Kernel(name.clone());
        let Some(kernel) = self.kernels.get(name) else {
            return self.fail(waiter, Mind::absent_here(&key));
        };
        let content = kernel.content.clone();
        let users = self.users(|spec| spec.kernel.content == content);
        if let Err(failure) = self.is_unused(&key, &users) {
            return self.fail(waiter, failure);
        }
        self.kernels.remove(name);
        self.drop_row(waiter, RowChange::DropKernel(name.clone()));
    }

    fn users(&self, uses: impl Fn(&crate::model::vm::VmSpec) -> bool) -> Vec<String> {
        let specs = self.vms.values().map(|vm| &vm.record.spec);
        specs
            .filter(|spec| uses(spec))
            .map(|spec| spec.name.to_string())
            .collect()
    }

    fn is_unused(&self, key: &PullKey, users: &[String]) -> Result<(), Failure> {
        if self.pulls.pulls.contains_key(key) {
            let what = format!("delete {key}: it is being pulled");
            return Err(Failure::new(FailureKind::Busy, what).hint("Try again when that is done."));
        }
        if users.is_empty() {
            return Ok(());
        }
        let what = format!("delete {key}: it is used by vm {}", users.join(", "));
        Err(Failure::new(FailureKind::Busy, what)
            .hint(format!("Run `banger vm delete {}` first.", users.join(" "))))
    }

    /// The row goes first: a content without a row is swept, a row without a content
    /// would be a lie.
    fn drop_row(&mut self, waiter: Waiter, change: RowChange) {
        self.out.push(Action::Save(vec![change]));
        self.reply(waiter, Reply::Done);
        self.want_sweep();
    }
}

fn unknown_contents() -> Failure {
    let what = "remove contents that nothing names: it is not known what is named";
    Failure::new(FailureKind::Busy, what)
        .hint("See `banger vm list` for a row that cannot be read, and `banger image list`.")
}
