//! Views for the tests of this room.

use crate::proto::limits::Limits;
use crate::proto::reply::{Balloon, VmView};

/// A stopped VM.
pub fn vm(id: &str, name: &str) -> VmView {
    VmView {
        id: id.to_owned(),
        name: name.to_owned(),
        phase: "stopped".to_owned(),
        reason: None,
        retry: None,
        image: "debian-minimal".to_owned(),
        image_content: "0123456789abcdef".to_owned(),
        kernel: "debian-6.1-cloud".to_owned(),
        vcpu: 1,
        memory: 512 << 20,
        balloon: Balloon::default(),
        work_disk: 8 << 30,
        root_disk: 8 << 30,
        root_mode: "overlay".to_owned(),
        root_store: None,
        allocated: 0,
        net: "none".to_owned(),
        net_reason: None,
        address: None,
        publish: Vec::new(),
        init: "auto".to_owned(),
        vmm: None,
        vmm_reason: None,
        confinement: None,
        confinement_reason: None,
        pid: None,
        workdir: None,
        limits: Limits::default(),
        limits_note: None,
        limits_missing: None,
        created_at: 0,
        started_at: None,
        boot_phases: Vec::new(),
        warnings: Vec::new(),
        delete_on_disconnect: false,
    }
}
