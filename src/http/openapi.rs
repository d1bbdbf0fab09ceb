//! The OpenAPI document: what it says of the whole, and what it adds to every operation. An operation
//! declares its permission once, as `security(("bearer" = ["runs:read"]))`; the rest follows from it.

use serde_json::Value;
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, Info, License, ObjectBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder,
    Schema, ServerBuilder,
    extensions::Extensions,
    path::{Operation, PathItem},
    schema::{AdditionalProperties, SchemaFormat, Type},
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    tag::TagBuilder,
};

use super::problem::MEDIA_TYPE;
use crate::kernel::Problem;

const TAGS: [(&str, &str); 5] = [
    ("agent", "Plan, execute, approve"),
    ("runs", "Runs, their steps and events"),
    ("approvals", "The inbox of holds"),
    ("workflows", "Definitions and their versions"),
    ("operations", "Health and measurements"),
];

/// The document before any operation is in it.
#[must_use]
pub fn base() -> OpenApi {
    let mut info = Info::new("Fermata", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "An agent orchestrator that knows when to hold. Errors are problems (RFC 9457). Every path is served as \
         written and under `/v1`."
            .to_owned(),
    );
    info.license = Some(License::new("MIT"));
    let mut document = OpenApi::new(info, utoipa::openapi::Paths::new());
    document.servers = Some(vec![ServerBuilder::new().url("/").build()]);
    document.tags = Some(
        TAGS.into_iter().map(|(name, text)| TagBuilder::new().name(name).description(Some(text)).build()).collect(),
    );
    document
}

/// Completes an assembled document: the bearer scheme, the problem, the events' payloads, and for every
/// operation its permission, its problems and the headers of its responses.
#[must_use]
pub fn complete(mut document: OpenApi, events: Vec<(&'static str, String, RefOr<Schema>)>) -> OpenApi {
    let components = document.components.get_or_insert_default();
    components.security_schemes.insert("bearer".to_owned(), RefOr::T(bearer()));
    components.schemas.insert("Problem".to_owned(), problem_schema());
    components.schemas.extend(events.into_iter().map(|(_, name, schema)| (name, schema)));
    for problem in Problem::ALL {
        components.responses.insert(problem.slug().to_owned(), RefOr::T(problem_response(*problem)));
    }
    for (path, item) in &mut document.paths.paths {
        let named = path.contains('{');
        operations(item).for_each(|operation| finish(operation, named));
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().flatten()
}

fn finish(operation: &mut Operation, named: bool) {
    let permissions = permissions(operation);
    let secured = permissions.is_some();
    if let Some(permissions) = permissions.filter(|p| !p.is_empty()) {
        let listed = permissions.iter().map(|p| format!("`{p}`")).collect::<Vec<_>>().join(", ");
        let text = operation.description.take().map(|text| format!("{text}\n\n")).unwrap_or_default();
        operation.description = Some(format!("{text}Needs {listed}."));
        let extensions = operation.extensions.get_or_insert_default();
        extensions.merge(Extensions::from_iter([("x-permissions", Value::from(permissions))]));
    }
    let body = operation.request_body.is_some();
    for (problem, applies) in [
        (Problem::Malformed, true),
        (Problem::Unauthenticated, secured),
        (Problem::Forbidden, secured),
        (Problem::NotFound, named),
        (Problem::RequestTimeout, body),
        (Problem::TooLarge, body),
        (Problem::UnsupportedMediaType, body),
        (Problem::Invalid, body),
        (Problem::Internal, true),
        (Problem::Unavailable, true),
    ] {
        if applies {
            let reference = RefOr::Ref(Ref::new(format!("#/components/responses/{}", problem.slug())));
            operation.responses.responses.entry(problem.status().to_string()).or_insert(reference);
        }
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            response.headers.extend(tracking());
        }
    }
}

/// What the operation's bearer must be allowed, or nothing where it takes no bearer.
fn permissions(operation: &Operation) -> Option<Vec<String>> {
    let requirements = serde_json::to_value(operation.security.as_ref()?).ok()?;
    let scopes = requirements.as_array()?.iter().find_map(|requirement| requirement.get("bearer"))?;
    Some(scopes.as_array()?.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn bearer() -> SecurityScheme {
    let text = "A JWT with `iss aud sub tid roles exp iat jti`, and optionally `scope nbf`.";
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").description(Some(text));
    SecurityScheme::Http(scheme.build())
}

fn tracking() -> [(String, RefOr<utoipa::openapi::header::Header>); 2] {
    let text = |name: &str, text: &str| {
        let schema = ObjectBuilder::new().schema_type(Type::String);
        (name.to_owned(), RefOr::T(HeaderBuilder::new().schema(Some(schema)).description(Some(text)).build()))
    };
    [
        text("X-Request-Id", "What this request is called in logs, problems and the audit log."),
        text("traceparent", "Where this request stands in its trace (W3C Trace Context)."),
    ]
}

fn problem_schema() -> RefOr<Schema> {
    let text = |text: &str| ObjectBuilder::new().schema_type(Type::String).description(Some(text));
    ObjectBuilder::new()
        .description(Some("What went wrong (RFC 9457). `type` points to a page about it; more members may follow."))
        .property(
            "type",
            text("Which problem it is: a path of this server.")
                .format(Some(SchemaFormat::Custom("uri-reference".to_owned()))),
        )
        .property("title", text("The same for every occurrence."))
        .property("status", ObjectBuilder::new().schema_type(Type::Integer).description(Some("The HTTP status.")))
        .property("detail", text("What happened this time, and what would be right."))
        .property("instance", text("The request it happened in: `urn:fermata:request:` and its id."))
        .property("field", text("The path of the field at fault, where one is."))
        .required("type")
        .required("title")
        .required("status")
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .into()
}

fn problem_response(problem: Problem) -> Response {
    let example = serde_json::json!({
        "type": format!("{}{}", super::problem::PAGES, problem.slug()),
        "title": problem.title(),
        "status": problem.status(),
        "detail": "what happened this time",
        "instance": "urn:fermata:request:req_01kamdz5y0f1tb3vvsrhpf2c4h",
    });
    let schema = Ref::from_schema_name("Problem");
    let content = ContentBuilder::new().schema(Some(schema)).example(Some(example)).build();
    ResponseBuilder::new().description(problem.title()).content(MEDIA_TYPE, content).build()
}
