//! Dominant-resource fairness as an ordered structure: which framework has the smallest dominant share.
//!
//! Owns the sums of used and offered resources per framework and per role, and their order: first the role with the
//! smallest share, within it the framework with the smallest. Only frameworks that want offers are in the order, so a
//! suppressed framework costs an allocation nothing. A change costs the logarithm of the number of frameworks.
//! Deliberately absent: weights and quota: the sharing work adds them here.

use crate::slab::FrameworkIx;
use crate::sum::{Share, Sum};
use smalti_types::{Resources, Role};
use std::collections::{BTreeMap, BTreeSet};

/// What one framework or role has.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    pub(crate) used: Sum,
    pub(crate) offered: Sum,
    pub(crate) share: Share,
}

#[derive(Debug)]
struct Member {
    role: Role,
    holding: Holding,
    eager: bool,
}

#[derive(Debug, Default)]
struct RoleEntry {
    holding: Holding,
    members: usize,
    /// Members that want offers, smallest share first.
    eager: BTreeSet<(Share, FrameworkIx)>,
}

/// Which column of a framework's holding changes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column {
    Used,
    Offered,
}

/// The order of frameworks.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    total: Sum,
    /// Totals changed: every share is to be computed anew before the next allocation.
    stale: bool,
    roles: BTreeMap<Role, RoleEntry>,
    members: BTreeMap<FrameworkIx, Member>,
    /// Roles with at least one eager member, smallest share first.
    order: BTreeSet<(Share, Role)>,
}

impl Shares {
    pub(crate) fn add_total(&mut self, part: &Resources) {
        self.total.add(part);
        self.stale = true;
    }

    pub(crate) fn sub_total(&mut self, part: &Resources) {
        self.total.sub(part);
        self.stale = true;
    }

    pub(crate) fn join(&mut self, fx: FrameworkIx, role: Role) {
        self.roles.entry(role.clone()).or_default().members += 1;
        self.members.insert(fx, Member { role, holding: Holding::default(), eager: false });
    }

    /// Forgets a framework that holds nothing any more.
    pub(crate) fn leave(&mut self, fx: FrameworkIx) {
        self.set_eager(fx, false);
        if let Some(member) = self.members.remove(&fx)
            && let Some(entry) = self.roles.get_mut(&member.role)
        {
            entry.members -= 1;
            if entry.members == 0 {
                self.roles.remove(&member.role);
            }
        }
    }

    /// Moves a framework with all that it holds to another role.
    pub(crate) fn change_role(&mut self, fx: FrameworkIx, role: &Role) {
        let Some(member) = self.members.get(&fx) else { return };
        if member.role == *role {
            return;
        }
        let eager = member.eager;
        self.set_eager(fx, false);
        let Some(mut member) = self.members.remove(&fx) else { return };
        if let Some(entry) = self.roles.get_mut(&member.role) {
            let before = entry.holding.share;
            entry.holding.used.sub_sum(&member.holding.used);
            entry.holding.offered.sub_sum(&member.holding.offered);
            entry.members -= 1;
            Self::reorder(&mut self.order, entry, &member.role, before, &self.total);
            if entry.members == 0 {
                self.roles.remove(&member.role);
            }
        }
        member.role = role.clone();
        member.eager = false;
        let entry = self.roles.entry(role.clone()).or_default();
        let before = entry.holding.share;
        entry.holding.used.add_sum(&member.holding.used);
        entry.holding.offered.add_sum(&member.holding.offered);
        entry.members += 1;
        Self::reorder(&mut self.order, entry, role, before, &self.total);
        self.members.insert(fx, member);
        self.set_eager(fx, eager);
    }

    /// Puts a framework into the order, or takes it out of it.
    pub(crate) fn set_eager(&mut self, fx: FrameworkIx, eager: bool) {
        let Some(member) = self.members.get_mut(&fx) else { return };
        if member.eager == eager {
            return;
        }
        member.eager = eager;
        let Some(entry) = self.roles.get_mut(&member.role) else { return };
        if eager {
            entry.eager.insert((member.holding.share, fx));
            self.order.insert((entry.holding.share, member.role.clone()));
        } else {
            entry.eager.remove(&(member.holding.share, fx));
            if entry.eager.is_empty() {
                self.order.remove(&(entry.holding.share, member.role.clone()));
            }
        }
    }

    pub(crate) fn add(&mut self, fx: FrameworkIx, column: Column, amount: &Resources) {
        self.change(fx, column, |sum| sum.add(amount));
    }

    pub(crate) fn sub(&mut self, fx: FrameworkIx, column: Column, amount: &Resources) {
        self.change(fx, column, |sum| sum.sub(amount));
    }

    /// Computes a role's share anew and moves the role to its place in the order.
    fn reorder(order: &mut BTreeSet<(Share, Role)>, entry: &mut RoleEntry, role: &Role, before: Share, total: &Sum) {
        entry.holding.share = entry.holding.used.dominant_share(&entry.holding.offered, total);
        if !entry.eager.is_empty() && before != entry.holding.share {
            order.remove(&(before, role.clone()));
            order.insert((entry.holding.share, role.clone()));
        }
    }

    fn change(&mut self, fx: FrameworkIx, column: Column, change: impl Fn(&mut Sum)) {
        let Some(member) = self.members.get_mut(&fx) else { return };
        let Some(entry) = self.roles.get_mut(&member.role) else { return };
        let before = (member.holding.share, entry.holding.share);
        for holding in [&mut member.holding, &mut entry.holding] {
            match column {
                Column::Used => change(&mut holding.used),
                Column::Offered => change(&mut holding.offered),
            }
        }
        member.holding.share = member.holding.used.dominant_share(&member.holding.offered, &self.total);
        if member.eager && before.0 != member.holding.share {
            entry.eager.remove(&(before.0, fx));
            entry.eager.insert((member.holding.share, fx));
        }
        Self::reorder(&mut self.order, entry, &member.role, before.1, &self.total);
    }

    /// Brings all shares up to date after totals changed. Called once per allocation, not once per agent that joined.
    pub(crate) fn refresh(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        self.order.clear();
        for entry in self.roles.values_mut() {
            entry.eager.clear();
            entry.holding.share = entry.holding.used.dominant_share(&entry.holding.offered, &self.total);
        }
        for (fx, member) in &mut self.members {
            member.holding.share = member.holding.used.dominant_share(&member.holding.offered, &self.total);
            let Some(entry) = self.roles.get_mut(&member.role) else { continue };
            if member.eager {
                entry.eager.insert((member.holding.share, *fx));
                self.order.insert((entry.holding.share, member.role.clone()));
            }
        }
    }

    /// Whether anybody wants offers.
    pub(crate) fn anybody_eager(&self) -> bool {
        !self.order.is_empty()
    }

    /// Frameworks that want offers, in the order in which they should get the next one.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = FrameworkIx> {
        self.order.iter().filter_map(|(_, role)| self.roles.get(role)).flat_map(|entry| entry.eager.iter().map(|(_, fx)| *fx))
    }

    pub(crate) fn of(&self, fx: FrameworkIx) -> Option<&Holding> {
        self.members.get(&fx).map(|m| &m.holding)
    }

    /// The share of a framework by today's totals, also between an agent's arrival and the next allocation.
    pub(crate) fn share_of(&self, fx: FrameworkIx) -> Share {
        self.of(fx).map(|h| h.used.dominant_share(&h.offered, &self.total)).unwrap_or_default()
    }

    pub(crate) fn is_eager(&self, fx: FrameworkIx) -> bool {
        self.members.get(&fx).is_some_and(|m| m.eager)
    }

    pub(crate) fn total(&self) -> &Sum {
        &self.total
    }
}
