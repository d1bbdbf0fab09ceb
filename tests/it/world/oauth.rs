//! An authorization server that grants what people are sent to it for, checks every word of the protocol, and takes
//! things back when it is told to.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use reqwest::Url;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, sync::watch};

use super::within;

/// A client that is registered beforehand, with its secret.
pub const CLIENT: (&str, &str) = ("fermata-acme", "the-secret-of-a-client");

#[derive(Default)]
struct Told {
    /// Members of its metadata that it tells otherwise.
    metadata: HashMap<&'static str, Value>,
    /// Clients that have registered themselves, and how they said they may be sent back.
    clients: HashMap<String, Value>,
    /// Codes that nobody has brought yet, with the question that each is the answer to.
    codes: HashMap<String, HashMap<String, String>>,
    /// Access tokens that are good.
    good: HashSet<String>,
    /// Refresh tokens that are good: each only once.
    refresh: HashSet<String>,
    /// Requests for tokens, in order.
    asked: Vec<HashMap<String, String>>,
    made: u32,
    life: Option<u64>,
    keeps_to_itself: bool,
    down: bool,
    /// Takes the refresh token that it is shown, and does not answer.
    hangs: bool,
    /// Tokens that were given back, as the requests had them.
    returned: Vec<HashMap<String, String>>,
}

/// The server, on a port of its own. Its tokens are good for an hour and can be renewed, unless it is told otherwise.
#[derive(Clone)]
pub struct Oauth {
    told: Arc<Mutex<Told>>,
    /// Requests that were heard.
    count: watch::Sender<usize>,
    url: String,
}

impl Oauth {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let told = Told { life: Some(3600), ..Told::default() };
        let oauth = Self { told: Arc::new(Mutex::new(told)), count: watch::Sender::new(0), url };
        let router = Router::new().fallback(answer).with_state(oauth.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        oauth
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn issuer(&self) -> &str {
        &self.url
    }

    /// Tells a member of its metadata otherwise from now on.
    pub fn claim(&self, member: &'static str, value: Value) {
        self.told().metadata.insert(member, value);
    }

    /// How long its tokens are good, in seconds, from now on.
    pub fn give_life(&self, seconds: Option<u64>) {
        self.told().life = seconds;
    }

    /// Gives nothing to renew a token with from now on.
    pub fn keep_to_yourself(&self) {
        self.told().keeps_to_itself = true;
    }

    /// Whether it answers 503 to requests for tokens.
    pub fn be_down(&self, down: bool) {
        self.told().down = down;
    }

    /// Whether it takes refresh tokens without answering.
    pub fn hang(&self, hangs: bool) {
        self.told().hangs = hangs;
        self.count.send_modify(|_| ());
    }

    /// Waits until it was asked so often for tokens of that kind.
    pub async fn hears(&self, grant_type: &str, count: usize) {
        self.until(|oauth| oauth.asked(grant_type).len() >= count).await;
    }

    /// Waits until so many tokens were given back, and says how.
    pub async fn gets_back(&self, count: usize) -> Vec<HashMap<String, String>> {
        self.until(|oauth| oauth.told().returned.len() >= count).await;
        self.told().returned.clone()
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let mut news = self.count.subscribe();
        within("the provider was asked", news.wait_for(|_| is_so(self))).await.unwrap();
    }

    /// Takes all access tokens back.
    pub fn revoke(&self) {
        self.told().good.clear();
    }

    /// Takes everything back.
    pub fn revoke_all(&self) {
        let mut told = self.told();
        told.good.clear();
        told.refresh.clear();
    }

    pub fn is_good(&self, token: &str) -> bool {
        self.told().good.contains(token)
    }

    /// Requests for tokens of that kind so far.
    pub fn asked(&self, grant_type: &str) -> Vec<HashMap<String, String>> {
        self.told().asked.iter().filter(|asked| asked["grant_type"] == grant_type).cloned().collect()
    }

    /// Clients that have registered themselves.
    pub fn registered(&self) -> Vec<Value> {
        self.told().clients.values().cloned().collect()
    }

    /// What a person does who was sent there and consents: the query that they are sent back with.
    pub fn consent(&self, url: &str) -> Value {
        let url: Url = url.parse().unwrap();
        assert!(url.as_str().starts_with(&format!("{}/authorize?", self.url)), "{url}");
        let asked: HashMap<_, _> = url.query_pairs().into_owned().collect();
        assert_eq!((&asked["response_type"][..], &asked["code_challenge_method"][..]), ("code", "S256"), "{url}");
        let mut told = self.told();
        if let Some(client) = told.clients.get(&asked["client_id"]) {
            assert_eq!(client["redirect_uris"], json!([asked["redirect_uri"]]));
        } else {
            assert_eq!(asked["client_id"], CLIENT.0);
        }
        let (state, code) = (asked["state"].clone(), format!("code-{}", asked["state"]));
        told.codes.insert(code.clone(), asked);
        json!({ "code": code, "state": state, "iss": self.url })
    }

    fn metadata(&self) -> Value {
        let mut metadata = json!({
            "issuer": self.url,
            "authorization_endpoint": format!("{}/authorize", self.url),
            "token_endpoint": format!("{}/token", self.url),
            "registration_endpoint": format!("{}/register", self.url),
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": true,
        });
        for (member, value) in &self.told().metadata {
            metadata[member] = value.clone();
        }
        metadata
    }

    fn register(&self, body: &Bytes) -> Response {
        let mut client: Value = serde_json::from_slice(body).unwrap();
        let mut told = self.told();
        let id = format!("client-{}", told.clients.len() + 1);
        client["client_id"] = json!(id);
        told.clients.insert(id, client.clone());
        (StatusCode::CREATED, axum::Json(client)).into_response()
    }

    /// Takes a token back (RFC 7009), if whoever gives it is whom it was given to.
    fn revoked(&self, headers: &HeaderMap, body: &Bytes) -> Response {
        let asked = form(headers, body);
        let mut told = self.told();
        told.returned.push(asked.clone());
        if told.down {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        if !told.knows(&asked) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        told.good.remove(&asked["token"]);
        told.refresh.remove(&asked["token"]);
        StatusCode::OK.into_response()
    }

    fn token(&self, headers: &HeaderMap, body: &Bytes) -> Response {
        let asked = form(headers, body);
        let mut told = self.told();
        told.asked.push(asked.clone());
        let refused = |error: &str| (StatusCode::BAD_REQUEST, axum::Json(json!({ "error": error }))).into_response();
        if told.down {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        if !told.knows(&asked) {
            return refused("invalid_client");
        }
        match &asked["grant_type"][..] {
            "authorization_code" => {
                let Some(question) = told.codes.remove(&asked["code"]) else { return refused("invalid_grant") };
                let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(&asked["code_verifier"]));
                let same =
                    ["client_id", "redirect_uri", "resource"].into_iter().all(|name| asked[name] == question[name]);
                if challenge != question["code_challenge"] || !same {
                    return refused("invalid_grant");
                }
            }
            "refresh_token" if told.refresh.remove(&asked["refresh_token"]) => {}
            _ => return refused("invalid_grant"),
        }
        told.made += 1;
        let (access, refresh) = (format!("access-{}", told.made), format!("refresh-{}", told.made));
        let mut tokens = json!({ "access_token": access, "token_type": "Bearer", "scope": "tools" });
        told.good.insert(access);
        if !told.keeps_to_itself {
            tokens["refresh_token"] = json!(refresh);
            told.refresh.insert(refresh);
        }
        if let Some(life) = told.life {
            tokens["expires_in"] = json!(life);
        }
        axum::Json(tokens).into_response()
    }
}

impl Told {
    /// Whether it is who it says.
    fn knows(&self, asked: &HashMap<String, String>) -> bool {
        let known = asked["client_id"] == CLIENT.0 && asked.get("secret").is_some_and(|it| it == CLIENT.1);
        known || self.clients.contains_key(&asked["client_id"])
    }
}

/// The fields of a request, with the client that asks as `client_id` and `secret`.
fn form(headers: &HeaderMap, body: &Bytes) -> HashMap<String, String> {
    let query = format!("http://x/?{}", std::str::from_utf8(body).unwrap());
    let mut asked: HashMap<_, _> = Url::parse(&query).unwrap().query_pairs().into_owned().collect();
    // RFC 6749, section 2.3.1.
    let basic = headers.get("authorization").map(|value| value.to_str().unwrap().strip_prefix("Basic ").unwrap());
    if let Some(basic) = basic {
        let text = String::from_utf8(BASE64_STANDARD.decode(basic).unwrap()).unwrap();
        let (id, secret) = text.split_once(':').unwrap();
        asked.extend([("client_id".to_owned(), id.to_owned()), ("secret".to_owned(), secret.to_owned())]);
    }
    asked
}

async fn answer(State(oauth): State<Oauth>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let response = respond(&oauth, &uri, &headers, &body);
    oauth.count.send_modify(|count| *count += 1);
    if uri.path() == "/token" {
        let mut news = oauth.count.subscribe();
        // The sender is gone when the test is.
        let _ = news.wait_for(|_| !oauth.told().hangs).await;
    }
    response
}

fn respond(oauth: &Oauth, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Response {
    match uri.path() {
        "/.well-known/oauth-authorization-server" => axum::Json(oauth.metadata()).into_response(),
        "/register" => oauth.register(body),
        "/token" => oauth.token(headers, body),
        "/revoke" => oauth.revoked(headers, body),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
