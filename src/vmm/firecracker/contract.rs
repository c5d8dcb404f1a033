//! Every body that we send, held against Firecracker's own API definition: required
//! fields, types, enumerations, ranges, and no field that it does not know.

use std::fs;
use std::path::Path;

use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use super::super::machine::tests::parts;
use super::api::{Action, Patch, Request, VmState};
use super::{patches, requests};
use crate::model::limits::Limits;
use crate::model::net::NetMode;
use crate::model::units::Bytes;
use crate::model::vm::VmmKind;
use crate::plan::step::LiveSizes;

const DEFINITION: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../shared/data/firecracker-api-1.14.1.yaml"
);

/// The definition, or `None` (and a line that says so) where it is not at hand.
fn definition(test: &str) -> Option<Yaml> {
    let Ok(text) = fs::read_to_string(Path::new(DEFINITION)) else {
        eprintln!("skipped: {test}: {DEFINITION} is not there");
        return None;
    };
    YamlLoader::load_from_str(&text).unwrap().into_iter().next()
}

/// What is wrong with a body that `method` sends to `path`.
fn complaints(definition: &Yaml, method: &str, path: &str, body: &[u8]) -> Vec<String> {
    let Some(operation) = operation(definition, method, path) else {
        return vec![format!("{method} {path} is no operation")];
    };
    let parameters = operation["parameters"].as_vec().unwrap();
    let schema = parameters
        .iter()
        .find(|parameter| parameter["in"].as_str() == Some("body"))
        .map(|parameter| &parameter["schema"])
        .unwrap();
    let value: Value = serde_json::from_slice(body).unwrap();
    let mut found = Vec::new();
    check(definition, schema, &value, path, &mut found);
    found
}

/// The operation of a path, with `{names}` standing for one part of it.
fn operation<'a>(definition: &'a Yaml, method: &str, path: &str) -> Option<&'a Yaml> {
    let paths = definition["paths"].as_hash().unwrap();
    let (_, found) = paths.iter().find(|(template, _)| {
        let template = template.as_str().unwrap();
        template.split('/').count() == path.split('/').count()
            && template
                .split('/')
                .zip(path.split('/'))
                .all(|(wanted, part)| wanted == part || wanted.starts_with('{'))
    })?;
    let operation = &found[method.to_lowercase().as_str()];
    (!operation.is_badvalue()).then_some(operation)
}

fn check(definition: &Yaml, schema: &Yaml, value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/definitions/").unwrap();
        return check(
            definition,
            &definition["definitions"][name],
            value,
            at,
            found,
        );
    }
    match (schema["type"].as_str(), value) {
        (Some("object"), Value::Object(_)) => check_object(definition, schema, value, at, found),
        (Some("string"), Value::String(text)) => check_choice(schema, text, at, found),
        (Some("integer"), Value::Number(number)) => check_range(schema, number, at, found),
        (Some("boolean"), Value::Bool(_)) => {}
        (wanted, other) => found.push(format!("{at}: {other} is no {wanted:?}")),
    }
}

fn check_object(
    definition: &Yaml,
    schema: &Yaml,
    value: &Value,
    at: &str,
    found: &mut Vec<String>,
) {
    let object = value.as_object().unwrap();
    for required in schema["required"].as_vec().into_iter().flatten() {
        let name = required.as_str().unwrap();
        if !object.contains_key(name) {
            found.push(format!("{at}: {name} is missing"));
        }
    }
    for (name, value) in object {
        let property = &schema["properties"][name.as_str()];
        match property.is_badvalue() {
            true => found.push(format!("{at}: {name} is unknown")),
            false => check(definition, property, value, &format!("{at}.{name}"), found),
        }
    }
}

fn check_choice(schema: &Yaml, text: &str, at: &str, found: &mut Vec<String>) {
    if let Some(choices) = schema["enum"].as_vec()
        && !choices.iter().any(|choice| choice.as_str() == Some(text))
    {
        found.push(format!("{at}: {text:?} is not in {choices:?}"));
    }
}

fn check_range(schema: &Yaml, number: &serde_json::Number, at: &str, found: &mut Vec<String>) {
    let Some(number) = number.as_i64() else {
        return found.push(format!("{at}: {number} is no integer"));
    };
    let below = schema["minimum"]
        .as_i64()
        .is_some_and(|least| number < least);
    let above = schema["maximum"].as_i64().is_some_and(|most| number > most);
    if below || above {
        found.push(format!("{at}: {number} is out of range"));
    }
}

#[test]
fn every_request_of_a_start_is_in_the_api_definition() {
    let Some(definition) = definition("every_request_of_a_start_is_in_the_api_definition") else {
        return;
    };
    for (net, limits) in [
        (NetMode::None, Limits::default()),
        (NetMode::Nat, all_limits()),
        (NetMode::Isolated, Limits::default()),
    ] {
        let mut parts = parts(VmmKind::Firecracker, net);
        parts.limits = limits;
        let sent = requests(&parts)
            .into_iter()
            .chain([Request::Action(Action::InstanceStart)]);
        for request in sent {
            let found = complaints(&definition, "PUT", &request.path(), &request.body());
            assert_eq!(found, Vec::<String>::new());
        }
    }
    for path in ["/", "/vm/config"] {
        assert!(operation(&definition, "GET", path).is_some(), "{path}");
    }
}

#[test]
fn every_change_of_a_running_machine_is_in_the_api_definition() {
    let Some(definition) = definition("every_change_of_a_running_machine_is_in_the_api_definition")
    else {
        return;
    };
    let parts = parts(VmmKind::Firecracker, NetMode::Nat);
    let sizes = LiveSizes {
        work_disk: Bytes::gib(2),
        memory_target: Some(Bytes::mib(200)),
    };
    let sent = patches(&parts, sizes);
    let text = |patch: &Patch| String::from_utf8(patch.body()).unwrap();
    let told: Vec<String> = sent.iter().map(text).collect();
    assert_eq!(
        told,
        [
            r#"{"drive_id":"work","path_on_host":"/proc/self/fd/8"}"#,
            r#"{"amount_mib":312}"#
        ]
    );
    for patch in sent.iter().chain([&Patch::State(VmState::Resumed)]) {
        let found = complaints(&definition, "PATCH", &patch.path(), &patch.body());
        assert_eq!(found, Vec::<String>::new());
    }
    for path in ["/balloon", "/balloon/statistics"] {
        assert!(operation(&definition, "GET", path).is_some(), "{path}");
    }
}

fn all_limits() -> Limits {
    Limits {
        disk_iops: Some(500),
        disk_bandwidth: Some(Bytes::mib(20)),
        net_bandwidth: Some(Bytes::mib(1)),
        cpu_weight: Some(200),
    }
}

#[test]
fn limits_are_written_on_every_disk_and_both_directions() {
    let mut parts = parts(VmmKind::Firecracker, NetMode::Nat);
    parts.limits = all_limits();
    let body = |request: &Request| String::from_utf8(request.body()).unwrap();
    let bodies: Vec<String> = requests(&parts).iter().map(body).collect();
    let disk = r#""rate_limiter":{"bandwidth":{"size":20971520,"refill_time":1000},"ops":{"size":500,"refill_time":1000}}"#;
    let limited = bodies.iter().filter(|body| body.contains(disk));
    assert_eq!(limited.count(), parts.disks.len());
    let net = r#"_rate_limiter":{"bandwidth":{"size":1048576,"refill_time":1000}}"#;
    let device = bodies
        .iter()
        .find(|body| body.contains("iface_id"))
        .unwrap();
    assert_eq!(device.matches(net).count(), 2, "{device}");
}

#[test]
fn planted_mistakes_in_bodies_are_seen() {
    let Some(definition) = definition("planted_mistakes_in_bodies_are_seen") else {
        return;
    };
    let planted = [
        ("/vsock", r#"{"guest_cid": 3}"#, "uds_path is missing"),
        (
            "/vsock",
            r#"{"guest_cid": 2, "uds_path": "/x"}"#,
            "out of range",
        ),
        ("/vsock", r#"{"guest_cid": "3", "uds_path": "/x"}"#, "is no"),
        ("/entropy", r#"{"speed": 1}"#, "speed is unknown"),
        ("/actions", r#"{"action_type": "Reboot"}"#, "is not in"),
        ("/drives", "{}", "is no operation"),
    ];
    for (path, body, expected) in planted {
        let found = complaints(&definition, "PUT", path, body.as_bytes());
        assert_eq!(found.len(), 1, "{path} {body}: {found:?}");
        assert!(found[0].contains(expected), "{found:?}");
    }
}

#[test]
fn bodies_are_written_like_this() {
    let mut parts = parts(VmmKind::Firecracker, NetMode::Nat);
    parts.boot_args = "BOOT ARGUMENTS".to_owned();
    let bodies: Vec<String> = requests(&parts)
        .iter()
        .map(|request| {
            let body = String::from_utf8(request.body()).unwrap();
            format!("PUT {} {body}\n", request.path())
        })
        .collect();
    assert_eq!(bodies.concat(), include_str!("requests.golden.txt"));
}
