use axum::{
    extract::{
        FromRequestParts,
        path::ErrorKind,
        rejection::{PathRejection, QueryRejection},
    },
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use crate::kernel::{Error, Result};

/// Path parameters; a wrong one is a 400 that names it.
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

/// Query parameters; a wrong or unknown one is a 400 that names it.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(rejection) => {
                let names = path_names(parts, state).await;
                Err(wrong_path(rejection, &names))
            }
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let axum::extract::Query(value) =
            axum::extract::Query::<T>::try_from_uri(&parts.uri).map_err(|rejection| wrong_query(&rejection))?;
        Ok(Self(value))
    }
}

/// The parameters' names in order, for the kinds of failure that do not carry them.
async fn path_names<S: Send + Sync>(parts: &mut Parts, state: &S) -> Vec<String> {
    match axum::extract::RawPathParams::from_request_parts(parts, state).await {
        Ok(params) => params.iter().map(|(name, _)| name.to_owned()).collect(),
        Err(_) => Vec::new(),
    }
}

fn wrong_path(rejection: PathRejection, names: &[String]) -> Error {
    let PathRejection::FailedToDeserializePathParams(failure) = rejection else {
        return Error::internal(rejection);
    };
    let (field, reason) = match failure.into_kind() {
        ErrorKind::DeserializeError { key, message, .. } => (key, message),
        ErrorKind::ParseErrorAtKey { key, .. } => (key, "it cannot be read".to_owned()),
        ErrorKind::InvalidUtf8InPathParam { key } => (key, "it is not UTF-8".to_owned()),
        ErrorKind::ParseErrorAtIndex { index, .. } => {
            (names.get(index).cloned().unwrap_or_default(), "it cannot be read".to_owned())
        }
        ErrorKind::ParseError { .. } => (names.first().cloned().unwrap_or_default(), "it cannot be read".to_owned()),
        ErrorKind::Message(message) => (names.first().cloned().unwrap_or_default(), message),
        other => return Error::internal(other.to_string()),
    };
    Error::malformed(format!("`{field}` in the path: {reason}")).with("field", field)
}

fn wrong_query(rejection: &QueryRejection) -> Error {
    let text = rejection.body_text();
    let told = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
    // The reader says "limit: invalid digit …", or the reason alone when no one field is at fault.
    match told.split_once(": ").filter(|(field, _)| !field.contains(' ')) {
        Some((field, reason)) => Error::malformed(format!("`{field}` in the query: {reason}")).with("field", field),
        None => Error::malformed(format!("the query cannot be read: {told}")),
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::Request, routing::get};
    use http_body_util::BodyExt;
    use serde::Deserialize;
    use tower::ServiceExt;

    use super::*;
    use crate::kernel::{Problem, RunId};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Filter {
        #[serde(rename = "limit")]
        _limit: Option<u16>,
        #[serde(rename = "run")]
        _run: Option<RunId>,
    }

    #[tokio::test]
    async fn a_wrong_query_names_its_field() {
        for (query, field) in [
            ("limit=many", Some("limit")),
            ("limit=-1", Some("limit")),
            ("run=wf_x", Some("run")),
            ("offset=1", Some("offset")),
            ("limit=1&limit=2", None),
        ] {
            let (mut parts, ()) = Request::get(format!("/x?{query}")).body(()).expect("request").into_parts();
            let error = Query::<Filter>::from_request_parts(&mut parts, &()).await.expect_err(query);
            assert_eq!(error.problem(), Problem::Malformed);
            assert_eq!(error.members().get("field").and_then(|f| f.as_str()), field, "{query}: {}", error.detail());
        }
    }

    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "runId")]
        _run: RunId,
    }

    #[tokio::test]
    async fn a_wrong_id_in_the_path_is_named() {
        let router = Router::new()
            .route("/one/{runId}", get(async |_: Path<RunId>| ()))
            .route("/two/{runId}/{seq}", get(async |_: Path<(RunId, u32)>| ()))
            .route("/named/{runId}", get(async |_: Path<Named>| ()));
        let good = RunId::new(chrono::DateTime::UNIX_EPOCH);
        for (path, field) in [
            (format!("/one/{good}"), None),
            (format!("/two/{good}/1"), None),
            (format!("/named/{good}"), None),
            ("/one/wf_01h455vb4pex5vsknk084sn02q".to_owned(), Some("runId")),
            ("/one/%FF".to_owned(), Some("runId")),
            ("/two/x/1".to_owned(), Some("runId")),
            (format!("/two/{good}/x"), Some("seq")),
            ("/named/x".to_owned(), Some("runId")),
        ] {
            let request = Request::get(&path).body(axum::body::Body::empty()).expect("request");
            let response = router.clone().oneshot(request).await.expect("response");
            assert_eq!(response.status().as_u16(), if field.is_some() { 400 } else { 200 }, "{path}");
            let body = response.into_body().collect().await.expect("body").to_bytes();
            let problem = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
            assert_eq!(problem.get("field").and_then(|f| f.as_str()), field, "{path}: {problem}");
        }
    }
}
