//! Limits of a VM as requests and views carry them; what is left out is not limited.

use serde::{Deserialize, Serialize};

use crate::model::limits::Limits as Model;
use crate::model::units::Bytes;

/// See `model::limits`; rates in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Requests per second, of each disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_iops: Option<u32>,
    /// Of each disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bandwidth: Option<u64>,
    /// Each way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_bandwidth: Option<u64>,
    /// 1 to 10000; others have 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u16>,
}

impl From<Model> for Limits {
    fn from(limits: Model) -> Limits {
        let rate = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0);
        Limits {
            disk_iops: limits.disk_iops,
            disk_bandwidth: rate(limits.disk_bandwidth),
            net_bandwidth: rate(limits.net_bandwidth),
            cpu_weight: limits.cpu_weight,
        }
    }
}

impl From<Limits> for Model {
    fn from(wire: Limits) -> Model {
        Model {
            disk_bandwidth: wire.disk_bandwidth.map(Bytes),
            net_bandwidth: wire.net_bandwidth.map(Bytes),
            disk_iops: wire.disk_iops,
            cpu_weight: wire.cpu_weight,
        }
    }
}
