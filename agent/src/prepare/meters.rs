//! How far the transfers under way are, for people who wait for them.
//!
//! Owns the numbers, by the places that are fetched from. Deliberately absent: who waits, and how often they are told.

use smalti_fetch::Location;
use smalti_types::Bytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One transfer.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) done: AtomicU64,
    /// 0: not known.
    pub(crate) total: AtomicU64,
    /// Nothing is under way here: another agent fetches it.
    pub(crate) waits: AtomicBool,
}

/// All transfers under way.
#[derive(Debug, Default)]
pub(crate) struct Meters(Arc<Mutex<HashMap<Location, Weak<Meter>>>>);

/// Shows a transfer as long as it lives.
pub(crate) struct Shown {
    meters: Arc<Mutex<HashMap<Location, Weak<Meter>>>>,
    locations: Vec<Location>,
}

impl Meters {
    /// Shows `meter` as that of these places.
    pub(crate) fn show(&self, locations: impl Iterator<Item = Location>, meter: &Arc<Meter>) -> Shown {
        let locations: Vec<Location> = locations.collect();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for location in &locations {
            all.insert(location.clone(), Arc::downgrade(meter));
        }
        Shown { meters: self.0.clone(), locations }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// How far somebody is who waits for these places: thousandths, and words. `None` while nothing of it is under way.
    pub(crate) fn read(&self, locations: &[Location]) -> Option<(u16, String)> {
        let meters: Vec<(&Location, Arc<Meter>)> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            locations.iter().filter_map(|l| Some((l, all.get(l)?.upgrade()?))).collect()
        };
        let (first, _) = meters.first()?;
        let sum = |of: fn(&Meter) -> &AtomicU64| meters.iter().map(|(_, m)| of(m).load(Ordering::Relaxed)).fold(0_u64, u64::saturating_add);
        let (done, total) = (sum(|m| &m.done), sum(|m| &m.total));
        let more = if meters.len() > 1 { format!(" and {} more", meters.len() - 1) } else { String::new() };
        if meters.iter().all(|(_, m)| m.waits.load(Ordering::Relaxed)) {
            return Some((0, format!("waiting for another agent that fetches {first}{more}")));
        }
        let known = meters.iter().all(|(_, m)| m.total.load(Ordering::Relaxed) > 0);
        Some(if known {
            let permille = u128::from(done) * 1_000 / u128::from(total.max(1));
            (u16::try_from(permille).unwrap_or(1_000).min(1_000), format!("fetching {first}{more}: {} of {}", Bytes(done), Bytes(total)))
        } else {
            (0, format!("fetching {first}{more}: {}", Bytes(done)))
        })
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let mut all = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        for location in &self.locations {
            all.remove(location);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_shows_as_long_as_it_lives() {
        let (meters, meter) = (Meters::default(), Arc::new(Meter::default()));
        let (place, other) = (Location::File("/x".into()), Location::File("/y".into()));
        let shown = meters.show([place.clone()].into_iter(), &meter);
        meter.done.store(512, Ordering::Relaxed);
        assert_eq!(meters.read(std::slice::from_ref(&place)).unwrap().0, 0);
        meter.total.store(1_024, Ordering::Relaxed);
        let (permille, words) = meters.read(&[other.clone(), place.clone()]).unwrap();
        assert!(permille == 500 && words.contains("file:///x") && words.contains("of 1KiB"), "{words}");
        assert_eq!(meters.read(&[other]), None);
        drop(shown);
        assert!(meters.is_empty() && meters.read(&[place]).is_none());
    }
}
