use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How far an address reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Anybody's: the public internet.
    Public,
    /// This machine.
    Loopback,
    /// The network this machine is in.
    Private,
    /// Nothing a workflow has business with: metadata services, link-local, multicast, reserved,
    /// and every notation that hides another address.
    Special,
}

/// Metadata services outside the link-local range: Azure, Alibaba, AWS, GCP.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Where `ip` leads, after the IANA special-purpose address registries.
pub(super) fn reach(ip: IpAddr) -> Reach {
    match ip.to_canonical() {
        IpAddr::V4(ip) => reach_v4(ip),
        IpAddr::V6(ip) => reach_v6(ip),
    }
}

fn reach_v4(ip: Ipv4Addr) -> Reach {
    match ip.octets() {
        _ if METADATA_V4.contains(&ip) => Reach::Special,
        [127, ..] => Reach::Loopback,
        // RFC 1918, and the carriers' share of it (RFC 6598).
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Reach::Private,
        // "This network", link-local with the metadata services, protocol assignments, the retired
        // 6to4 relay, the three documentation blocks, benchmarks, multicast, reserved, broadcast.
        [0, ..] | [169, 254, ..] | [192, 0, 0, _] | [192, 0, 2, _] | [192, 88, 99, _] => Reach::Special,
        [198, 18..=19, ..] | [198, 51, 100, _] | [203, 0, 113, _] | [224..=255, ..] => Reach::Special,
        _ => Reach::Public,
    }
}

fn reach_v6(ip: Ipv6Addr) -> Reach {
    match ip.segments() {
        _ if METADATA_V6.contains(&ip) => Reach::Special,
        [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Loopback,
        // NAT64: how an IPv6-only network reaches the public IPv4 internet, and nothing else.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => match reach_v4(v4(high, low)) {
            Reach::Public => Reach::Public,
            _ => Reach::Special,
        },
        [0xfc00..=0xfdff, ..] => Reach::Private,
        // Protocol assignments with Teredo, ORCHID and benchmarks; documentation twice; 6to4.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x2002, ..] => Reach::Special,
        [0x2000..=0x3fff, ..] => Reach::Public,
        // Outside 2000::/3 nothing is globally reachable.
        _ => Reach::Special,
    }
}

fn v4(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Reach {
        reach(text.parse().unwrap())
    }

    #[test]
    fn the_public_internet_is_public() {
        for ip in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.1.1",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "203.0.112.1",
            "203.0.114.1",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
            "2001:200::1",
            "2a00::1",
            "2003::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert_eq!(of(ip), Reach::Public, "{ip}");
        }
    }

    #[test]
    fn this_machine_is_loopback() {
        for ip in ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(of(ip), Reach::Loopback, "{ip}");
        }
    }

    #[test]
    fn the_network_around_is_private() {
        for ip in [
            "10.0.0.0",
            "10.255.255.255",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "192.168.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "fc00::1",
            "fd12:3456::1",
            "fdff:ffff::1",
            "::ffff:10.0.0.1",
            "::ffff:100.64.0.1",
        ] {
            assert_eq!(of(ip), Reach::Private, "{ip}");
        }
    }

    #[test]
    fn everything_else_is_special() {
        for ip in [
            "0.0.0.0",
            "0.1.2.3",
            "169.254.0.1",
            "169.254.169.254",
            "169.254.170.2",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.1",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            // unspecified, IPv4-compatible, mapped
            "::",
            "::7f00:1",
            "::8.8.8.8",
            "::ffff:169.254.169.254",
            "::ffff:0.0.0.0",
            // IPv4-translated, NAT64 of what is not public, NAT64 for local use
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::8.8.8.8",
            "64:ff9b:0:0:0:1::1",
            // discard, Teredo, ORCHID, benchmarks, documentation, 6to4 of 127.0.0.1 and of 8.8.8.8
            "100::1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2001:10::1",
            "2001:20::1",
            "2001:2::1",
            "2001:db8::1",
            "3fff::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            // metadata, link-local, the retired site-local, multicast, segment routing, unassigned
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
            "5f00::1",
            "4000::1",
        ] {
            assert_eq!(of(ip), Reach::Special, "{ip}");
        }
    }

    proptest! {
        #[test]
        fn no_notation_reaches_further_than_the_address_in_it(bits: u32) {
            let plain = Ipv4Addr::from_bits(bits);
            prop_assert_eq!(reach(plain.to_ipv6_mapped().into()), reach(plain.into()));
            let [a, b, c, d] = plain.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            prop_assert_eq!(v4(high, low), plain);
            for hidden in [
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            ] {
                prop_assert!(reach(hidden.into()) != Reach::Public || reach(plain.into()) == Reach::Public);
            }
        }
    }
}
