//! What the options of `vm run` and `vm create` mean together: a [`NewVm`] with every
//! value explicit. Pure but for the configuration and the machine, which are given.

use super::values::{DiskSize, EnvPair, GuestDirectory, MemorySize, Vcpu, environment};
use crate::config::Config;
use crate::config::sizes::{Machine, Sizes};
use crate::failure::Failure;
use crate::model::ids::{ImageName, KernelName, VmName};
use crate::model::limits::Limits;
use crate::model::net::{NetRequest, PortForward};
use crate::model::vm::{InitMode, RootModeRequest, VmmRequest};
use crate::proto::request::{GitIdentity, NewVm};

/// The options that both commands have.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// `--name`
    pub name: Option<VmName>,
    /// `--image`
    pub image: Option<ImageName>,
    /// `--kernel`
    pub kernel: Option<KernelName>,
    /// `--vcpu`
    pub vcpu: Option<Vcpu>,
    /// `--memory`
    pub memory: Option<MemorySize>,
    /// `--disk-size`
    pub disk_size: Option<DiskSize>,
    /// `--root-size`
    pub root_size: Option<DiskSize>,
    /// `--root-mode`
    pub root_mode: Option<RootModeRequest>,
    /// `--net`
    pub net: Option<NetRequest>,
    /// `--nat`
    pub nat: bool,
    /// `--publish`
    pub publish: Vec<PortForward>,
    /// `--env`
    pub env: Vec<EnvPair>,
    /// `--workdir`
    pub workdir: Option<GuestDirectory>,
    /// `--init`
    pub init: Option<InitMode>,
    /// `--vmm`
    pub vmm: Option<VmmRequest>,
    /// `--disk-iops`, `--disk-bandwidth`, `--net-bandwidth`, `--cpu-weight`
    pub limits: Limits,
}

impl Wanted {
    /// The VM to ask for. `repository` is where the guest will have one;
    /// `variable` reads this process's environment.
    ///
    /// # Errors
    /// Options that contradict each other.
    pub fn resolve(
        self,
        config: &Config,
        machine: Machine,
        repository: Option<&str>,
        identity: Option<GitIdentity>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<NewVm, Failure> {
        let net = self.network(config)?;
        self.check_ports(net)?;
        let limits = self.limits(config, net)?;
        let sizes = Sizes::resolve(config, machine);
        let workdir = self.workdir.map(|GuestDirectory(directory)| directory);
        Ok(NewVm {
            name: self.name,
            image: self.image.unwrap_or_else(|| config.default_image()),
            kernel: self.kernel.unwrap_or_else(|| config.default_kernel()),
            vcpu: self.vcpu.map_or(sizes.vcpu, |Vcpu(count)| count),
            memory: self.memory.map_or(sizes.memory, |MemorySize(size)| size),
            work_disk: self.disk_size.map_or(sizes.disk, |DiskSize(size)| size),
            root_disk: self.root_size.map_or(sizes.root, |DiskSize(size)| size),
            root_mode: self.root_mode.unwrap_or_else(|| config.root_mode()),
            net,
            publish: self.publish,
            init: self.init.unwrap_or(InitMode::Auto),
            vmm: self.vmm.unwrap_or(VmmRequest::Auto),
            env: environment(&self.env, variable),
            workdir: workdir.or_else(|| repository.map(str::to_owned)),
            limits: limits.into(),
            git_identity: identity,
        })
    }

    fn network(&self, config: &Config) -> Result<NetRequest, Failure> {
        match (self.net, self.nat) {
            (None | Some(NetRequest::Nat), true) => Ok(NetRequest::Nat),
            (Some(other), true) => Err(Failure::usage(format!(
                "`--nat` and `--net {other}` exclude each other"
            ))
            .hint("`--nat` is short for `--net nat`.")),
            (Some(net), false) => Ok(net),
            (None, false) if config.nat() => Ok(NetRequest::Nat),
            (None, false) => Ok(NetRequest::Auto),
        }
    }

    /// What the options say, else the configuration. Without a network there is nothing to
    /// limit: only who asks for it here is told.
    fn limits(&self, config: &Config, net: NetRequest) -> Result<Limits, Failure> {
        if net == NetRequest::None && self.limits.net_bandwidth.is_some() {
            let what = "`--net-bandwidth` needs a network, and `--net none` gives none";
            return Err(Failure::usage(what).hint("Leave out one of them."));
        }
        let usual = config.limits();
        let has_net = net != NetRequest::None;
        Ok(Limits {
            disk_iops: self.limits.disk_iops.or(usual.disk_iops),
            disk_bandwidth: self.limits.disk_bandwidth.or(usual.disk_bandwidth),
            net_bandwidth: self
                .limits
                .net_bandwidth
                .or(usual.net_bandwidth.filter(|_| has_net)),
            cpu_weight: self.limits.cpu_weight.or(usual.cpu_weight),
        })
    }

    fn check_ports(&self, net: NetRequest) -> Result<(), Failure> {
        if net == NetRequest::None && !self.publish.is_empty() {
            return Err(
                Failure::usage("`--publish` needs a network, and `--net none` gives none")
                    .hint("Leave out one of them."),
            );
        }
        let mut earlier = self.publish.iter().enumerate();
        let twice = earlier.find(|(at, port)| {
            let before = &self.publish[..*at];
            before.iter().any(|other| other.collides(**port))
        });
        match twice {
            None => Ok(()),
            Some((_, port)) => {
                let what = format!("port {} of the host is published twice", port.host);
                Err(Failure::usage(what).hint("Give each `--publish` a host port of its own."))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::units::Bytes;
    use std::path::Path;

    const MACHINE: Machine = Machine {
        cpus: 8,
        memory: Bytes::gib(16),
    };

    fn resolve(wanted: Wanted, config: &str) -> Result<NewVm, Failure> {
        let config = Config::parse(config, Path::new("/c")).unwrap();
        wanted.resolve(&config, MACHINE, Some("/root/repo"), None, |_| None)
    }

    #[test]
    fn nothing_said_gives_the_defaults_of_machine_and_program() {
        let vm = resolve(Wanted::default(), "").unwrap();
        assert_eq!(vm.image.as_str(), "debian-bookworm");
        assert_eq!((vm.vcpu, vm.memory), (2, Bytes::gib(2)));
        assert_eq!(vm.net, NetRequest::Auto);
        assert_eq!(vm.workdir.as_deref(), Some("/root/repo"));
    }

    #[test]
    fn options_win_over_the_configuration() {
        let wanted = Wanted {
            vcpu: Some(Vcpu(1)),
            net: Some(NetRequest::None),
            workdir: Some(GuestDirectory("/tmp".to_owned())),
            ..Wanted::default()
        };
        let vm = resolve(
            wanted,
            "[vm_defaults]\nvcpu = 3\nnat = true\nmemory = \"1G\"\nroot_mode = \"reflink\"\n",
        )
        .unwrap();
        assert_eq!(vm.root_mode, RootModeRequest::Reflink);
        assert_eq!((vm.vcpu, vm.memory), (1, Bytes::gib(1)));
        assert_eq!(vm.net, NetRequest::None);
        assert_eq!(vm.workdir.as_deref(), Some("/tmp"));
    }

    #[test]
    fn limits_come_from_the_options_then_from_the_configuration() {
        let config = "[vm_defaults]\ndisk_iops = 300\nnet_bandwidth = \"2M\"\ncpu_weight = 50\n";
        let weight = |net| Wanted {
            limits: Limits {
                cpu_weight: Some(400),
                ..Limits::default()
            },
            net,
            ..Wanted::default()
        };
        let vm = resolve(weight(None), config).unwrap();
        assert_eq!(vm.limits.disk_iops, Some(300));
        assert_eq!(vm.limits.net_bandwidth, Some(2 << 20));
        assert_eq!(vm.limits.cpu_weight, Some(400));
        let alone = resolve(weight(Some(NetRequest::None)), config).unwrap();
        assert_eq!(alone.limits.net_bandwidth, None);
    }

    #[test]
    fn nat_comes_from_the_option_or_the_configuration() {
        let nat = Wanted {
            nat: true,
            ..Wanted::default()
        };
        assert_eq!(resolve(nat, "").unwrap().net, NetRequest::Nat);
        let config = "vm_defaults.nat = true";
        assert_eq!(
            resolve(Wanted::default(), config).unwrap().net,
            NetRequest::Nat
        );
    }

    #[test]
    fn contradictions_are_usage_errors() {
        let both = Wanted {
            nat: true,
            net: Some(NetRequest::User),
            ..Wanted::default()
        };
        assert_eq!(resolve(both, "").unwrap_err().kind.exit_status(), 2);
        let ports = |net, publish: &[&str]| Wanted {
            net,
            publish: publish.iter().map(|port| port.parse().unwrap()).collect(),
            ..Wanted::default()
        };
        assert!(resolve(ports(Some(NetRequest::None), &["80"]), "").is_err());
        assert!(resolve(ports(None, &["80:1", "80:2"]), "").is_err());
        assert!(resolve(ports(None, &["80:1", "0.0.0.0:80:2"]), "").is_err());
        assert!(resolve(ports(None, &["80:1", "81:1"]), "").is_ok());
        assert!(resolve(ports(None, &["80:1", "80:1/udp"]), "").is_ok());
    }
}
