//! `fermata connect`: has a person grant access in their browser, and brings the provider's answer back (RFC 8252).

use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

use axum::{Router, extract::Query, routing::get};
use clap::Args;
use console::style;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use super::{
    api::Api,
    connection::{Connection, Role},
    failure::{Failure, Result},
    output, text,
};

/// As long as the server waits for it.
const PATIENCE: Duration = Duration::from_secs(600);

/// `connect`
#[derive(Debug, Args)]
pub struct Connect {
    /// The connection's name
    #[arg(value_name = "NAME")]
    name: String,
    /// Put the connection first: what access is wanted to
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// A scope to ask for, in place of those that the resource says it needs; may be repeated
    #[arg(long, value_name = "SCOPE", requires = "to")]
    scope: Vec<String>,
    /// The port that the browser comes back to; any that is free when absent
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    #[command(flatten)]
    connection: Connection,
}

impl Connect {
    pub(super) async fn run(self) -> Result<()> {
        let api = Api::new(self.connection.target(Role::Operator)?)?;
        let place = ["integrations", &self.name];
        if let Some(url) = &self.to {
            let scopes = (!self.scope.is_empty()).then_some(&self.scope);
            let body = json!({ "url": url, "scopes": scopes }).to_string();
            api.put(&place, "application/json", body.into_bytes()).await?;
        }
        let busy = |e| Failure::Usage(format!("port {} cannot be listened on: {e}", self.port));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).await.map_err(busy)?;
        let back = format!("http://{}/", listener.local_addr()?);
        let oauth = |what| ["integrations", &self.name, "oauth", what];
        let begun: Value = api.post(&oauth("authorize"), &json!({ "redirectUrl": back }), None).await?.json()?;
        let url = begun["url"].as_str().unwrap_or_default();
        output::line(&text::safe(url))?;
        output::hint("open this in your browser; whoever signs in there is who the connection acts for");
        let answer = returned(listener, state_of(url)).await?;
        let connected: Value = api.post(&oauth("callback"), &answer, None).await?.json()?;
        let scopes = connected["grant"]["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let scopes = text::safe(&scopes.collect::<Vec<_>>().join(" "));
        output::line(&format!("{} is connected  {scopes}", style(text::safe(&self.name)).bold()))
    }
}

fn state_of(url: &str) -> String {
    let url = reqwest::Url::parse(url).ok();
    let state = url.iter().flat_map(reqwest::Url::query_pairs).find(|(name, _)| name == "state");
    state.map(|(_, state)| state.into_owned()).unwrap_or_default()
}

/// Waits until the browser is sent back here with the provider's answer.
async fn returned(listener: TcpListener, state: String) -> Result<Value> {
    let (sender, mut answers) = mpsc::channel(1);
    let page = move |Query(query): Query<HashMap<String, String>>| async move {
        let Some(answer) = read(query, &state) else { return "This is not the answer that is waited for." };
        let granted = answer.is_ok();
        let news = sender.try_send(answer).is_ok();
        match (news, granted) {
            (false, _) => "The answer was here before.",
            (true, true) => "The terminal goes on with this; you can close the page.",
            (true, false) => "Nothing was granted; you can close the page.",
        }
    };
    let (done, answered) = oneshot::channel::<()>();
    let serve = axum::serve(listener, Router::new().route("/", get(page)));
    let served = tokio::spawn(serve.with_graceful_shutdown(async { drop(answered.await) }).into_future());
    let late = || Failure::NotGranted("nobody has signed in within ten minutes".to_owned());
    let answer = tokio::select! {
        answer = tokio::time::timeout(PATIENCE, answers.recv()) => answer.ok().flatten().ok_or_else(late)?,
        _ = tokio::signal::ctrl_c() => return Err(Failure::Interrupted),
    };
    drop(done);
    // The browser is to have its page.
    drop(tokio::time::timeout(Duration::from_secs(2), served).await);
    answer
}

/// What the provider has sent along; none where it is about something else.
fn read(mut query: HashMap<String, String>, state: &str) -> Option<Result<Value>> {
    query.remove("state").filter(|theirs| theirs == state)?;
    if let Some(code) = query.remove("code") {
        let mut answer = json!({ "code": code, "state": state });
        if let Some(iss) = query.remove("iss") {
            answer["iss"] = json!(iss);
        }
        return Some(Ok(answer));
    }
    let error = query.remove("error")?;
    let more = query.remove("error_description").map(|text| format!(": {text}")).unwrap_or_default();
    Some(Err(Failure::NotGranted(format!("the provider says {error}{more}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> HashMap<String, String> {
        let url = reqwest::Url::parse(&format!("http://127.0.0.1/?{text}")).unwrap();
        url.query_pairs().into_owned().collect()
    }

    #[test]
    fn only_the_answer_to_our_question_counts() {
        let answer = read(query("code=c&state=s&iss=https%3A%2F%2Fi"), "s").unwrap().unwrap();
        assert_eq!(answer, json!({ "code": "c", "state": "s", "iss": "https://i" }));
        for other in ["code=c&state=other", "code=c", "state=s", ""] {
            assert!(read(query(other), "s").is_none(), "{other}");
        }
        let refused = read(query("error=access_denied&error_description=No&state=s"), "s").unwrap();
        assert!(matches!(refused, Err(Failure::NotGranted(why)) if why == "the provider says access_denied: No"));
        assert_eq!(state_of("https://login.example/authorize?state=a%2Bb&x=1"), "a+b");
    }
}
