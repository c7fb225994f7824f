//! Resources: `{cpus, mem, disk, ports: [[first, last]], …}`, custom scalars beside them under their own names.

use serde::Serialize;
use smalti_proto::v1;
use smalti_types::{Bytes, MilliCpus, MilliUnits};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ResourcesView {
    /// Cores.
    pub(crate) cpus: f64,
    /// Bytes.
    pub(crate) mem: u64,
    /// Bytes.
    pub(crate) disk: u64,
    /// Inclusive ranges.
    pub(crate) ports: Vec<[u32; 2]>,
    /// Custom scalars in their own units.
    #[serde(flatten)]
    pub(crate) custom: BTreeMap<String, f64>,
}

impl ResourcesView {
    /// Absent resources are none.
    pub(crate) fn new(resources: Option<&v1::Resources>) -> Self {
        let nothing = v1::Resources::default();
        let r = resources.unwrap_or(&nothing);
        Self {
            cpus: MilliCpus(r.milli_cpus).to_f64(),
            mem: r.mem_bytes,
            disk: r.disk_bytes,
            ports: r.ports.iter().map(|p| [p.first, p.last]).collect(),
            custom: r
                .custom_milli
                .iter()
                // A custom resource cannot take the place of a built-in one.
                .filter(|(name, _)| !matches!(name.as_str(), "cpus" | "mem" | "disk" | "ports"))
                .map(|(name, milli)| (name.clone(), MilliUnits(*milli).to_f64()))
                .collect(),
        }
    }

    /// How many ports.
    pub(crate) fn port_count(&self) -> u64 {
        self.ports.iter().map(|[first, last]| u64::from(last.saturating_sub(*first)) + 1).sum()
    }

    /// Size for people.
    pub(crate) fn mem_text(&self) -> String {
        Bytes(self.mem).to_string()
    }

    /// Everything that is not zero, in one cell.
    pub(crate) fn brief(&self) -> String {
        let mut parts = vec![format!("cpus {}", self.cpus), format!("mem {}", Bytes(self.mem))];
        if self.disk > 0 {
            parts.push(format!("disk {}", Bytes(self.disk)));
        }
        if !self.ports.is_empty() {
            let ranges = self.ports.iter().map(|[a, b]| if a == b { a.to_string() } else { format!("{a}-{b}") });
            parts.push(format!("ports {}", ranges.collect::<Vec<_>>().join(",")));
        }
        parts.extend(self.custom.iter().map(|(name, amount)| format!("{name} {amount}")));
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_shape_is_the_promised_one() {
        let r = v1::Resources {
            milli_cpus: 1500,
            mem_bytes: 1 << 30,
            disk_bytes: 0,
            ports: vec![v1::PortRange { first: 31000, last: 31999 }],
            custom_milli: [("gpus".to_owned(), 2000), ("mem".to_owned(), 1)].into(),
        };
        let view = ResourcesView::new(Some(&r));
        assert_eq!(
            serde_json::to_value(&view).unwrap(),
            json!({"cpus": 1.5, "mem": 1_073_741_824, "disk": 0, "ports": [[31000, 31999]], "gpus": 2.0})
        );
        assert_eq!(view.port_count(), 1000);
        assert_eq!(view.brief(), "cpus 1.5, mem 1GiB, ports 31000-31999, gpus 2");
        let none = serde_json::to_value(ResourcesView::new(None)).unwrap();
        assert_eq!(none, json!({"cpus": 0.0, "mem": 0, "disk": 0, "ports": []}));
    }
}
