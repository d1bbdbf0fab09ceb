use axum::{
    Router,
    extract::Path,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::problem::PAGES;
use crate::kernel::{Error, Problem, Result};

macro_rules! pages {
    ($($problem:ident = $file:literal),* $(,)?) => {
        /// The page a problem's `type` points to.
        const fn page(problem: Problem) -> &'static str {
            match problem { $(Problem::$problem => include_str!(concat!("../../docs/problems/", $file, ".md")),)* }
        }
    };
}

pages! {
    Malformed = "malformed-request",
    MalformedCursor = "malformed-cursor",
    Unauthenticated = "unauthenticated",
    Forbidden = "forbidden",
    NotFound = "not-found",
    MethodNotAllowed = "method-not-allowed",
    NotAcceptable = "not-acceptable",
    RequestTimeout = "request-timeout",
    Conflict = "conflict",
    AlreadyDecided = "already-decided",
    StaleDigest = "stale-digest",
    CursorBeyondHead = "cursor-beyond-head",
    IdempotencyInFlight = "idempotency-in-flight",
    TooLarge = "too-large",
    UnsupportedMediaType = "unsupported-media-type",
    Invalid = "invalid-input",
    InvalidDefinition = "invalid-definition",
    IdempotencyMismatch = "idempotency-mismatch",
    NoPlanner = "no-planner",
    TooManyStreams = "too-many-streams",
    TooManyRuns = "too-many-runs",
    Internal = "internal",
    UnreadableRun = "unreadable-run",
    Unavailable = "unavailable",
}

/// `/openapi.json`, Swagger UI at `/docs`, and the problems' pages below it.
///
/// # Errors
/// When the document cannot be written.
pub fn docs(document: &OpenApi) -> Result<Router> {
    let text = Bytes::from(document.to_json().map_err(Error::internal)?);
    // Relative, so that it holds behind a proxy's prefix too.
    let page = SwaggerUi::new("/docs").config(Config::new(["../openapi.json"]).persist_authorization(true));
    Ok(Router::from(page)
        .route("/openapi.json", get(async move || ([(header::CONTENT_TYPE, "application/json")], text.clone())))
        .route(&format!("{PAGES}{{slug}}"), get(problem)))
}

async fn problem(Path(slug): Path<String>) -> Result<Response> {
    let found = Problem::ALL.iter().find(|problem| problem.slug() == slug);
    let problem = found.ok_or_else(|| Error::not_found("problem"))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], page(*problem)).into_response())
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn every_problem_has_its_own_page() {
        for problem in Problem::ALL {
            let page = page(*problem);
            assert!(page.starts_with(&format!("# {}\n", problem.title())), "{problem:?}");
            assert!(page.contains(&format!("`{}`, status {}", problem.slug(), problem.status())), "{problem:?}");
        }
    }

    #[tokio::test]
    async fn document_page_and_problems_are_served() {
        let router = docs(&super::super::openapi::base()).expect("router");
        for (path, status, words) in [
            ("/openapi.json", 200, "\"Fermata\""),
            ("/docs/", 200, "swagger-ui"),
            ("/docs/swagger-initializer.js", 200, "../openapi.json"),
            ("/docs/problems/not-found", 200, "# There is no such thing"),
            ("/docs/problems/no", 404, "no such problem"),
        ] {
            let request = Request::get(path).body(Body::empty()).expect("request");
            let response = router.clone().oneshot(request).await.expect("response");
            assert_eq!(response.status().as_u16(), status, "{path}");
            let body = response.into_body().collect().await.expect("body").to_bytes();
            assert!(String::from_utf8_lossy(&body).contains(words), "{path}");
        }
    }
}
