//! The only unsafe code: kernel interfaces that rustix does not cover. Safe functions
//! out, owned or borrowed descriptors in; imports nothing of ours.

#[allow(unsafe_code)]
pub mod birth;
#[allow(unsafe_code)]
pub mod closed_output;
#[allow(unsafe_code)]
pub mod descriptors;
#[allow(unsafe_code)]
pub mod dm;
#[allow(unsafe_code)]
pub mod entropy;
#[allow(unsafe_code)]
pub mod ext4;
#[allow(unsafe_code)]
pub mod fiemap;
#[allow(unsafe_code)]
pub mod kvm;
#[allow(unsafe_code)]
pub mod loop_device;
#[allow(unsafe_code)]
pub mod mounts;
#[allow(unsafe_code)]
pub mod net_namespace;
pub mod netlink;
#[allow(unsafe_code)]
pub mod port;
#[allow(unsafe_code)]
pub mod session;
#[allow(unsafe_code)]
pub mod signals;
#[allow(unsafe_code)]
pub mod tsc;
#[allow(unsafe_code)]
pub mod tun;
#[allow(unsafe_code)]
pub mod vsock;
