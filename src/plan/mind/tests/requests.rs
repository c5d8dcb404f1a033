//! Requests: refused, resolved, shared.

use super::*;
use crate::plan::facts::MIN_FREE_TO_START;
use crate::plan::request::Refresh;

#[test]
fn two_creations_share_one_pull_which_ends_with_the_last_waiter() {
    let mut desk = Desk::new(Loaded {
        kernels: vec![kernel("debian-6.1-cloud")],
        ..Loaded::default()
    });
    desk.end_sweep();
    desk.ask(1, create("a", Removal::Keep));
    desk.ask(2, create("b", Removal::Keep));
    let key = PullKey::Image("debian-minimal".parse().unwrap());
    let started: Vec<_> = desk
        .jobs
        .iter()
        .filter(|job| matches!(job, Action::StartJob { work: JobWork::Pull(k), .. } if *k == key))
        .collect();
    assert_eq!(started.len(), 1);
    desk.hear(Event::ClientGone {
        client: ClientId(1),
    });
    assert!(
        !desk
            .jobs
            .iter()
            .any(|job| matches!(job, Action::CancelJob { .. }))
    );
    desk.hear(Event::ClientGone {
        client: ClientId(2),
    });
    assert!(
        desk.jobs
            .iter()
            .any(|job| matches!(job, Action::CancelJob { .. }))
    );
}

#[test]
fn pull_done_lets_the_waiting_creation_begin() {
    let mut desk = Desk::new(Loaded {
        kernels: vec![kernel("debian-6.1-cloud")],
        ..Loaded::default()
    });
    desk.end_sweep();
    desk.ask(1, create("a", Removal::Keep));
    let Some(Action::StartJob { job, .. }) = desk.jobs.pop() else {
        panic!("no job");
    };
    let result = Ok(JobResult::Image(image("debian-minimal")));
    desk.hear(Event::JobDone { job, result });
    assert_eq!(desk.vms()[0].phase, Phase::Running);
}

#[test]
fn unknown_image_is_refused_with_the_nearest_name_and_nothing_is_made() {
    let mut desk = Desk::new(stocked());
    let Request::Create(mut request) = create("dev", Removal::Keep) else {
        panic!("a creation");
    };
    request.image = "debian-minimul".to_owned();
    desk.ask(1, Request::Create(request));
    assert_eq!(desk.failure().kind, FailureKind::NotFound);
    assert!(
        desk.failure()
            .hint
            .as_ref()
            .unwrap()
            .contains("debian-minimal")
    );
    assert!(desk.rows.is_empty());
}

#[test]
fn image_in_use_is_not_deleted() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let name = target("debian-minimal");
    desk.ask(1, Request::ImageDelete { name });
    assert!(desk.failure().what.contains("vm dev"));
}

#[test]
fn reference_finds_by_name_id_and_prefix_and_suggests() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let id = desk.vms()[0].id.to_string();
    for text in ["dev", &id, &id[..2]] {
        desk.ask(
            1,
            Request::Dial {
                target: target(text),
            },
        );
        assert!(matches!(desk.last_reply(), Reply::Dial { .. }), "{text}");
    }
    desk.ask(
        1,
        Request::Dial {
            target: target("dve"),
        },
    );
    assert_eq!(desk.failure().kind, FailureKind::NotFound);
    assert!(desk.failure().hint.as_ref().unwrap().contains("dev"));
}

fn made(change: impl FnOnce(&mut CreateRequest)) -> Request {
    let Request::Create(mut request) = create("dev", Removal::Keep) else {
        panic!("a creation");
    };
    change(&mut request);
    Request::Create(request)
}

#[test]
fn bad_creations_are_refused_with_what_to_type_and_nothing_is_made() {
    let mut desk = Desk::new(stocked());
    let cases: [(Request, &str); 6] = [
        (made(|vm| vm.vcpu = 0), "--vcpu"),
        (made(|vm| vm.memory = Bytes(0)), "--memory"),
        (
            made(|vm| vm.kernel = "debian".to_owned()),
            "debian-6.1-cloud",
        ),
        (
            made(|vm| {
                vm.net = NetRequest::None;
                vm.publish = vec!["80".parse().unwrap()];
            }),
            "--net user",
        ),
        (
            made(|vm| {
                vm.net = NetRequest::User;
                vm.publish = vec!["80:80".parse().unwrap()];
            }),
            "from 1024 on",
        ),
        (made(|vm| vm.vmm = VmmRequest::Firecracker), "--vmm qemu"),
    ];
    for (request, hint) in cases {
        desk.ask(1, request);
        let said = desk.failure().hint.clone().unwrap();
        assert!(said.contains(hint), "{said}");
    }
    assert!(desk.rows.is_empty() && desk.steps.is_empty());
}

#[test]
fn port_of_a_running_vm_is_refused_and_free_again_when_that_stops() {
    let mut desk = Desk::new(stocked());
    let publishing = |name: &str, port: &str| {
        made(|vm| {
            vm.name = Some(name.parse().unwrap());
            vm.publish = vec![port.parse().unwrap()];
        })
    };
    desk.ask(1, publishing("dev", "8080:80"));
    for port in ["8080:81", "0.0.0.0:8080:80"] {
        desk.ask(2, publishing("other", port));
        assert_eq!(desk.failure().kind, FailureKind::Busy);
        assert!(desk.failure().what.contains("taken by vm dev"), "{port}");
    }
    let resting = publishing("rests", "8080:81");
    let Request::Create(mut resting) = resting else {
        panic!("a creation");
    };
    resting.then = AfterCreate::Rest;
    desk.ask(2, Request::Create(resting));
    let start = || Request::Start {
        target: target("rests"),
    };
    desk.ask(2, start());
    assert!(desk.failure().what.contains("start vm rests"));
    assert_eq!(desk.vms().len(), 2, "a refused start deletes nothing");
    let target = target("dev");
    desk.ask(1, Request::Stop { target });
    desk.ask(2, start());
    assert!(matches!(desk.last_reply(), Reply::Vm(_)));
}

#[test]
fn taken_name_is_refused_even_while_its_image_is_pulled() {
    let mut desk = Desk::new(Loaded {
        kernels: vec![kernel("debian-6.1-cloud")],
        ..Loaded::default()
    });
    desk.ask(1, create("dev", Removal::Keep));
    desk.ask(2, create("dev", Removal::Keep));
    assert_eq!(desk.failure().kind, FailureKind::Busy);
    assert!(desk.failure().what.contains("name is taken"));
}

#[test]
fn full_disk_is_refused_before_anything_is_made() {
    let mut desk = Desk::new(stocked());
    desk.free = Bytes::mib(1);
    desk.ask(1, create("dev", Removal::Keep));
    assert!(desk.failure().what.contains("disk is full"));
    assert!(desk.rows.is_empty());
}

/// Symptom: the guest was halted in its boot, and two minutes later its image was suspected.
#[test]
fn start_on_a_full_disk_is_refused_at_once_and_the_vm_kept() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let target = || "dev".to_owned();
    desk.ask(1, Request::Stop { target: target() });
    desk.free = Bytes::mib(1);
    desk.steps.clear();
    desk.ask(1, Request::Start { target: target() });
    let failure = desk.failure();
    assert_eq!(failure.what, "start vm dev: the disk is full");
    assert!(failure.hint.as_ref().unwrap().contains("prune"));
    assert!(desk.steps.is_empty());
    assert_eq!(desk.vms()[0].phase, Phase::Stopped);
    desk.free = MIN_FREE_TO_START;
    desk.ask(1, Request::Start { target: target() });
    assert_eq!(desk.vms()[0].phase, Phase::Running);
}

#[test]
fn prefix_of_two_ids_is_refused_with_both() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("a", Removal::Keep));
    desk.ask(1, create("b", Removal::Keep));
    let target = desk.vms()[0].id.to_string()[..4].to_owned();
    desk.ask(1, Request::Show { target });
    assert_eq!(desk.failure().kind, FailureKind::Usage);
    let hint = desk.failure().hint.clone().unwrap();
    assert!(hint.contains("(a)") && hint.contains("(b)"), "{hint}");
}

#[test]
fn cancelled_pull_that_is_wanted_again_starts_anew() {
    let mut desk = Desk::new(Loaded::default());
    desk.end_sweep();
    let pull = || Request::ImagePull {
        name: target("debian-minimal"),
        refresh: Refresh::Keep,
    };
    desk.ask(1, pull());
    let Some(Action::StartJob { job, .. }) = desk.jobs.first().cloned() else {
        panic!("no job");
    };
    desk.hear(Event::ClientGone {
        client: ClientId(1),
    });
    desk.ask(2, pull());
    let result = Err(crate::failure::Failure::failed("cancelled"));
    desk.hear(Event::JobDone { job, result });
    let started = desk
        .jobs
        .iter()
        .filter(|job| matches!(job, Action::StartJob { .. }));
    assert_eq!(started.count(), 2);
    assert!(desk.replies.is_empty());
}

fn pull_minimal(refresh: Refresh) -> Request {
    Request::ImagePull {
        name: target("debian-minimal"),
        refresh,
    }
}

/// Takes the last job asked for, which must be this one; says how it ended.
#[track_caller]
fn end_job(desk: &mut Desk, expected: &JobWork, result: JobResult) {
    match desk.jobs.pop() {
        Some(Action::StartJob { job, work }) if work == *expected => {
            let result = Ok(result);
            desk.hear(Event::JobDone { job, result });
        }
        other => panic!("{expected:?} was to be begun, and not {other:?}"),
    }
}

fn check_and_make() -> (JobWork, JobWork) {
    let key = PullKey::Image("debian-minimal".parse().unwrap());
    let content = image("debian-minimal").content;
    let check = JobWork::Check {
        key: key.clone(),
        content,
    };
    (check, JobWork::Pull(key))
}

#[test]
fn pull_of_what_is_whole_only_looks() {
    let mut desk = Desk::new(stocked());
    desk.end_sweep();
    desk.ask(1, pull_minimal(Refresh::Keep));
    assert!(desk.replies.is_empty());
    let (check, _) = check_and_make();
    end_job(&mut desk, &check, JobResult::Checked(None));
    assert_eq!(*desk.last_reply(), Reply::Image(image("debian-minimal")));
    assert!(desk.jobs.is_empty() && desk.rows.is_empty());
}

#[test]
fn pull_of_what_is_damaged_makes_it_again_under_its_name_and_sweeps_the_old() {
    let mut desk = Desk::new(stocked());
    desk.end_sweep();
    desk.ask(1, create("dev", Removal::Keep));
    desk.ask(1, pull_minimal(Refresh::Keep));
    let (check, make) = check_and_make();
    let damage = Some("it has 5 bytes".to_owned());
    end_job(&mut desk, &check, JobResult::Checked(damage));
    let made = Image {
        content: "00000000000000cc".parse().unwrap(),
        ..image("debian-minimal")
    };
    end_job(&mut desk, &make, JobResult::Image(made.clone()));
    assert_eq!(*desk.last_reply(), Reply::Image(made.clone()));
    // The VM keeps its base; what neither name nor VM means goes.
    assert_eq!(
        desk.vms()[0].spec.image.content,
        image("debian-minimal").content
    );
    let Some(Action::StartJob { work, .. }) = desk.jobs.pop() else {
        panic!("no sweep");
    };
    let JobWork::Sweep { images, .. } = work else {
        panic!("no sweep but {work:?}");
    };
    assert_eq!(
        images,
        [image("debian-minimal").content, made.content].into()
    );
}

/// Symptom: a pull that failed after its rename left its content until the next start.
#[test]
fn pull_that_fails_is_swept_after() {
    let mut desk = Desk::new(stocked());
    desk.end_sweep();
    desk.ask(1, pull_minimal(Refresh::Again));
    let Some(Action::StartJob { job, .. }) = desk.jobs.pop() else {
        panic!("no pull");
    };
    let result = Err(crate::failure::Failure::failed("keep it"));
    desk.hear(Event::JobDone { job, result });
    let sweep = desk.jobs.last();
    assert!(
        matches!(sweep, Some(Action::StartJob { work: JobWork::Sweep { images, .. }, .. }) if images.len() == 1),
        "{sweep:?}"
    );
}

#[test]
fn forced_pull_that_comes_during_a_look_is_made_though_all_is_whole() {
    let mut desk = Desk::new(stocked());
    desk.end_sweep();
    desk.ask(1, pull_minimal(Refresh::Keep));
    desk.ask(2, pull_minimal(Refresh::Again));
    let (check, make) = check_and_make();
    end_job(&mut desk, &check, JobResult::Checked(None));
    assert!(desk.replies.is_empty());
    end_job(&mut desk, &make, JobResult::Image(image("debian-minimal")));
    assert_eq!(desk.replies.len(), 2);
}

#[test]
fn look_that_nobody_waits_for_any_more_makes_nothing() {
    let mut desk = Desk::new(stocked());
    desk.end_sweep();
    desk.ask(1, pull_minimal(Refresh::Keep));
    let look = desk.jobs.clone();
    desk.hear(Event::ClientGone {
        client: ClientId(1),
    });
    desk.jobs = look;
    let (check, _) = check_and_make();
    let damage = Some("it is gone".to_owned());
    end_job(&mut desk, &check, JobResult::Checked(damage));
    assert!(desk.jobs.is_empty(), "{:?}", desk.jobs);
}

#[test]
fn whoever_waits_is_told_when_the_vm_comes_to_rest_and_not_before() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.replies.clear();
    let wait = || Request::Wait {
        target: target("dev"),
    };
    desk.ask(2, wait());
    desk.ask(3, wait());
    desk.hear(Event::ClientGone {
        client: ClientId(3),
    });
    assert_eq!(desk.replies, []);
    desk.ask(
        1,
        Request::Stop {
            target: target("dev"),
        },
    );
    let told: Vec<ClientId> = desk.replies.iter().map(|(client, _)| *client).collect();
    assert_eq!(told, [ClientId(2), ClientId(1)]);
    assert!(matches!(&desk.replies[0].1, Reply::Vm(vm) if vm.phase == Phase::Stopped));

    desk.ask(2, wait());
    assert!(matches!(desk.last_reply(), Reply::Vm(_)));
}

#[test]
fn whoever_waits_for_a_vm_that_is_deleted_is_told_so() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    desk.replies.clear();
    let dev = || target("dev");
    desk.ask(2, Request::Wait { target: dev() });
    let force = Force::Kill;
    desk.ask(
        1,
        Request::Delete {
            target: dev(),
            force,
        },
    );
    assert!(matches!(
        &desk.replies[..],
        [(_, Reply::Deleted { .. }), (_, Reply::Deleted { .. })]
    ));
}

#[test]
fn more_memory_than_the_machine_has_is_refused_before_anything_is_made() {
    let mut desk = Desk::new(Loaded::default());
    let Request::Create(mut request) = create("dev", Removal::Keep) else {
        unreachable!()
    };
    request.memory = Bytes::gib(65);
    desk.ask(1, Request::Create(request));
    let failure = desk.failure();
    assert_eq!(failure.kind, FailureKind::Usage);
    assert_eq!(
        failure.what,
        "create vm dev: memory of 65G is more than this machine has, 64G"
    );
    assert!(desk.jobs.is_empty() && desk.rows.is_empty() && desk.vms().is_empty());
}

#[test]
fn vm_of_a_larger_machine_is_not_started_and_stays_as_it_is() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let dev = || target("dev");
    desk.ask(1, Request::Stop { target: dev() });
    let mut vm = desk.vms().remove(0);
    vm.spec.memory = Bytes::gib(65);
    let vms = vec![vm];
    let mut desk = Desk::new(Loaded { vms, ..stocked() });
    desk.ask(1, Request::Start { target: dev() });
    let failure = desk.failure();
    assert!(
        failure.what.starts_with("start vm dev: memory of 65G"),
        "{failure}"
    );
    assert!(desk.steps.is_empty() && desk.rows.is_empty());
    assert_eq!(desk.vms()[0].phase, Phase::Stopped);
}

#[test]
fn a_root_mode_that_this_host_lacks_is_refused_before_anything_is_pulled_or_made() {
    let mut desk = Desk::new(Loaded::default());
    let Request::Create(mut request) = create("dev", Removal::Keep) else {
        unreachable!("that is what it makes");
    };
    request.root_mode = RootModeRequest::DmSnapshot;
    desk.ask(1, Request::Create(request));
    assert!(desk.failure().to_string().contains("not permitted"));
    assert!(desk.steps.is_empty() && desk.jobs.is_empty() && desk.rows.is_empty());
}

#[test]
fn no_two_vms_have_the_same_user_on_the_host() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("a", Removal::Keep));
    let first = desk.vms()[0].id;
    // The identity that is drawn differs in the bits that make no user.
    desk.id_bits = u64::from(first.bits() ^ 0xf800_0000) << 32;
    desk.ask(2, create("b", Removal::Keep));
    let second = desk.vms()[1].id;
    assert_ne!(first.user_bits(), second.user_bits());
}

#[test]
fn limit_of_a_network_is_refused_where_no_kernel_keeps_it_and_said_where_there_is_none() {
    let limited = |net| match create("dev", Removal::Keep) {
        Request::Create(create) => Request::Create(Box::new(CreateRequest {
            net,
            limits: Limits {
                net_bandwidth: Some(Bytes::mib(1)),
                ..Limits::default()
            },
            ..*create
        })),
        other => other,
    };
    let mut desk = Desk::new(stocked());
    desk.ask(1, limited(NetRequest::Nat));
    let failure = desk.failure();
    assert!(failure.to_string().contains("no nft_limit"), "{failure}");
    assert!(
        failure
            .hint
            .as_ref()
            .unwrap()
            .contains("modprobe nft_limit")
    );
    assert_eq!(desk.rows, []);
    desk.ask(1, limited(NetRequest::None));
    let said = |action: &Action| match action {
        Action::Progress { progress, .. } => format!("{progress:?}").contains("has no network"),
        _ => false,
    };
    assert!(desk.others.iter().any(said));
    assert_eq!(desk.vms().len(), 1);
}

#[test]
fn vm_that_starts_in_another_subnet_has_an_address_of_it() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let (dev, subnet) = (|| target("dev"), "10.9.0.0/29".parse().unwrap());
    desk.mind.facts.subnet = subnet;
    desk.rows.clear();

    desk.ask(1, Request::Restart { target: dev() });

    let vm = desk.vms().remove(0);
    let lease = vm.lease.expect("it has a tap");
    assert_eq!((vm.phase, lease.subnet), (Phase::Running, subnet));
    assert_eq!(Some(lease.address), subnet.guest(0));
    let before_the_first_step = desk.rows.iter().find_map(|row| match row {
        RowChange::PutVm(row) if row.phase == Phase::Starting => row.lease,
        _ => None,
    });
    assert_eq!(before_the_first_step, Some(lease));
    let taps = |step: &Step| matches!(step, Step::Tap { subnet: of, .. } if *of == subnet);
    assert!(vm.run_plan.iter().any(taps), "{:?}", vm.run_plan);
}

#[test]
fn vm_that_finds_no_address_in_another_subnet_is_refused_and_keeps_its_own() {
    let mut desk = Desk::new(stocked());
    desk.ask(1, create("dev", Removal::Keep));
    let dev = || target("dev");
    desk.ask(1, Request::Stop { target: dev() });
    let before = desk.vms().remove(0);
    desk.mind.facts.subnet = "10.9.0.0/30".parse().unwrap();
    desk.ask(1, create("other", Removal::Keep));

    desk.ask(1, Request::Start { target: dev() });

    let hint = desk.failure().hint.clone().unwrap_or_default();
    assert!(hint.contains("network.subnet"), "{hint}");
    let left = desk.vms().into_iter().find(|vm| vm.id == before.id);
    assert_eq!(left, Some(before));
}
