use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    definition::{HttpMethod, HttpTool, ToolApproval, ToolKey},
    openapi::{self, Derived},
};
use crate::{
    journal::Effect,
    kernel::{Error, Result, Span},
};

/// An HTTP tool to be: by hand, with `description`, `method` and `url` at least, or out of an operation of an OpenAPI
/// document, whose words any field given besides takes the place of.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HttpToolBody {
    /// An OpenAPI document (3.0 or 3.1), as JSON. Nothing that it refers to elsewhere is fetched.
    #[schema(value_type = Option<Object>)]
    openapi: Option<Value>,
    /// The operation of the document.
    #[schema(example = "createRefund")]
    operation_id: Option<String>,
    /// Where the document's API is; its first server when absent.
    #[schema(example = "https://shop.example/v2")]
    server: Option<String>,
    /// What it does, for a person or a model.
    #[schema(min_length = 1, max_length = 2000)]
    description: Option<String>,
    /// The method.
    method: Option<HttpMethod>,
    /// Where it goes, with places for arguments in the path and the query.
    #[schema(max_length = 2048, example = "https://shop.example/orders/{order}/refunds")]
    url: Option<String>,
    /// JSON Schema of the arguments, whose `properties` name them; it takes none when absent.
    #[schema(value_type = Option<Object>)]
    arguments: Option<Value>,
    /// The arguments that go into the query: a list repeats its name, null leaves it out.
    #[schema(max_items = 64)]
    query: Option<Vec<String>>,
    /// Headers. One that is `{name}` is that argument, and left out where that is.
    headers: Option<BTreeMap<String, String>>,
    /// The argument that is the whole JSON body. When absent, the body of a POST, PUT or PATCH is an object of all
    /// arguments that have no other place.
    body: Option<String>,
    /// The sealed key it shows.
    key: Option<ToolKey>,
    /// JSON Schema of the body of the response.
    #[schema(value_type = Option<Object>)]
    output: Option<Value>,
    /// What repeating a call does to the world; when absent, GET, HEAD and OPTIONS nothing, PUT and DELETE the same
    /// again, POST and PATCH something again.
    effect: Option<Effect>,
    /// What a call touches, as an approver is shown.
    #[schema(max_items = 32)]
    scope: Option<Vec<String>>,
    /// What a call costs, in the tenant's unit.
    #[schema(minimum = 0)]
    cost: Option<f64>,
    /// Whether a model's calls are held. When absent, those whose repetition would do something again are.
    approval: Option<ToolApproval>,
    /// The longest one attempt may take (60 s when absent).
    timeout: Option<Span>,
    /// The statuses that are no failure; all below 400 when absent.
    #[schema(min_items = 1, max_items = 32)]
    expect: Option<Vec<u16>>,
}

impl HttpToolBody {
    /// Whether it would send a key.
    pub(super) fn shows_key(&self) -> bool {
        self.key.is_some()
    }

    /// The plain form.
    ///
    /// # Errors
    /// Invalid (422), naming what is missing, or what of the document is not to be had.
    pub(super) fn into_tool(self) -> Result<HttpTool> {
        let derived = match (&self.openapi, &self.operation_id) {
            (Some(document), Some(operation)) => openapi::derive(document, operation, self.server.as_deref())?,
            (Some(document), None) if !document.is_object() => {
                return Err(Error::invalid("openapi", "`openapi` is a document: an object"));
            }
            (Some(_), None) => {
                return Err(Error::invalid("operationId", "`operationId` says which operation is meant"));
            }
            (None, _) if self.operation_id.is_some() || self.server.is_some() => {
                return Err(Error::invalid("openapi", "`operationId` and `server` are about a document in `openapi`"));
            }
            (None, _) => Derived::default(),
        };
        let needed = |field: &str| {
            Error::invalid(field, format!("give `{field}`, or a document in `openapi` with its `operationId`"))
        };
        let method = self.method.or(derived.method).ok_or_else(|| needed("method"))?;
        Ok(HttpTool {
            description: self.description.or(derived.description).ok_or_else(|| needed("description"))?,
            method,
            url: self.url.or(derived.url).ok_or_else(|| needed("url"))?,
            arguments: self
                .arguments
                .or(derived.arguments)
                .unwrap_or_else(|| json!({ "type": "object", "properties": {}, "additionalProperties": false })),
            query: self.query.unwrap_or(derived.query),
            headers: self.headers.unwrap_or(derived.headers),
            body: self.body.or(derived.body),
            key: self.key,
            output: self.output.or(derived.output),
            effect: self.effect.unwrap_or_else(|| method.effect()),
            scope: self.scope.unwrap_or_default(),
            cost: self.cost,
            approval: self.approval,
            timeout: self.timeout,
            expect: self.expect,
        })
    }
}
