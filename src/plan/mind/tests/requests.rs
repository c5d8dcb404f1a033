//! Requests: refused, resolved, shared.

use super::*;

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
    let cases: [(Request, &str); 5] = [
        (made(|vm| vm.vcpu = 0), "--vcpu"),
        (made(|vm| vm.memory = Bytes(0)), "--memory"),
        (
            made(|vm| vm.kernel = "debian".to_owned()),
            "debian-6.1-cloud",
        ),
        (
            made(|vm| vm.publish = vec!["80".parse().unwrap()]),
            "--net user",
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
        refresh: crate::plan::request::Refresh::Keep,
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
