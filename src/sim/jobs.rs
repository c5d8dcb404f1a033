//! Pulls and sweeps of the simulated daemon, and the contents that they bring and take.

use crate::failure::{Failure, FailureKind};
use crate::model::ids::{ContentId, ImageName, KernelName};
use crate::model::image::{Image, Kernel};
use crate::model::units::Bytes;
use crate::plan::event::{Event, JobId, JobResult, JobWork};
use crate::plan::request::PullKey;

use super::moves::JobFate;
use super::run::{Job, Run};

/// `small` and `twin` have one content. Each name has two over time: what it means in the
/// catalogue changes.
fn image_content(name: &ImageName, job: JobId) -> ContentId {
    let text = match (name.as_str(), job.0 % 2) {
        ("large", 0) => "00000000000000ca",
        ("large", _) => "00000000000000cb",
        (_, 0) => "00000000000000aa",
        (_, _) => "00000000000000ab",
    };
    text.parse().unwrap()
}

pub(super) fn image(name: ImageName, job: JobId) -> Image {
    Image {
        content: image_content(&name, job),
        name,
        size: Bytes::gib(1),
        allocated: Bytes::mib(1),
        source: "simulated".to_owned(),
        created_at: 0,
    }
}

pub(super) fn kernel(name: KernelName) -> Kernel {
    Kernel {
        name,
        content: "00000000000000bb".parse().unwrap(),
        release: "6.1".to_owned(),
        source: "simulated".to_owned(),
        allocated: Bytes::mib(1),
        created_at: 0,
    }
}

impl Run {
    pub(super) fn start_job(&mut self, id: JobId, work: JobWork) {
        if let JobWork::Pull(key) = &work {
            // Its folder is there from now on, under a name that nobody reads.
            self.litter.insert(key.clone());
        }
        self.jobs.push(Job {
            id,
            work,
            cancelled: false,
        });
    }

    pub(super) fn end_job(&mut self, index: usize, fate: JobFate) {
        let Job { id, work, .. } = self.jobs.remove(index);
        if let JobWork::Pull(key) = &work {
            self.litter.remove(key);
        }
        let full = self.world.is_full && matches!(work, JobWork::Pull(_));
        let result = match fate {
            JobFate::Works if !full => Ok(self.do_job(id, work)),
            JobFate::Works | JobFate::Fails => {
                Err(Failure::new(FailureKind::Failed, "the job fails"))
            }
        };
        self.news.push_back(Event::JobDone { job: id, result });
    }

    fn do_job(&mut self, job: JobId, work: JobWork) -> JobResult {
        match work {
            JobWork::Check { content, .. } => {
                let is_there = self.world.contents.contains(&content);
                JobResult::Checked((!is_there).then(|| "it is gone".to_owned()))
            }
            JobWork::Pull(PullKey::Image(name)) => {
                let image = image(name, job);
                self.world.contents.insert(image.content.clone());
                JobResult::Image(image)
            }
            JobWork::Pull(PullKey::Kernel(name)) => {
                let kernel = kernel(name);
                self.world.contents.insert(kernel.content.clone());
                JobResult::Kernel(kernel)
            }
            JobWork::Sweep { images, kernels } => {
                let named =
                    |content: &ContentId| images.contains(content) || kernels.contains(content);
                self.world.contents.retain(named);
                JobResult::Removed
            }
        }
    }
}
