//! `banger vm logs`: copies a log that the daemon has opened for us, and with
//! `--follow` waits for more of it by inotify.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use argh::{ArgsInfo, FromArgs};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use super::client;
use super::context::{Context, unexpected};
use super::harmless::Harmless;
use super::render::{self, Stream};
use super::start::connect_or_start;
use crate::failure::Failure;
use crate::proto::reply::Reply;
use crate::proto::request::{LogKind, Request};

/// Show what a sandbox's VMM logged, or what its guest wrote to the console.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "logs",
    example = "banger vm logs dev --console",
    example = "banger vm logs dev --follow"
)]
pub struct VmLogs {
    /// go on until the sandbox stops
    #[argh(switch, short = 'f')]
    pub follow: bool,
    /// the guest's serial console instead of the VMM's log
    #[argh(switch)]
    pub console: bool,
    /// name or id of the sandbox, or the beginning of its id
    #[argh(positional)]
    pub name: String,
}

impl VmLogs {
    /// Carries it out.
    pub fn run(self, context: &Context) -> Result<u8, Failure> {
        let log = match self.console {
            true => LogKind::Console,
            false => LogKind::Vmm,
        };
        let request = Request::VmOpenLog {
            vm: self.name.clone(),
            log,
        };
        let answer = client::ask(connect_or_start(&context.layout()?)?, request, |_| {})?;
        let (path, live, descriptor) = match (answer.reply, answer.descriptor) {
            (Reply::Log { path, live }, Some(descriptor)) => (path, live, descriptor),
            (other, _) => return Err(unexpected("vm_open_log", &other)),
        };
        let failed =
            |error: std::io::Error| Failure::failed(format!("read log {path}")).because(error);
        // Watched before it is first read, so that nothing falls in between.
        let watch = match self.follow && live {
            true => Some(watch(&descriptor).map_err(failed)?),
            false => None,
        };
        let mut file = File::from(descriptor);
        // A pipe or a file gets the log as it is.
        let mut harmless = render::is_terminal(Stream::Out).then(Harmless::default);
        copy(&mut file, &mut harmless).map_err(failed)?;
        if let Some(watch) = watch {
            let runs = || context.vm(&self.name).is_ok_and(|vm| is_live(&vm.phase));
            follow(&mut file, &mut harmless, &watch, runs).map_err(failed)?;
        }
        Ok(0)
    }
}

fn is_live(phase: &str) -> bool {
    matches!(phase, "running" | "starting" | "stopping")
}

fn watch(descriptor: &OwnedFd) -> std::io::Result<OwnedFd> {
    let watch = inotify::init(CreateFlags::CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let flags = WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB;
    inotify::add_watch(&watch, path, flags)?;
    Ok(watch)
}

fn copy(file: &mut File, harmless: &mut Option<Harmless>) -> std::io::Result<()> {
    let mut part = vec![0_u8; 64 * 1024];
    loop {
        match (file.read(&mut part)?, &mut *harmless) {
            (0, _) => return Ok(()),
            (count, Some(harmless)) => render::out_bytes(&harmless.part(&part[..count])),
            (count, None) => render::out_bytes(&part[..count]),
        }
    }
}

/// Copies what is added until a writer closes the log and the VM has stopped, or the
/// log is deleted.
fn follow(
    file: &mut File,
    harmless: &mut Option<Harmless>,
    watch: &OwnedFd,
    runs: impl Fn() -> bool,
) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(watch, &mut space);
    loop {
        let flags = events.next()?.events();
        // A console log that grew too long has lost its older part, and with it what
        // we have shown: go on at its end.
        if file.metadata()?.len() < file.stream_position()? {
            file.seek(SeekFrom::End(0))?;
        }
        copy(file, harmless)?;
        let closed = flags.contains(ReadFlags::CLOSE_WRITE) && !runs();
        let gone = flags.contains(ReadFlags::ATTRIB)
            && rustix::fs::fstat(&*file).is_ok_and(|stat| stat.st_nlink == 0);
        if closed || gone {
            return copy(file, harmless);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn following_ends_when_the_writer_closes_and_the_vm_is_at_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut writer = File::create(&path).unwrap();
        let mut file = File::open(&path).unwrap();
        let watch = watch(&file.try_clone().unwrap().into()).unwrap();
        writer.write_all(b"").unwrap();
        drop(writer);
        follow(&mut file, &mut None, &watch, || false).unwrap();
    }

    #[test]
    fn following_ends_when_the_log_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let _writer = File::create(&path).unwrap();
        let mut file = File::open(&path).unwrap();
        let watch = watch(&file.try_clone().unwrap().into()).unwrap();
        std::fs::remove_file(&path).unwrap();
        follow(&mut file, &mut None, &watch, || true).unwrap();
    }
}
