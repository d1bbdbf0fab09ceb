use std::{
    collections::VecDeque,
    error::Error as StdError,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{
    Certificate, Client, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};

use super::rules::Rules;
use crate::kernel::{Error, Problem, Result};

/// How many distinct rules keep a client with open connections.
const CLIENTS: usize = 16;

/// One client per distinct rules: a connection opened under one tenant's rules is only ever used
/// under the same ones, while all who have no exceptions share the first.
pub(super) struct Clients {
    authorities: Vec<Certificate>,
    /// The most recently used first.
    open: Mutex<VecDeque<(Rules, Client)>>,
}

impl Clients {
    /// Clients that trust these authorities besides the system's.
    pub(super) fn new(authorities: Vec<Certificate>) -> Self {
        Self { authorities, open: Mutex::default() }
    }

    pub(super) fn under(&self, rules: &Rules) -> Result<Client> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = open.iter().position(|(theirs, _)| theirs == rules);
        let entry = match known.and_then(|place| open.remove(place)) {
            Some(entry) => entry,
            None => (rules.clone(), client(rules, &self.authorities)?),
        };
        let client = entry.1.clone();
        open.push_front(entry);
        open.truncate(CLIENTS);
        Ok(client)
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients")
    }
}

fn client(rules: &Rules, authorities: &[Certificate]) -> Result<Client> {
    // It is an error only where a provider is installed already, and then that one serves.
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder()
        .no_proxy()
        // Redirects are followed one by one, each vetted; a repetition is for the engine to decide.
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .user_agent(concat!("fermata/", env!("CARGO_PKG_VERSION")))
        // A body is what it is on the wire: a limit on its bytes holds.
        .no_gzip()
        .tls_certs_merge(authorities.iter().cloned())
        .dns_resolver(Arc::new(Vetting { rules: Arc::new(rules.clone()) }))
        .connect_timeout(Duration::from_secs(10))
        // Shorter than the common servers keep a connection (5 s): a request that dies on one just closed is a
        // request of unknown outcome, which may cost a person a decision.
        .pool_idle_timeout(Duration::from_secs(4))
        .pool_max_idle_per_host(16)
        .tcp_keepalive(Duration::from_secs(30))
        .http2_max_header_list_size(64 * 1024)
        .build()
        .map_err(|e| {
            tracing::error!(error = ?e, "no HTTP client could be made");
            let detail = "no HTTP client could be made here: are CA certificates installed? The log says more";
            Error::new(Problem::Internal, detail).because(e)
        })
}

/// Resolves a name once and hands out its addresses only if the rules permit every one of them: what
/// was vetted is what is dialled.
struct Vetting {
    rules: Arc<Rules>,
}

impl Resolve for Vetting {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = Arc::clone(&self.rules);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let vetted: Addrs = Box::new(vet(&rules, name.as_str(), found)?.into_iter());
            Ok(vetted)
        })
    }
}

fn vet(rules: &Rules, host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Box<dyn StdError + Send + Sync>> {
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address").into());
    }
    if found.iter().all(|address| rules.permit(host, address.ip())) { Ok(found) } else { Err(Refused.into()) }
}

/// Whether the URL itself is one to go to: an address in it goes to no resolver.
pub(super) fn vet_url(rules: &Rules, url: &Url) -> Result<(), Refusal> {
    let refuse = |reason| Err(Refusal::Url(reason));
    if !matches!(url.scheme(), "http" | "https") {
        return refuse("only http and https URLs are requested");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("a URL carries no user name or password: send an Authorization header");
    }
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else { return refuse("the URL names no host") };
    // The parser has turned every spelling of an IPv4 address (octal, hex, short, full-width) into this one.
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) if !rules.permit(host, ip) => Err(Refusal::Address(host.to_owned())),
        _ => Ok(()),
    }
}

/// Why a request is not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The URL itself will not do.
    Url(&'static str),
    /// The host of that name has an address that the rules do not permit.
    Address(String),
}

impl Refusal {
    /// It, where it is what became of a request to `host`.
    #[must_use]
    pub fn behind(error: &(dyn StdError + 'static), host: &str) -> Option<Self> {
        let mut causes = std::iter::successors(Some(error), |&e| e.source());
        causes.any(|e| e.is::<Refused>()).then(|| Self::Address(host.to_owned()))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(reason) => f.write_str(reason),
            // Not its addresses, which may be nobody's business.
            Self::Address(host) => write!(f, "`{host}` {Refused}; the tenant's allow-list may name it"),
        }
    }
}

/// An address that the rules do not permit.
#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("is not on the public internet")
    }
}

impl StdError for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
    }

    #[test]
    fn one_bad_address_spoils_a_name() {
        let rules = Rules::default();
        assert!(vet(&rules, "a.example", addresses(&["8.8.8.8", "2606:4700::1111"])).is_ok());
        assert!(vet(&rules, "a.example", addresses(&["8.8.8.8", "127.0.0.1"])).is_err());
        assert!(vet(&rules, "a.example", addresses(&["8.8.8.8", "fe80::1"])).is_err());
        assert!(vet(&rules, "a.example", Vec::new()).is_err());
    }

    fn refusal(rules: &Rules, url: &str) -> Option<Refusal> {
        vet_url(rules, &url.parse().unwrap()).err()
    }

    #[test]
    fn odd_spellings_of_an_address_are_that_address() {
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0177.0.0.1/",
            "http://0x7f.0.0.0x1/",
            "http://127.0.0.1./",
            "http://①②⑦.⓪.⓪.①/",
            "http://127。0。0。1/",
            "http://%31%32%37.0.0.1/",
            "http:\\\\127.0.0.1\\",
            "http://0/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[0:0:0:0:0:ffff:0a00:0001]/",
            "http://[64:ff9b::a9fe:a9fe]/",
            "http://[fd00:ec2::254]/",
            "http://0xa9fea9fe/latest/meta-data/",
            "http://169.254.43518/",
            "https://10.0.0.1:8443/",
        ] {
            assert!(matches!(refusal(&Rules::default(), url), Some(Refusal::Address(_))), "{url}");
        }
        assert_eq!(refusal(&Rules::default(), "https://8.8.8.8/"), None);
        assert_eq!(refusal(&Rules::default(), "https://[2606:4700::1111]/"), None);
    }

    #[test]
    fn other_schemes_and_credentials_are_refused() {
        for url in [
            "ftp://a.example/",
            "file:///etc/passwd",
            "gopher://a.example",
            "http://u@a.example/",
            "http://:p@a.example/",
        ] {
            assert!(matches!(refusal(&Rules::default(), url), Some(Refusal::Url(_))), "{url}");
        }
    }

    #[test]
    fn few_clients_are_kept() {
        let clients = Clients::new(Vec::new());
        for i in 0..(CLIENTS + 4) {
            clients.under(&Rules::new(false, &[format!("10.0.0.{i}")])).unwrap();
        }
        assert_eq!(clients.open.lock().unwrap().len(), CLIENTS);
        clients.under(&Rules::new(false, &["10.0.0.5".to_owned()])).unwrap();
        assert_eq!(clients.open.lock().unwrap().len(), CLIENTS);
    }
}
