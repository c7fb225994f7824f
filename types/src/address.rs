//! What an address is: reachable from anywhere, private, this machine, … Pure.
//!
//! Owns the tables of address blocks (IANA's special-purpose registries, and the addresses at which clouds serve their metadata)
//! and the unwrapping of addresses that are another one in disguise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Kinds of addresses, from harmless to never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Reachable from anywhere.
    Public,
    /// Of somebody's own network.
    Private,
    /// Of the same wire.
    LinkLocal,
    /// This machine.
    Loopback,
    /// Where a cloud tells a machine its secrets.
    Metadata,
    /// No address of one machine, or one that could be any other: never dialled.
    Never,
}

/// A block of addresses: all that share the first `prefix` bits with `first`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its first address.
    pub first: IpAddr,
    /// How many bits its addresses share.
    pub prefix: u8,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Block {
    Block { first: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
}

const fn v6(a: u16, b: u16, c: u16, d: u16, prefix: u8) -> Block {
    Block { first: IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)), prefix }
}

const fn v6_host(a: u16, b: u16, last: u16) -> Block {
    Block { first: IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, last)), prefix: 128 }
}

/// The first block that an address is in says what it is.
const BLOCKS: &[(Block, Scope)] = &[
    // Amazon, Google, Azure and most others; Amazon's for containers; its name servers; Azure's; Alibaba's; Oracle's.
    (v4(169, 254, 169, 254, 32), Scope::Metadata),
    (v4(169, 254, 170, 2, 32), Scope::Metadata),
    (v4(169, 254, 170, 23, 32), Scope::Metadata),
    (v4(169, 254, 169, 253, 32), Scope::Metadata),
    (v4(168, 63, 129, 16, 32), Scope::Metadata),
    (v4(100, 100, 100, 200, 32), Scope::Metadata),
    (v4(192, 0, 0, 192, 32), Scope::Metadata),
    (v6_host(0xfd00, 0x0ec2, 0x254), Scope::Metadata),
    (v6_host(0xfd00, 0x0ec2, 0x23), Scope::Metadata),
    (v6_host(0xfd20, 0x00ce, 0x254), Scope::Metadata),
    // This network, multicast, reserved, broadcast.
    (v4(0, 0, 0, 0, 8), Scope::Never),
    (v4(224, 0, 0, 0, 3), Scope::Never),
    (v4(127, 0, 0, 0, 8), Scope::Loopback),
    (v4(169, 254, 0, 0, 16), Scope::LinkLocal),
    // Private use, carriers' own, protocol assignments, benchmarks.
    (v4(10, 0, 0, 0, 8), Scope::Private),
    (v4(172, 16, 0, 0, 12), Scope::Private),
    (v4(192, 168, 0, 0, 16), Scope::Private),
    (v4(100, 64, 0, 0, 10), Scope::Private),
    (v4(192, 0, 0, 0, 24), Scope::Private),
    (v4(198, 18, 0, 0, 15), Scope::Private),
    (v4(0, 0, 0, 0, 0), Scope::Public),
    (v6_host(0, 0, 1), Scope::Loopback),
    (v6(0xfe80, 0, 0, 0, 10), Scope::LinkLocal),
    (v6(0xfc00, 0, 0, 0, 7), Scope::Private),
    (v6(0xfec0, 0, 0, 0, 10), Scope::Private),
    // Tunnels whose other end is an address in disguise that cannot be told (Teredo, ORCHID).
    (v6(0x2001, 0, 0, 0, 23), Scope::Never),
    (v6(0x2000, 0, 0, 0, 3), Scope::Public),
    // Unspecified, IPv4-compatible, local NAT64, multicast, and what nobody has given out.
    (v6(0, 0, 0, 0, 0), Scope::Never),
];

impl Block {
    /// Whether `address`, which has to be in its own form, is in this block.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (mine, other, width) = match (self.first, address) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => (u128::from(mine.to_bits()), u128::from(other.to_bits()), 32),
            (IpAddr::V6(mine), IpAddr::V6(other)) => (mine.to_bits(), other.to_bits(), 128),
            _ => return false,
        };
        let rest = width - u32::from(self.prefix);
        mine.checked_shr(rest).unwrap_or(0) == other.checked_shr(rest).unwrap_or(0)
    }

    /// Whether it names one address.
    #[must_use]
    pub const fn is_host(&self) -> bool {
        match self.first {
            IpAddr::V4(_) => self.prefix == 32,
            IpAddr::V6(_) => self.prefix == 128,
        }
    }

    /// The kind of all its addresses but those that need a name of their own; `Public` for blocks that hold several kinds.
    #[must_use]
    pub fn scope(&self) -> Scope {
        let covering = BLOCKS.iter().find(|(block, _)| block.prefix <= self.prefix && block.contains(self.first));
        covering.map_or(Scope::Public, |(_, scope)| *scope)
    }
}

/// The address that one stands for: IPv4 written as IPv6, through a translator (NAT64) or a tunnel (6to4).
#[must_use]
pub fn effective(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    if let Some(four) = six.to_ipv4_mapped() {
        return four.into();
    }
    let embedded = |first: u16, second: u16| {
        let ([a, b], [c, d]) = (first.to_be_bytes(), second.to_be_bytes());
        IpAddr::from([a, b, c, d])
    };
    match six.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, first, second] => embedded(first, second),
        [0x2002, first, second, ..] => embedded(first, second),
        _ => address,
    }
}

/// What an address is, whatever it is written as.
#[must_use]
pub fn scope(address: IpAddr) -> Scope {
    let address = effective(address);
    BLOCKS.iter().find(|(block, _)| block.contains(address)).map_or(Scope::Never, |(_, scope)| *scope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_what_they_are_however_they_are_written() {
        let table = [
            (
                Scope::Public,
                &[
                    "8.8.8.8",
                    "1.1.1.1",
                    "172.15.255.255",
                    "172.32.0.0",
                    "2606:4700::1111",
                    "64:ff9b::808:808",
                    "2002:808:808::1",
                    "::ffff:8.8.8.8",
                ][..],
            ),
            (
                Scope::Private,
                &[
                    "10.1.2.3",
                    "172.16.0.1",
                    "172.31.255.255",
                    "192.168.1.1",
                    "100.64.0.1",
                    "198.19.0.1",
                    "fd12::1",
                    "fec0::1",
                    "::ffff:10.0.0.1",
                    "64:ff9b::a00:1",
                    "2002:a00:1::",
                ],
            ),
            (Scope::LinkLocal, &["169.254.1.1", "fe80::1", "::ffff:169.254.1.1"]),
            (Scope::Loopback, &["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1"]),
            (
                Scope::Metadata,
                &["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"],
            ),
            (
                Scope::Never,
                &[
                    "0.0.0.0",
                    "0.1.2.3",
                    "224.0.0.1",
                    "240.0.0.1",
                    "255.255.255.255",
                    "::",
                    "::127.0.0.1",
                    "ff02::1",
                    "2001::1",
                    "64:ff9b:1::1",
                    "::ffff:0.0.0.0",
                    "4000::1",
                ],
            ),
        ];
        for (expected, addresses) in table {
            for address in addresses {
                assert_eq!(scope(address.parse().unwrap()), expected, "{address}");
            }
        }
    }

    #[test]
    fn a_block_names_a_kind_only_if_it_holds_nothing_else() {
        let block = |text: &str, prefix| Block { first: text.parse().unwrap(), prefix };
        assert_eq!(block("10.0.0.0", 8).scope(), Scope::Private);
        assert_eq!(block("10.5.0.0", 16).scope(), Scope::Private);
        assert_eq!(block("127.0.0.1", 32).scope(), Scope::Loopback);
        assert_eq!(block("0.0.0.0", 0).scope(), Scope::Public);
        assert_eq!(block("8.0.0.0", 5).scope(), Scope::Public, "10.0.0.0/8 is only a part of it");
        assert_eq!(block("169.254.0.0", 16).scope(), Scope::LinkLocal);
        assert_eq!(block("169.254.169.254", 32).scope(), Scope::Metadata);
        assert_eq!(block("::1", 128).scope(), Scope::Loopback);
        assert_eq!(block("::", 0).scope(), Scope::Never);
    }

    proptest! {
        #[test]
        fn disguises_change_nothing(four: Ipv4Addr) {
            let bits = u128::from(four.to_bits());
            let mapped = IpAddr::from(four.to_ipv6_mapped());
            let translated = IpAddr::from(Ipv6Addr::from_bits((0x0064_ff9b_u128 << 96) | bits));
            let tunnelled = IpAddr::from(Ipv6Addr::from_bits((0x2002_u128 << 112) | (bits << 80) | 7));
            for disguise in [mapped, translated, tunnelled] {
                prop_assert_eq!(effective(disguise), IpAddr::from(four));
                prop_assert_eq!(scope(disguise), scope(four.into()));
            }
        }

        #[test]
        fn standard_and_own_tables_agree(four: Ipv4Addr, six: Ipv6Addr) {
            let scope4 = scope(four.into());
            prop_assert!(!four.is_loopback() || scope4 == Scope::Loopback);
            prop_assert!(!(four.is_multicast() || four.is_broadcast() || four.is_unspecified()) || scope4 == Scope::Never);
            prop_assert!(!four.is_private() || scope4 != Scope::Public);
            prop_assert!(!four.is_link_local() || scope4 >= Scope::LinkLocal);
            prop_assert!(!(six.is_multicast() || six.is_unspecified()) || scope(six.into()) == Scope::Never);
            prop_assert!(!(six.is_unique_local() || six.is_unicast_link_local()) || scope(six.into()) != Scope::Public);
        }

        #[test]
        fn a_block_holds_its_addresses(four: Ipv4Addr, prefix in 0_u8..=32) {
            let block = Block { first: four.into(), prefix };
            prop_assert!(block.contains(four.into()));
            prop_assert_eq!(block.is_host(), prefix == 32);
        }
    }
}
