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
use crate::tool::ToolError;

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

    pub(super) fn under(&self, rules: &Rules) -> Result<Client, ToolError> {
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

fn client(rules: &Rules, authorities: &[Certificate]) -> Result<Client, ToolError> {
    // It is an error only where a provider is installed already, and then that one serves.
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::builder()
        .no_proxy()
        // Redirects are followed one by one, each vetted; a repetition is for the engine to decide.
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .user_agent(concat!("fermata/", env!("CARGO_PKG_VERSION")))
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
            ToolError::retryable(
                "unavailable",
                "no HTTP client could be made here: are CA certificates installed? The log says more",
            )
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
pub(super) fn vet_url(rules: &Rules, url: &Url) -> Result<(), ToolError> {
    let refuse = |message: &str| Err(ToolError::failed("url_refused", message));
    if !matches!(url.scheme(), "http" | "https") {
        return refuse("only http and https URLs are requested");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("a URL carries no user name or password: send an Authorization header");
    }
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else { return refuse("the URL names no host") };
    // The parser has turned every spelling of an IPv4 address (octal, hex, short, full-width) into this one.
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) if !rules.permit(host, ip) => Err(Refused.failure(host)),
        _ => Ok(()),
    }
}

/// An address that the rules do not permit.
#[derive(Debug)]
pub(super) struct Refused;

impl Refused {
    /// Names the host but not its addresses, which may be nobody's business.
    pub(super) fn failure(&self, host: &str) -> ToolError {
        ToolError::failed("address_refused", format!("`{host}` {self}; the tenant's allow-list may name it"))
    }

    /// It, where it is what an error comes from.
    pub(super) fn behind<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |&e| e.source()).find_map(|e| e.downcast_ref())
    }
}

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

    fn code(rules: &Rules, url: &str) -> Option<String> {
        match vet_url(rules, &url.parse().unwrap()) {
            Err(ToolError::Failed(failure)) => Some(failure.code),
            _ => None,
        }
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
            assert_eq!(code(&Rules::default(), url).as_deref(), Some("address_refused"), "{url}");
        }
        assert_eq!(code(&Rules::default(), "https://8.8.8.8/"), None);
        assert_eq!(code(&Rules::default(), "https://[2606:4700::1111]/"), None);
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
            assert_eq!(code(&Rules::default(), url).as_deref(), Some("url_refused"), "{url}");
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
