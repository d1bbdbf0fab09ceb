use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

use async_trait::async_trait;
use reqwest::Url;

use super::address::{Reach, reach};
use crate::kernel::{Result, TenantId};

/// Where a tenant's requests may go besides the public internet. A port: the tenant's settings answer.
#[async_trait]
pub trait AllowList: Send + Sync + 'static {
    /// The tenant's entries: a network (`10.1.0.0/16`, `fd12::/32`), an address, or a host name.
    /// A host name admits that host in the private network or on this machine; metadata services and
    /// other special addresses must be named as addresses.
    ///
    /// # Errors
    /// When the settings cannot be read.
    async fn allowed(&self, tenant: TenantId) -> Result<Vec<String>>;
}

/// What one tenant may reach. Equal rules may share connections, different rules never do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rules {
    loopback: bool,
    networks: BTreeSet<Network>,
    hosts: BTreeSet<String>,
}

impl Rules {
    /// An entry that cannot be read admits nothing.
    pub(super) fn new(loopback: bool, entries: &[String]) -> Self {
        let mut rules = Self { loopback, ..Self::default() };
        for entry in entries {
            match entry.parse() {
                Ok(Entry::Network(network)) => drop(rules.networks.insert(network)),
                Ok(Entry::Host(host)) => drop(rules.hosts.insert(host)),
                Err(Unreadable) => tracing::warn!(entry, "an allow-list entry is no network, address or host name"),
            }
        }
        rules
    }

    /// No limits.
    pub(super) fn anywhere() -> Self {
        Self::new(true, &["0.0.0.0/0".to_owned(), "::/0".to_owned()])
    }

    /// Whether a request to `host` may go to `ip`.
    pub(super) fn permit(&self, host: &str, ip: IpAddr) -> bool {
        let by_name = || self.hosts.contains(plain(host).as_str());
        let allowed = match reach(ip) {
            Reach::Public => true,
            Reach::Loopback => self.loopback || by_name(),
            Reach::Private => by_name(),
            Reach::Special => false,
        };
        allowed || self.networks.iter().any(|network| network.contains(ip.to_canonical()))
    }
}

/// A host name without the root's dot, in lower case.
fn plain(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

enum Entry {
    Network(Network),
    Host(String),
}

struct Unreadable;

impl FromStr for Entry {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        if let Some((base, length)) = text.split_once('/') {
            let base = base.parse().map_err(|_| Unreadable)?;
            return Network::new(base, length.parse().map_err(|_| Unreadable)?).map(Self::Network).ok_or(Unreadable);
        }
        if let Ok(ip) = text.parse() {
            return Ok(Self::Network(Network::only(ip)));
        }
        // The URL parser decides what a host name is, as it does for the requests.
        let url = Url::parse(&format!("http://{text}/")).map_err(|_| Unreadable)?;
        match url.host_str() {
            Some(host) if host.eq_ignore_ascii_case(text) => Ok(Self::Host(plain(host))),
            _ => Err(Unreadable),
        }
    }
}

/// A block of addresses, by its canonical base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Network {
    base: IpAddr,
    length: u32,
}

impl Network {
    fn new(base: IpAddr, length: u32) -> Option<Self> {
        let longest = if base.is_ipv4() { 32 } else { 128 };
        (length <= longest).then_some(Self { base, length })
    }

    fn only(ip: IpAddr) -> Self {
        let base = ip.to_canonical();
        Self { base, length: if base.is_ipv4() { 32 } else { 128 } }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                let differing = u128::from(base.to_bits() ^ ip.to_bits());
                differing >> (32 - self.length) == 0
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                let differing = base.to_bits() ^ ip.to_bits();
                differing.checked_shr(128 - self.length).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(entries: &[&str]) -> Rules {
        Rules::new(false, &entries.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn permits(rules: &Rules, host: &str, ip: &str) -> bool {
        rules.permit(host, ip.parse().unwrap())
    }

    #[test]
    fn without_entries_only_the_public_internet_is_open() {
        let none = rules(&[]);
        assert!(permits(&none, "a.example", "8.8.8.8"));
        for ip in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1"] {
            assert!(!permits(&none, "a.example", ip), "{ip}");
        }
    }

    #[test]
    fn loopback_opens_nothing_else() {
        let dev = Rules::new(true, &[]);
        assert!(permits(&dev, "localhost", "127.0.0.1"));
        assert!(permits(&dev, "localhost", "::1"));
        assert!(!permits(&dev, "localhost", "10.0.0.1"));
        assert!(!permits(&dev, "localhost", "0.0.0.0"));
    }

    #[test]
    fn a_network_admits_its_addresses_under_any_name() {
        let some = rules(&["10.1.2.3/16", "fd12::/32", "169.254.169.254", "192.168.4.4"]);
        for (ip, allowed) in [
            ("10.1.0.0", true),
            ("10.1.255.255", true),
            ("::ffff:10.1.0.1", true),
            ("10.2.0.0", false),
            ("fd12:0:ffff::1", true),
            ("fd12:1::1", false),
            ("169.254.169.254", true),
            ("169.254.169.253", false),
            ("192.168.4.4", true),
            ("192.168.4.5", false),
        ] {
            assert_eq!(permits(&some, "a.example", ip), allowed, "{ip}");
        }
        assert!(permits(&Rules::anywhere(), "a.example", "169.254.169.254"));
        assert!(permits(&rules(&["::/0"]), "a.example", "fe80::1"));
    }

    #[test]
    fn a_name_admits_itself_inside_but_no_metadata_service() {
        let some = rules(&["CRM.internal"]);
        assert!(permits(&some, "crm.internal", "10.0.0.1"));
        assert!(permits(&some, "crm.internal.", "127.0.0.1"));
        assert!(!permits(&some, "crm.internal", "169.254.169.254"));
        assert!(!permits(&some, "crm.internal", "0.0.0.0"));
        assert!(!permits(&some, "evil.crm.internal", "10.0.0.1"));
    }

    #[test]
    fn what_cannot_be_read_admits_nothing() {
        for entry in
            ["", "10.0.0.0/33", "fd00::/129", "/8", "10.0.0.0/-1", "a b", "a.example:80", "x/y", "u@h", "0x7f.1"]
        {
            assert_eq!(rules(&[entry]), Rules::default(), "{entry}");
        }
    }
}
