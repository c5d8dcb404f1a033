//! `banger vm logs`: copies a log that the daemon has opened for us, and with
//! `--follow` waits for more of it by inotify, and for the daemon to say that the VM
//! has come to rest: then nobody writes to it any more.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use argh::{ArgsInfo, FromArgs};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use super::client::{self, Asked};
use super::context::{Context, unexpected};
use super::harmless::Harmless;
use super::render::{self, Stream};
use super::start::connect_or_start;
use crate::failure::{Failure, FailureKind};
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
        let answer = context.ask_with_descriptor(request)?;
        let (path, live, descriptor) = match (answer.reply, answer.descriptor) {
            (Reply::Log { path, live }, Some(descriptor)) => (path, live, descriptor),
            (other, _) => return Err(unexpected("vm_open_log", &other)),
        };
        let failed =
            |error: std::io::Error| Failure::failed(format!("read log {path}")).because(error);
        // Watched before it is first read, so that nothing falls in between.
        let ask = || self.ask_for_rest(context);
        let followed = match self.follow && live {
            true => Some((watch(&descriptor).map_err(failed)?, Rest::new(&ask)?)),
            false => None,
        };
        let mut file = File::from(descriptor);
        // A pipe or a file gets the log as it is.
        let mut harmless = render::is_terminal(Stream::Out).then(Harmless::default);
        copy(&mut file, &mut harmless).map_err(failed)?;
        if let Some((watch, mut rest)) = followed {
            while !rest.has_come(wait(&watch, &rest).map_err(failed)?)? {
                catch_up(&mut file, &mut harmless).map_err(failed)?;
            }
            catch_up(&mut file, &mut harmless).map_err(failed)?;
        }
        Ok(0)
    }

    /// Asks to be told when the VM has come to rest.
    fn ask_for_rest(&self, context: &Context) -> Result<Asked, Failure> {
        let vm = self.name.clone();
        let stream = connect_or_start(&context.layout()?)?;
        Ok(client::begin(stream, Request::VmWait { vm }))
    }
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

/// What woke a follower.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct News {
    /// The daemon has something to say.
    answered: bool,
    /// A writer has closed the log.
    closed: bool,
}

/// The end of what is followed: told by the daemon.
struct Rest<'a> {
    /// `None` while the daemon that was asked is gone.
    asked: Option<Asked>,
    ask: &'a dyn Fn() -> Result<Asked, Failure>,
}

impl<'a> Rest<'a> {
    fn new(ask: &'a dyn Fn() -> Result<Asked, Failure>) -> Result<Rest<'a>, Failure> {
        let asked = Some(ask()?);
        Ok(Rest { asked, ask })
    }

    /// Whether it has come, as these news tell. A daemon that ended leaves the VM
    /// running; the next one is asked when a writer closes the log, which is when the
    /// VM may have ended.
    fn has_come(&mut self, news: News) -> Result<bool, Failure> {
        let Some(asked) = self.asked.take() else {
            self.asked = match news.closed {
                true => Some((self.ask)()?),
                false => None,
            };
            return Ok(false);
        };
        if !news.answered {
            self.asked = Some(asked);
            return Ok(false);
        }
        match asked.answer(|_| {}) {
            Ok(_) => Ok(true),
            Err(failure) => match failure.kind {
                FailureKind::NotFound => Ok(true),
                FailureKind::Unreachable | FailureKind::Busy => Ok(false),
                _ => Err(failure),
            },
        }
    }
}

/// Waits until the log has changed or the daemon has answered.
fn wait(watch: &OwnedFd, rest: &Rest<'_>) -> std::io::Result<News> {
    let mut watched = vec![PollFd::new(watch, PollFlags::IN)];
    watched.extend(
        rest.asked
            .iter()
            .map(|asked| PollFd::new(asked, PollFlags::IN)),
    );
    rustix::io::retry_on_intr(|| poll(&mut watched, None))?;
    let ready: Vec<bool> = watched
        .iter()
        .map(|one| !one.revents().is_empty())
        .collect();
    let mut news = News {
        answered: ready.get(1) == Some(&true),
        closed: false,
    };
    if ready[0] {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(watch, &mut space);
        loop {
            news.closed |= events.next()?.events().contains(ReadFlags::CLOSE_WRITE);
            if events.is_buffer_empty() {
                break;
            }
        }
    }
    Ok(news)
}

/// Copies what was added.
fn catch_up(file: &mut File, harmless: &mut Option<Harmless>) -> std::io::Result<()> {
    // A console log that grew too long has lost its older part, and with it what we
    // have shown: go on at its end.
    if file.metadata()?.len() < file.stream_position()? {
        file.seek(SeekFrom::End(0))?;
    }
    copy(file, harmless)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    /// A question that the other end of the pair answers.
    fn asked() -> (Asked, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let vm = "dev".to_owned();
        (client::begin(ours, Request::VmWait { vm }), theirs)
    }

    #[test]
    fn a_closed_log_is_not_the_end_but_the_daemons_word_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let writer = File::create(&path).unwrap();
        let watch = watch(&File::open(&path).unwrap().into()).unwrap();
        let (asked, mut daemon) = asked();
        let asked = std::cell::Cell::new(Some(asked));
        let ask = || Ok(asked.take().expect("asked once"));
        let mut rest = Rest::new(&ask).unwrap();

        drop(writer);
        let news = wait(&watch, &rest).unwrap();
        assert!(news.closed && !news.answered);
        assert!(!rest.has_come(news).unwrap());

        daemon.write_all(b"{\"done\":{\"is\":\"ok\"}}\n").unwrap();
        let news = wait(&watch, &rest).unwrap();
        assert!(rest.has_come(news).unwrap());
    }

    #[test]
    fn the_next_daemon_is_asked_when_a_writer_closes_the_log() {
        let (first, first_daemon) = asked();
        let (second, _second_daemon) = asked();
        let left = std::cell::RefCell::new(vec![second, first]);
        let ask = || Ok(left.borrow_mut().pop().expect("asked twice"));
        let mut rest = Rest::new(&ask).unwrap();
        let news = |answered, closed| News { answered, closed };

        drop(first_daemon);
        assert!(!rest.has_come(news(true, false)).unwrap());
        assert!(!rest.has_come(news(false, false)).unwrap());
        assert_eq!(left.borrow().len(), 1);
        assert!(!rest.has_come(news(false, true)).unwrap());
        assert!(left.borrow().is_empty() && rest.asked.is_some());
    }
}
