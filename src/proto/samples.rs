//! One checked-in example of every message, loaded and compared here.
//!
//! A change of the wire is a change of a file in `samples/`, so it is seen in review.
//! `BANGER_BLESS=1 cargo test samples` writes the files anew.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::agent::{
    AGENT_VERSION, Adjust, AgentCall, AgentFailure, AgentFailureKind, AgentRequest, Done, Exec,
    Exit, Terminal, Unpack, Unpacked,
};
use super::guest::{GuestCall, GuestConfig, GuestFile, Interface, ReadyAck};
use super::helper::{
    HELPER_VERSION, HelperCall, HelperReply, HelperRequest, HelperStep, HelperVerb,
};
use super::limits::Limits;
use super::repair::{Outcome, Repair, Repaired, StuckVm};
use super::reply::{
    Balloon, Fact, HostFacts, ImageView, KernelView, Line, Progress, Reply, RootStore, Status,
    VmView, WireFailure,
};
use super::request::{Call, Changes, GitIdentity, LogKind, NewVm, PROTOCOL_VERSION, Request};
use crate::model::net::{NetRequest, PortForward};
use crate::model::units::Bytes;
use crate::model::vm::RootModeRequest;
use crate::model::vm::{InitMode, VmmRequest};

fn path(room: &str, name: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("src/proto/samples")
        .join(format!("{room}-{name}.json"))
}

/// Writing the value gives the sample, and reading the sample gives the value.
fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
    room: &str,
    name: &str,
    value: &T,
) {
    let path = path(room, name);
    let written = serde_json::to_string_pretty(value).unwrap() + "\n";
    if std::env::var_os("BANGER_BLESS").is_some() {
        fs::write(&path, &written).unwrap();
    }
    let sample =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(written, sample, "{}", path.display());
    assert_eq!(
        &serde_json::from_str::<T>(&sample).unwrap(),
        value,
        "{}",
        path.display()
    );
}

fn limits() -> Limits {
    Limits {
        disk_iops: Some(500),
        disk_bandwidth: Some(20 << 20),
        net_bandwidth: None,
        cpu_weight: Some(200),
    }
}

fn new_vm() -> NewVm {
    NewVm {
        name: Some("dev".parse().unwrap()),
        image: "debian-bookworm".parse().unwrap(),
        kernel: "debian-6.1-cloud".parse().unwrap(),
        vcpu: 2,
        memory: Bytes::gib(2),
        work_disk: Bytes::gib(8),
        root_disk: Bytes::gib(8),
        root_mode: RootModeRequest::Auto,
        net: NetRequest::Auto,
        publish: vec![PortForward::local(8080, 80)],
        init: InitMode::Auto,
        vmm: VmmRequest::Auto,
        env: vec![("EDITOR".to_owned(), "vi".to_owned())],
        workdir: Some("/root/repo".to_owned()),
        limits: limits(),
        git_identity: Some(GitIdentity {
            name: "Ada".to_owned(),
            email: "ada@example.org".to_owned(),
        }),
    }
}

fn requests() -> Vec<Request> {
    let vm = || "dev".to_owned();
    let image = || "debian-minimal".parse().unwrap();
    let kernel = || "debian-6.1-cloud".parse().unwrap();
    vec![
        Request::Status {},
        Request::Shutdown {},
        Request::VmRun {
            vm: Box::new(new_vm()),
            start: true,
            delete_on_disconnect: true,
        },
        Request::VmStart { vm: vm() },
        Request::VmStop { vm: vm() },
        Request::VmRestart { vm: vm() },
        Request::VmKill { vm: vm() },
        Request::VmDelete {
            vm: vm(),
            force: true,
        },
        Request::VmReset { vm: vm() },
        Request::VmSet {
            vm: vm(),
            changes: Changes {
                vcpu: Some(4),
                work_disk: Some(16 << 30),
                memory_target: Some(1 << 30),
                ..Changes::default()
            },
        },
        Request::VmList {},
        Request::VmShow { vm: vm() },
        Request::VmWait { vm: vm() },
        Request::VmDial { vm: vm() },
        Request::VmOpenLog {
            vm: vm(),
            log: LogKind::Console,
        },
        Request::ImageList {},
        Request::ImageShow { name: image() },
        Request::ImagePull {
            name: image(),
            force: false,
        },
        Request::ImageDelete { name: image() },
        Request::KernelList {},
        Request::KernelShow { name: kernel() },
        Request::KernelPull {
            name: kernel(),
            force: false,
        },
        Request::KernelDelete { name: kernel() },
        Request::HostFacts {},
        Request::Repair { dry_run: true },
        Request::Sweep {},
        Request::StoreCopy {},
    ]
}

#[test]
fn every_request_has_a_sample_that_loads() {
    for request in requests() {
        let call = Call {
            v: PROTOCOL_VERSION,
            op: "4f1c22aa".to_owned(),
            request,
        };
        check("request", call.request.word(), &call);
    }
    // As many samples as variants: `word` is matched without a wildcard, so a new
    // variant is met here or in the compiler.
    let source = include_str!("request.rs");
    let words = source.matches("} => \"").count();
    assert_eq!(requests().len(), words);
}

fn vm_view() -> VmView {
    VmView {
        id: "0badcafe".to_owned(),
        name: "dev".to_owned(),
        phase: "running".to_owned(),
        reason: None,
        retry: None,
        image: "debian-bookworm".to_owned(),
        image_content: "00112233aabbccdd".to_owned(),
        kernel: "debian-6.1-cloud".to_owned(),
        vcpu: 2,
        memory: 2 << 30,
        balloon: Balloon {
            memory_target: Some(1 << 30),
            memory_actual: Some(1 << 30),
            memory_resident: Some(900 << 20),
        },
        work_disk: 8 << 30,
        root_disk: 8 << 30,
        root_mode: "dm-snapshot".to_owned(),
        root_store: Some(RootStore {
            used: 96 << 20,
            total: 8 << 30,
            state: "active".to_owned(),
            warning: None,
        }),
        allocated: 3 << 20,
        net: "nat".to_owned(),
        net_reason: None,
        address: Some("172.30.0.2".to_owned()),
        publish: vec!["8080:80".to_owned()],
        init: "systemd".to_owned(),
        vmm: Some("qemu-tcg".to_owned()),
        vmm_reason: Some("KVM cannot be opened".to_owned()),
        confinement: Some("sandbox".to_owned()),
        confinement_reason: None,
        pid: Some(4321),
        workdir: Some("/root/repo".to_owned()),
        limits: limits(),
        limits_note: None,
        limits_missing: Some("cpu not held: no controller".to_owned()),
        created_at: 1_795_000_000,
        started_at: Some(1_795_000_002),
        boot_phases: vec![("init".to_owned(), 1550)],
        warnings: vec!["no /lib/modules in the image".to_owned()],
        delete_on_disconnect: false,
    }
}

fn repaired() -> Repaired {
    Repaired {
        repairs: vec![Repair {
            outcome: Outcome::WouldRemove,
            what: "tap bgr-0badcafe".to_owned(),
            why: "no running VM has it".to_owned(),
        }],
        contents: vec!["content 00112233445566aa of an image".to_owned()],
        stuck: vec![StuckVm {
            name: "dev".to_owned(),
            at: "stopping".to_owned(),
            reason: "remove tap bgr-0badcafe: device or resource busy".to_owned(),
        }],
    }
}

fn store_copy() -> Reply {
    Reply::StoreCopy {
        path: "/var/lib/banger/store.redb".to_owned(),
    }
}

fn replies() -> Vec<(&'static str, Reply)> {
    let image = ImageView {
        name: "debian-minimal".to_owned(),
        present: true,
        content: "00112233aabbccdd".to_owned(),
        size: 256 << 20,
        allocated: 180 << 20,
        source: "recipe debian-minimal".to_owned(),
        created_at: 1_795_000_000,
        damaged: None,
        used_by: vec!["dev".to_owned()],
    };
    let kernel = KernelView {
        name: "debian-6.1-cloud".to_owned(),
        present: true,
        content: "8899aabbccddeeff".to_owned(),
        release: "6.1.0-1-cloud-amd64".to_owned(),
        allocated: 150 << 20,
        source: "linux-image-cloud-amd64".to_owned(),
        created_at: 1_795_000_000,
        damaged: None,
        used_by: Vec::new(),
    };
    let status = Status {
        version: "banger 0.1.0".to_owned(),
        pid: 77,
        socket: "/run/banger/bangerd.sock".to_owned(),
        log: String::new(),
        uptime_s: 12,
        running: 1,
        vms: 2,
    };
    let facts = HostFacts {
        facts: vec![Fact {
            name: "qemu".to_owned(),
            ok: true,
            detail: "7.2".to_owned(),
        }],
        vmm: Some("qemu-tcg".to_owned()),
        vmm_reason: "KVM cannot be opened".to_owned(),
    };
    vec![
        ("ok", Reply::Ok {}),
        ("status", Reply::Status(status)),
        ("vm", Reply::Vm(Box::new(vm_view()))),
        (
            "vms",
            Reply::Vms {
                vms: vec![vm_view()],
            },
        ),
        (
            "dialed",
            Reply::Dialed {
                id: "0badcafe".to_owned(),
                name: "dev".to_owned(),
            },
        ),
        (
            "log",
            Reply::Log {
                path: "/var/lib/banger/vms/0badcafe/console.log".to_owned(),
                live: true,
            },
        ),
        ("store_copy", store_copy()),
        (
            "images",
            Reply::Images {
                images: vec![image.clone()],
            },
        ),
        ("image", Reply::Image(image.clone())),
        (
            "image_damaged",
            Reply::Image(ImageView {
                damaged: Some("check rootfs.ext4: it has 5 bytes instead of 9".to_owned()),
                ..image
            }),
        ),
        (
            "kernels",
            Reply::Kernels {
                kernels: vec![kernel.clone()],
            },
        ),
        ("kernel", Reply::Kernel(kernel.clone())),
        (
            "kernel_damaged",
            Reply::Kernel(KernelView {
                damaged: Some("read manifest.json: no such file".to_owned()),
                ..kernel
            }),
        ),
        ("facts", Reply::Facts(facts)),
        ("repaired", Reply::Repaired(repaired())),
    ]
}

#[test]
fn every_line_of_the_daemon_has_a_sample_that_loads() {
    for (name, reply) in replies() {
        check("reply", name, &Line::Done(reply));
    }
    let progress = Progress {
        stage: "build image debian-minimal".to_owned(),
        detail: "install packages".to_owned(),
        current: Some(3),
        total: Some(10),
    };
    check("reply", "progress", &Line::Progress(progress));
    let failure = WireFailure {
        kind: "not_found".to_owned(),
        what: "show vm dve".to_owned(),
        hint: Some("Did you mean dev?".to_owned()),
        causes: vec!["no vm has this name".to_owned()],
    };
    check("reply", "failed", &Line::Failed(failure));
}

#[test]
fn every_call_of_an_agent_has_a_sample_that_loads() {
    let exec = Exec {
        argv: vec!["sh".to_owned(), "-c".to_owned(), "exit 42".to_owned()],
        env: vec![("A".to_owned(), "b".to_owned())],
        workdir: Some("/tmp".to_owned()),
        terminal: Some(Terminal {
            term: "xterm-256color".to_owned(),
            columns: 120,
            rows: 40,
        }),
    };
    let requests = [
        ("exec", AgentRequest::Exec(exec)),
        (
            "unpack",
            AgentRequest::Unpack(Unpack {
                path: "/root/repo".to_owned(),
            }),
        ),
        (
            "adjust",
            AgentRequest::Adjust(Adjust {
                balloon: true,
                work_disk: Some(16 << 30),
            }),
        ),
        ("power-off", AgentRequest::PowerOff),
    ];
    for (name, request) in requests {
        let call = AgentCall {
            version: AGENT_VERSION,
            host_time_ns: 1_795_000_000_000_000_000,
            request,
        };
        check("agent", name, &call);
    }
    check("agent", "exit-code", &Exit::Code(42));
    check("agent", "exit-signal", &Exit::Signal(9));
    check("agent", "done", &Done {});
    check(
        "agent",
        "unpacked",
        &Unpacked {
            entries: 3,
            bytes: 4096,
        },
    );
    let failure = AgentFailure {
        kind: AgentFailureKind::NotFound,
        what: "run nope: no such program in PATH".to_owned(),
    };
    check("agent", "failed", &failure);
}

#[test]
fn every_call_of_a_guest_has_a_sample_that_loads() {
    let hello = GuestCall::Hello {
        version: AGENT_VERSION,
        kernel_release: "6.1".to_owned(),
    };
    let ready = GuestCall::Ready {
        version: AGENT_VERSION,
        token: "00ff".to_owned(),
        init: "systemd".to_owned(),
        phases: vec![("init".to_owned(), 1550)],
        warnings: Vec::new(),
    };
    let failed = GuestCall::Failed {
        token: None,
        what: "mount vda: invalid argument".to_owned(),
    };
    for (name, call) in [("hello", hello), ("ready", ready), ("failed", failed)] {
        check("guest", name, &call);
    }
    let config = GuestConfig {
        hostname: "dev".to_owned(),
        host_time_ns: 1_795_000_000_000_000_000,
        init: "auto".to_owned(),
        interface: Some(Interface {
            mac: "06:00:0b:ad:ca:fe".to_owned(),
            address: "172.30.0.2".to_owned(),
            prefix: 16,
            gateway: Some("172.30.0.1".to_owned()),
            resolvers: vec!["172.30.0.1".to_owned()],
        }),
        files: vec![GuestFile {
            path: "/root/.gitconfig".to_owned(),
            mode: 0o644,
            content: "[user]\n".to_owned(),
        }],
        env: vec![("EDITOR".to_owned(), "vi".to_owned())],
        workdir: Some("/root/repo".to_owned()),
        entrypoint: Vec::new(),
        seed: "00ff".to_owned(),
        machine_id: "0badcafe0badcafe0badcafe0badcafe".to_owned(),
        token: "00ff".to_owned(),
    };
    check("guest", "config", &config);
    check("guest", "ready-ack", &ReadyAck {});
}

#[test]
fn every_call_of_the_root_helper_has_a_sample_that_loads() {
    let vm = crate::model::ids::VmId::from_bits(0x0bad_cafe);
    let subnet = "172.30.0.0/16".parse().unwrap();
    let tap = HelperRequest::Step {
        verb: HelperVerb::Ensure,
        step: HelperStep::Tap { vm, subnet },
    };
    let rules = HelperRequest::Step {
        verb: HelperVerb::Absent,
        step: HelperStep::NetRules {
            vm,
            address: [172, 30, 0, 2].into(),
            subnet,
            nat: true,
            publish: Vec::new(),
        },
    };
    let published = HelperRequest::Step {
        verb: HelperVerb::Ensure,
        step: HelperStep::NetRules {
            vm,
            address: [172, 30, 0, 2].into(),
            subnet,
            nat: false,
            publish: vec!["0.0.0.0:8080:80/udp".parse().unwrap()],
        },
    };
    let limit = HelperRequest::Step {
        verb: HelperVerb::Probe,
        step: HelperStep::NetLimit {
            vm,
            subnet,
            bandwidth: 1 << 20,
        },
    };
    let resolver = HelperRequest::Resolver { subnet };
    for (name, request) in [
        ("tap", tap),
        ("net-rules", rules),
        ("net-rules-published", published),
        ("net-limit", limit),
        ("resolver", resolver),
    ] {
        let call = HelperCall {
            v: HELPER_VERSION,
            request,
        };
        check("helper", name, &call);
    }
    let saw = HelperReply::Saw {
        presence: "present".to_owned(),
    };
    let fault = HelperReply::Fault {
        kind: "busy".to_owned(),
        what: "add tap bgr-0badcafe: device or resource busy".to_owned(),
    };
    for (name, reply) in [
        ("done", HelperReply::Done {}),
        ("saw", saw),
        ("fault", fault),
    ] {
        check("helper", name, &reply);
    }
}
