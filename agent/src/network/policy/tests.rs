//! Tables of who may go where.

use super::*;
use proptest::prelude::*;
use smalti_types::address::{Scope, scope};

fn role(name: &str) -> Role {
    Role::new(name).unwrap()
}

fn protected() -> Protected {
    Protected {
        hosts: vec!["10.0.0.5".parse().unwrap(), "127.0.0.1".parse().unwrap(), "203.0.113.7".parse().unwrap()],
        services: vec!["127.0.0.1:5050".parse().unwrap(), "10.0.0.9:5051".parse().unwrap()],
    }
}

/// Whether the default role may go to `host:port` at `address`.
fn may(policy: &str, endpoint: &str, address: &str) -> bool {
    let policy: Policy = policy.parse().unwrap();
    policy.check(&Role::default(), &endpoint.parse().unwrap(), address.parse().unwrap(), &protected()).is_ok()
}

fn only(rules: &[&str]) -> String {
    format!("[default]\nconnect = {rules:?}")
}

#[test]
fn without_a_word_only_public_addresses_are_reached() {
    for (endpoint, address, allowed) in [
        ("example.org:443", "93.184.215.14", true),
        ("8.8.8.8:53", "8.8.8.8", true),
        ("example.org:443", "10.0.0.1", false),
        ("example.org:443", "127.0.0.1", false),
        ("example.org:80", "169.254.169.254", false),
        ("example.org:80", "::ffff:169.254.169.254", false),
        ("example.org:80", "64:ff9b::a9fe:a9fe", false),
        ("[fd00:ec2::254]:80", "fd00:ec2::254", false),
        ("example.org:80", "0.0.0.0", false),
        ("example.org:80", "::", false),
        ("example.org:80", "203.0.113.7", false),
        ("example.org:80", "::1", false),
    ] {
        assert_eq!(may("", endpoint, address), allowed, "{endpoint} at {address}");
    }
}

#[test]
fn what_is_special_has_to_be_named() {
    for (rules, endpoint, address, allowed) in [
        (&["0.0.0.0/0:*", "[::/0]:*"][..], "8.8.8.8:53", "8.8.8.8", true),
        (&["0.0.0.0/0:*", "[::/0]:*"], "10.1.1.1:53", "10.1.1.1", false),
        (&["0.0.0.0/0:*", "[::/0]:*"], "127.0.0.1:9000", "127.0.0.1", false),
        (&["10.0.0.0/8:443"], "10.1.1.1:443", "10.1.1.1", true),
        (&["10.0.0.0/8:443"], "10.1.1.1:443", "::ffff:10.1.1.1", true),
        (&["10.0.0.0/8:443"], "10.1.1.1:80", "10.1.1.1", false),
        (&["10.0.0.0/8:443"], "8.8.8.8:443", "8.8.8.8", false),
        (&["10.0.0.0/8:*"], "10.0.0.5:22", "10.0.0.5", false),
        (&["10.0.0.5:*"], "10.0.0.5:22", "10.0.0.5", true),
        (&["10.0.0.9:*"], "10.0.0.9:5051", "10.0.0.9", false),
        (&["10.0.0.9:5051"], "10.0.0.9:5051", "10.0.0.9", true),
        (&["127.0.0.0/8:*"], "127.0.0.1:9000", "127.0.0.1", true),
        (&["127.0.0.0/8:*"], "127.0.0.1:5050", "127.0.0.1", false),
        (&["127.0.0.0/8:*"], "127.0.0.2:5050", "127.0.0.2", false),
        (&["127.0.0.1:*"], "127.0.0.1:5050", "127.0.0.1", false),
        (&["127.0.0.1:5050"], "127.0.0.1:5050", "127.0.0.1", true),
        (&["10.0.0.5:*"], "10.0.0.5:5050", "10.0.0.5", false),
        (&["[::1]:*"], "[::1]:5050", "::1", false),
        (&["169.254.0.0/16:*"], "169.254.7.7:80", "169.254.7.7", true),
        (&["169.254.0.0/16:*"], "169.254.169.254:80", "169.254.169.254", false),
        (&["169.254.169.254:80"], "169.254.169.254:80", "169.254.169.254", true),
        (&["db.internal:5432"], "db.internal:5432", "10.7.7.7", true),
        (&["db.internal:5432"], "other.internal:5432", "10.7.7.7", false),
        (&["db.internal:5432"], "db.internal:5433", "10.7.7.7", false),
        (&["db.internal:*"], "db.internal:80", "169.254.169.254", false),
        (&["db.internal:*"], "db.internal:80", "127.0.0.1", false),
        (&["db.internal:*"], "db.internal:80", "10.0.0.5", false),
        (&["fd00::/8", "x"][..0], "8.8.8.8:80", "8.8.8.8", false),
        (&["[fd00::/8]:80-90"], "[fd12::1]:85", "fd12::1", true),
        (&["[fd00::/8]:80-90"], "[fd12::1]:91", "fd12::1", false),
        (&["public"], "example.org:1", "1.1.1.1", true),
    ] {
        assert_eq!(may(&only(rules), endpoint, address), allowed, "{rules:?}: {endpoint} at {address}");
    }
}

#[test]
fn a_role_has_its_own_rules() {
    let policy: Policy = "[role.\"web\"]\nconnect = [\"10.0.0.0/8:443\"]\n[role.\"closed\"]\nconnect = []\n".parse().unwrap();
    let may = |name: &str, endpoint: &str| {
        let endpoint: Endpoint = endpoint.parse().unwrap();
        let address = endpoint.host.parse().unwrap();
        policy.check(&role(name), &endpoint, address, &protected()).is_ok()
    };
    assert!(may("web", "10.1.1.1:443") && !may("web", "8.8.8.8:443"), "its own instead of the default");
    assert!(!may("closed", "8.8.8.8:443"));
    assert!(may("other", "8.8.8.8:443") && !may("other", "10.1.1.1:443"));
    let denied = policy.check(&role("closed"), &"8.8.8.8:443".parse().unwrap(), "8.8.8.8".parse().unwrap(), &protected());
    assert!(denied.unwrap_err().to_string().contains("role `closed` may not connect to 8.8.8.8:443"));
}

#[test]
fn senseless_rules_are_refused_with_words() {
    for rule in [
        "",
        "*",
        "10.0.0.0/8",
        "10.0.0.0/33:80",
        "fd00::/8:80",
        "[10.0.0.1]:80",
        "h:0",
        "h:5-4",
        "h:",
        "[::ffff:10.0.0.1]:80",
        "a/8:80",
        "127.1:80",
        "h:80-",
        "user@h:80",
        "[64:ff9b::1]:80",
        "h:+80",
    ] {
        let error = only(&[rule]).parse::<Policy>().expect_err(rule).to_string();
        assert!(error.contains("[default]") && error.contains("is not a rule"), "{rule}: {error}");
    }
    assert!("[default]\nallow = []".parse::<Policy>().is_err(), "a word that is not known");
    assert!("[roles.x]\nconnect = []".parse::<Policy>().is_err());
}

proptest! {
    /// Whatever the address: a policy that names nothing special never lets one through.
    #[test]
    fn a_general_rule_is_one_for_public_addresses(six: std::net::Ipv6Addr, four: std::net::Ipv4Addr, port in 1_u16..) {
        let policy: Policy = only(&["public", "0.0.0.0/0:*", "[::/0]:*", "[2000::/3]:*"]).parse().unwrap();
        for address in [IpAddr::from(six), IpAddr::from(four), IpAddr::from(four.to_ipv6_mapped())] {
            let endpoint = Endpoint::new(&address.to_string(), port).unwrap();
            let allowed = policy.check(&Role::default(), &endpoint, address, &protected()).is_ok();
            prop_assert!(!allowed || scope(address) == Scope::Public);
        }
    }

    /// What is nobody's to dial is not, even if it is named.
    #[test]
    fn never_is_never(bits: u32, port in 1_u16..) {
        let address = IpAddr::from(std::net::Ipv4Addr::from_bits(bits | 0xe000_0000));
        let policy: Policy = only(&[&format!("{address}:{port}"), "0.0.0.0/0:*"]).parse().unwrap();
        let endpoint = Endpoint::new(&address.to_string(), port).unwrap();
        prop_assert!(policy.check(&Role::default(), &endpoint, address, &protected()).is_err());
    }
}
