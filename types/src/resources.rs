//! What an agent has and a task takes: cpus, memory, disk, ports and custom scalars, in fixed point.

use crate::amount::{Bytes, MilliCpus, MilliUnits};
use crate::ports::PortSet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// An amount of every kind of resource. The empty value is nothing of anything.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Processor time in thousandths of a core.
    pub cpus: MilliCpus,
    /// Memory in bytes.
    pub mem: Bytes,
    /// Disk in bytes.
    pub disk: Bytes,
    /// Ports on the agent's address.
    pub ports: PortSet,
    /// Other scalars by name (`gpus`, `licences`). Invariant: no entry is zero.
    #[serde(default)]
    pub custom: BTreeMap<Arc<str>, MilliUnits>,
}

/// Why resources cannot be used as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourcesError {
    /// A request of zero cpus.
    #[error("cpus must be more than zero")]
    ZeroCpus,
    /// A request below what the kernel can limit.
    #[error("cpus {0} is below the smallest request, 0.01")]
    CpusTooSmall(MilliCpus),
    /// A request of zero memory.
    #[error("mem must be more than zero")]
    ZeroMem,
    /// More is taken than there is.
    #[error("{name}: {wanted} wanted, {have} there")]
    NotEnough {
        /// Which resource.
        name: String,
        /// How much was asked for.
        wanted: String,
        /// How much there is.
        have: String,
    },
    /// A sum left the 64 bits of its type.
    #[error("{0}: the sum is too large")]
    Overflow(String),
    /// Two parts of one sum hold the same port.
    #[error("ports {0} are in both parts of a sum")]
    PortsOverlap(String),
}

impl Resources {
    /// Only cpus and memory.
    #[must_use]
    pub fn new(cpus: MilliCpus, mem: Bytes) -> Self {
        Self { cpus, mem, ..Self::default() }
    }

    /// Nothing of anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cpus.0 == 0 && self.mem.0 == 0 && self.disk.0 == 0 && self.ports.is_empty() && self.custom.is_empty()
    }

    /// Checks what a task or slot asks for: some cpu that the kernel can limit, some memory.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check_request(&self) -> Result<(), ResourcesError> {
        if self.cpus.0 == 0 {
            return Err(ResourcesError::ZeroCpus);
        }
        if self.cpus < MilliCpus::SMALLEST {
            return Err(ResourcesError::CpusTooSmall(self.cpus));
        }
        if self.mem.0 == 0 {
            return Err(ResourcesError::ZeroMem);
        }
        Ok(())
    }

    /// Amount of a custom scalar; zero when it is not there.
    #[must_use]
    pub fn custom(&self, name: &str) -> MilliUnits {
        self.custom.get(name).copied().unwrap_or_default()
    }

    /// Sets a custom scalar; zero removes it.
    pub fn set_custom(&mut self, name: &str, amount: MilliUnits) {
        if amount.0 == 0 {
            self.custom.remove(name);
        } else {
            self.custom.insert(name.into(), amount);
        }
    }

    /// Whether `wanted` fits into this, in every resource.
    #[must_use]
    pub fn contains(&self, wanted: &Self) -> bool {
        self.first_lack(wanted).is_none()
    }

    /// The first resource of which `wanted` has more than this, as an error that a person understands.
    #[must_use]
    pub fn first_lack(&self, wanted: &Self) -> Option<ResourcesError> {
        let lack = |name: &str, wanted: &dyn fmt::Display, have: &dyn fmt::Display| {
            Some(ResourcesError::NotEnough { name: name.into(), wanted: wanted.to_string(), have: have.to_string() })
        };
        if wanted.cpus > self.cpus {
            return lack("cpus", &wanted.cpus, &self.cpus);
        }
        if wanted.mem > self.mem {
            return lack("mem", &wanted.mem, &self.mem);
        }
        if wanted.disk > self.disk {
            return lack("disk", &wanted.disk, &self.disk);
        }
        if !self.ports.contains(&wanted.ports) {
            return lack("ports", &wanted.ports, &self.ports);
        }
        for (name, amount) in &wanted.custom {
            if *amount > self.custom(name) {
                return lack(name, amount, &self.custom(name));
            }
        }
        None
    }

    /// The sum of both.
    ///
    /// # Errors
    /// On overflow, and when both hold the same port: nothing may be counted twice.
    pub fn checked_add(&self, other: &Self) -> Result<Self, ResourcesError> {
        let over = |name: &str| ResourcesError::Overflow(name.into());
        if !self.ports.is_disjoint(&other.ports) {
            return Err(ResourcesError::PortsOverlap(other.ports.to_string()));
        }
        let mut custom = self.custom.clone();
        for (name, amount) in &other.custom {
            let slot = custom.entry(name.clone()).or_default();
            slot.0 = slot.0.checked_add(amount.0).ok_or_else(|| over(name))?;
        }
        Ok(Self {
            cpus: MilliCpus(self.cpus.0.checked_add(other.cpus.0).ok_or_else(|| over("cpus"))?),
            mem: Bytes(self.mem.0.checked_add(other.mem.0).ok_or_else(|| over("mem"))?),
            disk: Bytes(self.disk.0.checked_add(other.disk.0).ok_or_else(|| over("disk"))?),
            ports: self.ports.union(&other.ports),
            custom,
        })
    }

    /// This less `other`.
    ///
    /// # Errors
    /// [`ResourcesError::NotEnough`] names the first resource of which there is too little.
    pub fn checked_sub(&self, other: &Self) -> Result<Self, ResourcesError> {
        if let Some(lack) = self.first_lack(other) {
            return Err(lack);
        }
        let mut custom = self.custom.clone();
        for (name, amount) in &other.custom {
            let left = self.custom(name).0 - amount.0;
            if left == 0 {
                custom.remove(name);
            } else {
                custom.insert(name.clone(), MilliUnits(left));
            }
        }
        Ok(Self {
            cpus: MilliCpus(self.cpus.0 - other.cpus.0),
            mem: Bytes(self.mem.0 - other.mem.0),
            disk: Bytes(self.disk.0 - other.disk.0),
            ports: self.ports.difference(&other.ports),
            custom,
        })
    }

    /// `n` times the scalars of this. Ports cannot be multiplied.
    ///
    /// # Errors
    /// On overflow, and when there are ports and `n` is above 1.
    pub fn checked_mul(&self, n: u32) -> Result<Self, ResourcesError> {
        let over = |name: &str| ResourcesError::Overflow(name.into());
        if n > 1 && !self.ports.is_empty() {
            return Err(ResourcesError::PortsOverlap(self.ports.to_string()));
        }
        if n == 0 {
            return Ok(Self::default());
        }
        let k = u64::from(n);
        let custom = self
            .custom
            .iter()
            .map(|(name, amount)| Ok((name.clone(), MilliUnits(amount.0.checked_mul(k).ok_or_else(|| over(name))?))))
            .collect::<Result<_, ResourcesError>>()?;
        Ok(Self {
            cpus: MilliCpus(self.cpus.0.checked_mul(k).ok_or_else(|| over("cpus"))?),
            mem: Bytes(self.mem.0.checked_mul(k).ok_or_else(|| over("mem"))?),
            disk: Bytes(self.disk.0.checked_mul(k).ok_or_else(|| over("disk"))?),
            ports: self.ports.clone(),
            custom,
        })
    }

    /// How many times `part` (without ports) fits into this, at most `limit`.
    #[must_use]
    pub fn times(&self, part: &Self, limit: u32) -> u32 {
        let mut n = u64::from(limit);
        let mut bound = |have: u64, want: u64| {
            if let Some(k) = have.checked_div(want) {
                n = n.min(k);
            }
        };
        bound(self.cpus.0, part.cpus.0);
        bound(self.mem.0, part.mem.0);
        bound(self.disk.0, part.disk.0);
        for (name, amount) in &part.custom {
            bound(self.custom(name).0, amount.0);
        }
        u32::try_from(n).unwrap_or(limit)
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpus {}, mem {}", self.cpus, self.mem)?;
        if self.disk.0 > 0 {
            write!(f, ", disk {}", self.disk)?;
        }
        if !self.ports.is_empty() {
            write!(f, ", ports {}", self.ports)?;
        }
        for (name, amount) in &self.custom {
            write!(f, ", {name} {amount}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::PortRange;
    use proptest::prelude::*;

    fn any_resources() -> impl Strategy<Value = Resources> {
        (0_u64..10_000, 0_u64..1_000_000, 0_u64..1_000_000, proptest::collection::vec((1_u16..100, 0_u16..5), 0..4), 0_u64..50).prop_map(
            |(cpus, mem, disk, ports, gpus)| {
                let ports = ports.into_iter().map(|(first, n)| PortRange { first, last: first + n }).collect();
                let mut r = Resources { cpus: MilliCpus(cpus), mem: Bytes(mem), disk: Bytes(disk), ports, ..Resources::default() };
                r.set_custom("gpus", MilliUnits(gpus));
                r
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_added_can_be_taken_away_again(a in any_resources(), b in any_resources()) {
            if let Ok(sum) = a.checked_add(&b) {
                prop_assert!(sum.contains(&a) && sum.contains(&b));
                prop_assert_eq!(sum.checked_sub(&b).unwrap(), a);
            } else {
                prop_assert!(!a.ports.is_disjoint(&b.ports));
            }
        }

        #[test]
        fn subtraction_never_goes_below_zero(a in any_resources(), b in any_resources()) {
            prop_assert_eq!(a.checked_sub(&b).is_ok(), a.contains(&b));
        }

        #[test]
        fn times_is_the_greatest_multiple_that_fits(a in any_resources(), mut part in any_resources()) {
            part.ports = PortSet::default();
            prop_assume!(part.cpus.0 > 0);
            let n = a.times(&part, 1000);
            prop_assert!(a.contains(&part.checked_mul(n).unwrap()));
            prop_assert!(n == 1000 || !a.contains(&part.checked_mul(n + 1).unwrap()));
        }
    }

    #[test]
    fn requests_below_the_smallest_are_refused() {
        let req = |c, m| Resources::new(MilliCpus(c), Bytes(m)).check_request();
        assert_eq!(req(0, 1), Err(ResourcesError::ZeroCpus));
        assert_eq!(req(9, 1), Err(ResourcesError::CpusTooSmall(MilliCpus(9))));
        assert_eq!(req(10, 0), Err(ResourcesError::ZeroMem));
        assert_eq!(req(10, 1), Ok(()));
    }
}
