//! Pulls and sweeps: the long work on images and kernels, off the loop.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::channel::Sender;
use smol::future::FutureExt;
use smol::{LocalExecutor, Task, Timer};

use super::base;
use super::clients::Input;
use crate::failure::Failure;
use crate::host::layout::Layout;
use crate::image::job::{Cancel, Job, Stage};
use crate::image::{kernel, rootfs, store};
use crate::model::ids::ContentId;
use crate::plan::event::{Event, JobId, JobResult, JobWork};
use crate::plan::request::{PullKey, PullProgress};

/// How long leftovers may keep a starting daemon from its VMs. Killed processes end in
/// milliseconds and folders go in seconds; a disk that hangs never lets go.
const ENDING_LIMIT: Duration = Duration::from_secs(30);

/// See the head of this file.
pub struct Jobs {
    layout: Arc<Layout>,
    running: Rc<RefCell<HashMap<JobId, Arc<Cancel>>>>,
    /// Ends what an earlier daemon's builds have left, from the start on.
    ending: RefCell<Option<Task<()>>>,
}

impl Jobs {
    /// Nothing under way.
    pub fn new(layout: Layout) -> Jobs {
        Jobs {
            layout: Arc::new(layout),
            running: Rc::default(),
            ending: RefCell::default(),
        }
    }

    /// Begins to end the builds of an earlier daemon that still run, and to remove what
    /// they left. Off the loop: other users may write to /var/tmp.
    pub fn end_leftovers(&self, executor: &LocalExecutor<'static>) {
        let layout = self.layout.clone();
        let ending = smol::unblock(move || {
            for swept in [rootfs::sweep(&layout), rootfs::sweep_shared()] {
                if let Err(failure) = swept {
                    log::error!("end leftover builds: {failure}");
                }
            }
        });
        let late = async {
            Timer::after(ENDING_LIMIT).await;
            log::error!("end leftover builds: not done in time");
        };
        *self.ending.borrow_mut() = Some(executor.spawn(ending.or(late)));
    }

    /// Waits until that is done, or has taken too long.
    pub fn leftovers_ended(&self) -> impl Future<Output = ()> + 'static {
        let ending = self.ending.borrow_mut().take();
        async {
            if let Some(ending) = ending {
                ending.await;
            }
        }
    }

    /// Starts a job; its end comes as `JobDone`.
    pub fn start(
        &self,
        job: JobId,
        work: JobWork,
        executor: &LocalExecutor<'static>,
        inbox: &Sender<Input>,
    ) {
        let cancel = match Cancel::new() {
            Ok(cancel) => Arc::new(cancel),
            Err(failure) => return finish_at_once(job, failure, executor, inbox.clone()),
        };
        self.running.borrow_mut().insert(job, cancel.clone());
        let (layout, running, inbox) = (self.layout.clone(), self.running.clone(), inbox.clone());
        let news = inbox.clone();
        let task = executor.spawn(async move {
            let result =
                smol::unblock(move || carry_out(job, &work, &layout, &cancel, &news)).await;
            running.borrow_mut().remove(&job);
            let _ = inbox
                .send(Input::Event(Event::JobDone { job, result }))
                .await;
        });
        task.detach();
    }

    /// Raises a job's flag.
    pub fn cancel(&self, job: JobId) {
        if let Some(cancel) = self.running.borrow().get(&job) {
            cancel.set();
        }
    }
}

fn finish_at_once(
    job: JobId,
    failure: Failure,
    executor: &LocalExecutor<'static>,
    inbox: Sender<Input>,
) {
    let task = executor.spawn(async move {
        let result = Err(failure);
        let _ = inbox
            .send(Input::Event(Event::JobDone { job, result }))
            .await;
    });
    task.detach();
}

/// Runs on the blocking pool.
fn carry_out(
    job: JobId,
    work: &JobWork,
    layout: &Layout,
    cancel: &Cancel,
    inbox: &Sender<Input>,
) -> Result<JobResult, Failure> {
    match work {
        JobWork::Check { key, content } => {
            Ok(JobResult::Checked(base::damage(layout, key, content)))
        }
        JobWork::Pull(key) => pull(job, key, layout, cancel, inbox),
        JobWork::Sweep { images, kernels } => {
            let done = [
                rootfs::sweep(layout),
                remove_unnamed(&layout.images(), images),
                remove_unnamed(&layout.kernels(), kernels),
            ];
            let done: Result<(), Failure> = done.into_iter().collect();
            done.map(|()| JobResult::Removed)
        }
    }
}

fn pull(
    job: JobId,
    key: &PullKey,
    layout: &Layout,
    cancel: &Cancel,
    inbox: &Sender<Input>,
) -> Result<JobResult, Failure> {
    let what = key.to_string();
    // Progress that the loop has no room for is dropped: the next is as good.
    let progress = |stage: Stage| {
        let progress = PullProgress {
            what: what.clone(),
            stage: stage_words(&stage),
            done: stage.current.unwrap_or(0),
            total: stage.total,
        };
        let _ = inbox.try_send(Input::Event(Event::JobProgress { job, progress }));
    };
    let job = Job {
        layout,
        cancel,
        progress: &progress,
    };
    match key {
        PullKey::Image(name) => rootfs::pull_image(&job, name).map(JobResult::Image),
        PullKey::Kernel(name) => kernel::pull_kernel(&job, name).map(JobResult::Kernel),
    }
}

/// Removes what no row names.
fn remove_unnamed(folder: &Path, keep: &BTreeSet<ContentId>) -> Result<(), Failure> {
    for content in store::list(folder)? {
        if !keep.contains(&content) {
            store::remove(folder, &content)?;
        }
    }
    Ok(())
}

fn stage_words(stage: &Stage) -> String {
    match stage.detail.is_empty() {
        true => stage.stage.clone(),
        false => format!("{}: {}", stage.stage, stage.detail),
    }
}
