//! The server's own API, as a model tries it that has nobody's token.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{Door, stage::Stage};
use crate::world::{Run, Upstream, World};

/// A run with a hold that somebody has to decide on.
pub struct Elsewhere {
    pub run: Run,
    pub approval: String,
}

impl Elsewhere {
    pub async fn held(world: &World, upstream: &Upstream) -> Self {
        let mut step = pay(upstream);
        step["approval"] = json!({});
        let run = world.operator().start(json!([step])).await;
        let approval = run.hold().await;
        Self { run, approval }
    }

    /// It still waits, and ends when somebody says no.
    pub async fn was_not_decided(&self, world: &World, what: &str) {
        let hold = world.viewer().get(&format!("/approvals/{}", self.approval)).await.expect(200);
        assert_eq!((&hold["status"], &hold["decisions"]), (&json!("pending"), &json!([])), "{what}: {hold}");
        world.approver().deny(&self.approval, "no").await;
        assert_eq!(self.run.wait_end().await["status"], "failed", "{what}");
    }
}

/// A step that pays.
fn pay(upstream: &Upstream) -> Value {
    let with = json!({ "method": "POST", "url": upstream.url("/pay"), "json": { "order": 1042 } });
    json!({ "id": "pay", "uses": "http.request", "with": with })
}

impl Door {
    /// The arguments of `http.request` with which it is tried.
    pub fn call(self, stage: &Stage<'_>, elsewhere: &Elsewhere) -> Value {
        let api = stage.world.url();
        let decision = format!("{api}/approvals/{}/decision", elsewhere.approval);
        let approve = |url: &str, headers: Value| json!({ "method": "POST", "url": url, "json": { "status": "approved" }, "headers": headers });
        match self {
            Self::Decision => approve(&decision, json!({})),
            Self::Versioned => approve(&decision.replace("/approvals/", "/v1/approvals/"), json!({})),
            Self::Step => {
                let approval = json!({ "status": "approved", "actor": "user_owner" });
                let body = json!({ "runId": elsewhere.run.id, "stepId": "pay", "approval": approval });
                json!({ "method": "POST", "url": format!("{api}/agent/approve"), "json": body })
            }
            Self::NoSignature => {
                let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
                let claims = json!({ "iss": "fermata", "aud": "fermata", "sub": "user_owner", "tid": stage.world.home(),
                    "roles": ["owner"], "iat": 0, "nbf": 0, "exp": 9_999_999_999_u64, "jti": "1" });
                let token = format!("{}.{}.", part(json!({ "alg": "none", "typ": "JWT" })), part(claims));
                approve(&decision, json!({ "Authorization": format!("Bearer {token}") }))
            }
            Self::OwnId => approve(&decision, json!({ "Authorization": format!("Bearer {}", elsewhere.approval) })),
            Self::Claimed => {
                let headers = json!({ "X-User": "user_approver", "X-Forwarded-User": "user_approver",
                    "X-Tenant-Id": stage.world.home(), "Cookie": "session=user_approver" });
                approve(&decision, headers)
            }
            Self::Put => json!({ "method": "PUT", "url": decision, "json": { "status": "approved" } }),
            Self::Get => json!({ "url": format!("{decision}?status=approved") }),
            Self::Begin => {
                let body = json!({ "plan": [pay(&stage.upstream)] });
                json!({ "method": "POST", "url": format!("{api}/agent/execute"), "json": body })
            }
        }
    }
}
