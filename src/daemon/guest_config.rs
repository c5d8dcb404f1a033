//! What a guest is told when it boots, made from its VM's record. Pure: time and
//! randomness come in.

use sha2::{Digest, Sha256};

use crate::model::ids::VmId;
use crate::model::net::{Lease, Mac, NetMode};
use crate::model::vm::VmSpec;
use crate::plan::record::GitIdentity;
use crate::proto::guest::{GuestConfig, GuestFile, Interface};

/// What changes from boot to boot.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The host's clock, nanoseconds since the epoch.
    pub now_ns: u64,
    /// Fresh random bytes for the guest's pool.
    pub seed: [u8; 32],
    /// Fresh random bytes for the guest to prove itself with.
    pub token: [u8; 16],
}

/// The configuration of a guest that boots now.
pub fn guest_config(
    vm: VmId,
    spec: &VmSpec,
    lease: Option<Lease>,
    identity: Option<&GitIdentity>,
    moment: &Moment,
) -> GuestConfig {
    GuestConfig {
        hostname: spec.name.to_string(),
        host_time_ns: moment.now_ns,
        init: spec.init.to_string(),
        interface: interface(vm, spec.net, lease),
        files: identity.map(git_config).into_iter().collect(),
        env: spec.env.clone(),
        workdir: spec.workdir.clone(),
        entrypoint: Vec::new(),
        seed: hex(&moment.seed),
        machine_id: machine_id(vm),
        token: hex(&moment.token),
    }
}

/// The guest's end of its network. QEMU's user-mode network has fixed addresses
/// (qemu-system(1), `-netdev user`): guest .15, gateway .2, resolver .3.
fn interface(vm: VmId, net: NetMode, lease: Option<Lease>) -> Option<Interface> {
    let mac = Mac::of(vm).to_string();
    match (net, lease) {
        (NetMode::None, _) | (NetMode::Isolated | NetMode::Nat, None) => None,
        (NetMode::User, _) => Some(Interface {
            mac,
            address: "10.0.2.15".to_owned(),
            prefix: 24,
            gateway: Some("10.0.2.2".to_owned()),
            resolvers: vec!["10.0.2.3".to_owned()],
        }),
        (NetMode::Isolated | NetMode::Nat, Some(lease)) => Some(Interface {
            mac,
            address: lease.address.to_string(),
            prefix: lease.subnet.prefix(),
            gateway: Some(lease.subnet.gateway().to_string()),
            resolvers: vec![lease.subnet.gateway().to_string()],
        }),
    }
}

fn git_config(identity: &GitIdentity) -> GuestFile {
    GuestFile {
        path: "/root/.gitconfig".to_owned(),
        mode: 0o644,
        content: format!(
            "[user]\n\tname = {}\n\temail = {}\n",
            git_value(&identity.name),
            git_value(&identity.email)
        ),
    }
}

/// A value of git-config(1): quoted, with backslash, quote and line break escaped.
fn git_value(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("\"{escaped}\"")
}

/// A VM's own machine-id(5): the same at every boot, different for every VM.
fn machine_id(vm: VmId) -> String {
    let digest = Sha256::digest(format!("banger machine {vm}"));
    hex(&digest[..16])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::units::Bytes;
    use crate::model::vm::{ImageRef, InitMode, KernelRef, VmmRequest};

    fn spec(net: NetMode) -> VmSpec {
        VmSpec {
            name: "dev".parse().unwrap(),
            image: ImageRef {
                name: "i".parse().unwrap(),
                content: "00".parse().unwrap(),
            },
            kernel: KernelRef {
                name: "k".parse().unwrap(),
                content: "00".parse().unwrap(),
            },
            vcpu: 1,
            memory: Bytes::mib(256),
            memory_target: None,
            work_disk: Bytes::gib(1),
            root_disk: Bytes::gib(1),
            root_mode: crate::model::vm::RootMode::Overlay,
            net,
            publish: Vec::new(),
            init: InitMode::Auto,
            vmm: VmmRequest::Auto,
            env: vec![("A".to_owned(), "b".to_owned())],
            workdir: None,
            limits: crate::model::limits::Limits::default(),
        }
    }

    fn config(net: NetMode, lease: Option<Lease>, identity: Option<&GitIdentity>) -> GuestConfig {
        let moment = Moment {
            now_ns: 7,
            seed: [0xab; 32],
            token: [0xcd; 16],
        };
        guest_config(VmId::from_bits(1), &spec(net), lease, identity, &moment)
    }

    #[test]
    fn a_leased_address_comes_with_gateway_and_resolver_on_the_bridge() {
        let lease = Lease {
            address: [172, 30, 0, 9].into(),
            subnet: "172.30.0.0/16".parse().unwrap(),
        };
        let interface = config(NetMode::Isolated, Some(lease), None)
            .interface
            .unwrap();
        assert_eq!(interface.address, "172.30.0.9");
        assert_eq!(interface.prefix, 16);
        assert_eq!(interface.gateway.as_deref(), Some("172.30.0.1"));
        assert_eq!(interface.resolvers, ["172.30.0.1"]);
    }

    #[test]
    fn no_network_means_no_interface() {
        assert_eq!(config(NetMode::None, None, None).interface, None);
    }

    #[test]
    fn a_git_identity_with_quotes_and_line_breaks_stays_one_value() {
        let identity = GitIdentity {
            name: "A \"B\"\n[core]".to_owned(),
            email: "a@b".to_owned(),
        };
        let files = config(NetMode::None, None, Some(&identity)).files;
        assert_eq!(
            files[0].content,
            "[user]\n\tname = \"A \\\"B\\\"\\n[core]\"\n\temail = \"a@b\"\n"
        );
    }

    #[test]
    fn machine_ids_are_stable_and_distinct() {
        assert_eq!(
            machine_id(VmId::from_bits(1)),
            machine_id(VmId::from_bits(1))
        );
        assert_ne!(
            machine_id(VmId::from_bits(1)),
            machine_id(VmId::from_bits(2))
        );
        assert_eq!(machine_id(VmId::from_bits(1)).len(), 32);
    }
}
