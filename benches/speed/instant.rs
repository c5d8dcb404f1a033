//! A VMM and a guest that take no time, so that what a command takes with them is ours:
//! this same program, called by the names of QEMU and its vsock back end.
//!
//! Everything of the product is real: disks, tap, rules, control group, the launched
//! processes, their sockets, the monitor's conversation, the guest's two calls. Only
//! that nothing is behind them. Starting these two processes is counted as ours.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use banger::host::launch::CONTROL_DESCRIPTOR;
use banger::proto::agent::{AGENT_VERSION, CONTROL_PORT};
use banger::proto::frame::{Decoder, Kind, encoded_json};
use banger::proto::guest::{GuestCall, GuestConfig};
use banger::sys::descriptors::take_inherited;

use crate::support::Banger;

const QEMU: &str = "qemu-system-x86_64";
const BACK_END: &str = "vhost-device-vsock";

/// Makes a daemon that has not begun start these instead of the real ones.
pub fn install(banger: &Banger) {
    let own = std::env::current_exe().expect("a process has a program");
    let mut config = "[programs]\n".to_owned();
    for (key, name) in [("qemu", QEMU), ("vhost_device_vsock", BACK_END)] {
        let link = banger.home().join(name);
        symlink(&own, &link).expect("a fresh folder takes a link");
        config.push_str(&format!("{key} = \"{}\"\n", link.display()));
    }
    fs::write(banger.config(), config).expect("a fresh folder takes a file");
}

/// Plays one of the two, if this process was called by its name; then it does not
/// return, until somebody kills it.
pub fn play() {
    let words: Vec<String> = std::env::args().collect();
    match Path::new(&words[0])
        .file_name()
        .and_then(|name| name.to_str())
    {
        Some(QEMU) => monitor(&words),
        Some(BACK_END) => back_end(&words),
        _ => {}
    }
}

fn back_end(words: &[String]) {
    let after = |word: &str| {
        let at = words.iter().position(|other| other == word);
        &words[at.expect("it is always named") + 1]
    };
    let _guest = UnixListener::bind(after("--uds-path")).expect("a fresh path");
    let vmm = UnixListener::bind(after("--socket")).expect("a fresh path");
    // Nobody connects: this waits to be killed.
    let _connection = vmm.accept();
}

/// The monitor's side of the protocol, to one client after another. A machine for a template
/// stops as soon as it runs, and one that begins from it needs all that a real one needs.
fn monitor(words: &[String]) {
    let prefix = "socket,id=vsock,path=";
    let vhost = words.iter().find_map(|word| word.strip_prefix(prefix));
    let calls = vhost.map(|vhost| {
        let vhost = PathBuf::from(vhost);
        vhost.with_file_name(format!("vsock_{CONTROL_PORT}"))
    });
    let control = take_inherited(CONTROL_DESCRIPTOR).expect("the launcher passes it");
    let mut status = match words.iter().any(|word| word == "-incoming") {
        true => "inmigrate",
        false => "prelaunch",
    };
    for client in UnixListener::from(control).incoming() {
        let mut client = client.expect("a listener of ours accepts");
        let lines = BufReader::new(client.try_clone().expect("a copy")).lines();
        say(&mut client, "{\"QMP\": {}}");
        for line in lines.map_while(Result::ok) {
            let orders = |word: &str| line.contains(&format!("\"{word}\""));
            if orders("query-status") {
                let answer = format!("{{\"return\": {{\"status\": \"{status}\"}}}}");
                say(&mut client, &answer);
                continue;
            }
            if orders("query-migrate") {
                say(&mut client, "{\"return\": {\"status\": \"completed\"}}");
                continue;
            }
            say(&mut client, "{\"return\": {}}");
            if orders("migrate-incoming") {
                status = "guest-panicked";
            }
            if orders("cont") {
                match calls.clone() {
                    Some(calls) if status != "running" => {
                        status = "running";
                        thread::spawn(move || boot(&calls));
                    }
                    Some(_) => {}
                    None => status = "guest-panicked",
                }
            }
        }
    }
}

/// A client that has what it wants does not read on.
fn say(client: &mut UnixStream, line: &str) {
    client.write_all(format!("{line}\n").as_bytes()).ok();
}

/// What a guest tells the host while it boots.
fn boot(calls: &Path) {
    let hello = GuestCall::Hello {
        version: AGENT_VERSION,
        kernel_release: "none".to_owned(),
    };
    let config = call(calls, &hello);
    let config: GuestConfig = serde_json::from_slice(&config).expect("the host configures");
    let ready = GuestCall::Ready {
        version: AGENT_VERSION,
        token: config.token,
        init: "agent".to_owned(),
        phases: Vec::new(),
        warnings: Vec::new(),
    };
    call(calls, &ready);
}

/// Calls the host; its answer.
fn call(calls: &Path, call: &GuestCall) -> Vec<u8> {
    let mut stream = UnixStream::connect(calls).expect("the host listens");
    let call = encoded_json(Kind::Request, call);
    stream.write_all(&call).expect("the host reads");
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        if let Some(frame) = decoder.next_frame().expect("frames of ours") {
            return frame.payload;
        }
        let length = stream.read(&mut buffer).expect("the host answers");
        assert_ne!(length, 0, "the host closed before its answer");
        decoder.push(&buffer[..length]);
    }
}
