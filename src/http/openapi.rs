//! The OpenAPI document: what it says of the whole, and what it adds to every operation. An operation
//! declares its permission once, as `security(("bearer" = ["runs:read"]))`, and the problems of its own, as
//! `extensions(("x-problems" = json!(["conflict"])))`; the rest follows.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::openapi::{
    ContentBuilder, HeaderBuilder, Info, License, ObjectBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder,
    Schema, ServerBuilder,
    example::ExampleBuilder,
    extensions::Extensions,
    header::Header,
    path::{Operation, PathItem},
    schema::{AdditionalProperties, AllOfBuilder, ArrayItems, OneOfBuilder, SchemaFormat, Type},
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    tag::TagBuilder,
};

use super::problem::MEDIA_TYPE;
use crate::kernel::{Error, Problem, Result};

/// Where an operation names the problems of its own; taken out again.
const PROBLEMS: &str = "x-problems";

const TAGS: [(&str, &str); 10] = [
    ("agent", "Plan, execute, approve"),
    ("runs", "Runs, their steps and events"),
    ("approvals", "The inbox of holds"),
    ("workflows", "Definitions and their versions"),
    ("tools", "What steps and models use, and the tools that tenants declare"),
    ("integrations", "Connections: OAuth grants to what is elsewhere"),
    ("jobs", "Single questions to models, in the background"),
    ("models", "Model configurations, prompt templates and keys"),
    ("usage", "What runs take, and the budget of a day"),
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
    // Relative to where the document is served, so that they hold behind a proxy's prefix too.
    let server = |url: &str, text: &str| ServerBuilder::new().url(url).description(Some(text)).build();
    document.servers = Some(vec![server("./", "As written"), server("./v1", "The same, by version")]);
    document.tags = Some(
        TAGS.into_iter().map(|(name, text)| TagBuilder::new().name(name).description(Some(text)).build()).collect(),
    );
    document
}

/// The payloads of events: each event's name on the wire, its payload's name and schema; then the schemas
/// these refer to.
#[derive(Default)]
pub struct Events {
    /// `journal::payload_schemas()`.
    pub payloads: Vec<(&'static str, String, RefOr<Schema>)>,
    /// `journal::payload_parts()`.
    pub parts: Vec<(String, RefOr<Schema>)>,
}

/// Completes an assembled document: the bearer scheme, the problem, the events' payloads, and for every
/// operation its permission, its problems and the headers of its responses.
///
/// # Errors
/// When an operation declares a problem that there is not.
pub fn complete(mut document: OpenApi, events: Events) -> Result<OpenApi> {
    let components = document.components.get_or_insert_default();
    components.security_schemes.insert("bearer".to_owned(), RefOr::T(bearer()));
    components.schemas.insert("Problem".to_owned(), problem_schema());
    components.headers.extend(headers().map(|(name, header)| (name.to_owned(), RefOr::T(header))));
    for problem in Problem::ALL {
        components.responses.insert(problem.slug().to_owned(), RefOr::T(problem_response(&[*problem])));
    }
    describe_events(&mut components.schemas, events);
    refer_from_pages(&mut components.schemas);
    for (path, item) in &mut document.paths.paths {
        let named = path.contains('{');
        operations(item).try_for_each(|operation| finish(operation, named))?;
    }
    Ok(document)
}

/// A page refers to its rows' schema rather than repeat it.
fn refer_from_pages(schemas: &mut BTreeMap<String, RefOr<Schema>>) {
    let known: Vec<String> = schemas.keys().cloned().collect();
    for (name, schema) in schemas.iter_mut() {
        let row = name.strip_prefix("Page_").filter(|row| known.iter().any(|name| name == row));
        let RefOr::T(Schema::Object(page)) = schema else { continue };
        if let (Some(row), Some(RefOr::T(Schema::Array(items)))) = (row, page.properties.get_mut("items")) {
            items.items = ArrayItems::RefOrSchema(Box::new(Ref::from_schema_name(row).into()));
        }
    }
}

/// Says which payload each event has: an event is the envelope with one of these pairs in it.
fn describe_events(schemas: &mut BTreeMap<String, RefOr<Schema>>, events: Events) {
    schemas.extend(events.parts);
    let mut kinds = OneOfBuilder::new();
    for (event, name, schema) in events.payloads {
        let name = format!("{name}Payload");
        let step = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([event]));
        let payload = Ref::from_schema_name(&name);
        kinds = kinds.item(
            ObjectBuilder::new()
                .property("step", step)
                .property("payload", payload)
                .required("step")
                .required("payload"),
        );
        schemas.insert(name, schema);
    }
    if let Some(envelope) = schemas.remove("Event") {
        let event = AllOfBuilder::new().item(envelope).item(kinds);
        schemas.insert("Event".to_owned(), event.into());
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete].into_iter().flatten()
}

fn finish(operation: &mut Operation, named: bool) -> Result<()> {
    let permissions = permissions(operation);
    let secured = permissions.is_some();
    for (status, problems) in problems(operation, secured, named)? {
        let answer = match problems.as_slice() {
            [one] => RefOr::Ref(Ref::new(format!("#/components/responses/{}", one.slug()))),
            several => RefOr::T(problem_response(several)),
        };
        operation.responses.responses.entry(status.to_string()).or_insert(answer);
    }
    if let Some(permissions) = permissions.filter(|p| !p.is_empty()) {
        let listed = permissions.iter().map(|p| format!("`{p}`")).collect::<Vec<_>>().join(", ");
        let text = operation.description.take().map(|text| format!("{text}\n\n")).unwrap_or_default();
        operation.description = Some(format!("{text}Needs {listed}."));
        let extensions = operation.extensions.get_or_insert_default();
        extensions.merge(Extensions::from_iter([("x-permissions", Value::from(permissions))]));
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            response.headers.extend(tracking());
        }
    }
    Ok(())
}

/// What can go wrong with it, by status: what it declares, and what follows from what it takes.
fn problems(operation: &mut Operation, secured: bool, named: bool) -> Result<BTreeMap<u16, Vec<Problem>>> {
    let declared = operation.extensions.as_mut().and_then(|extensions| extensions.remove(PROBLEMS));
    let declared: Vec<String> =
        declared.map(serde_json::from_value).transpose().map_err(Error::internal)?.unwrap_or_default();
    if let Some(slug) = declared.iter().find(|slug| Problem::ALL.iter().all(|problem| problem.slug() != *slug)) {
        return Err(Error::internal(format!("{PROBLEMS} names `{slug}`, which is no problem")));
    }
    let takes =
        |name: &str| operation.parameters.iter().flatten().any(|one| matches!(one, RefOr::T(one) if one.name == name));
    let (body, once) = (operation.request_body.is_some(), takes("Idempotency-Key"));
    let applies = |problem: &Problem| match problem {
        Problem::MalformedCursor => takes("cursor") || takes("lastEventId"),
        Problem::Unauthenticated | Problem::Forbidden => secured,
        Problem::NotFound => named,
        Problem::RequestTimeout | Problem::TooLarge | Problem::UnsupportedMediaType => body,
        Problem::Invalid => body || takes("limit"),
        Problem::IdempotencyInFlight | Problem::IdempotencyMismatch => once,
        // Any URL can be one that nobody can read.
        Problem::Malformed | Problem::Internal | Problem::Unavailable => true,
        _ => false,
    };
    let mut problems = BTreeMap::<u16, Vec<Problem>>::new();
    for problem in Problem::ALL.iter().filter(|one| declared.iter().any(|slug| slug == one.slug()) || applies(one)) {
        problems.entry(problem.status()).or_default().push(*problem);
    }
    Ok(problems)
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

/// The headers that responses refer to.
fn headers() -> [(&'static str, Header); 4] {
    let header = |kind: Type, text: &str| {
        HeaderBuilder::new().schema(Some(ObjectBuilder::new().schema_type(kind))).description(Some(text)).build()
    };
    [
        ("X-Request-Id", header(Type::String, "What this request is called in logs, problems and the audit log.")),
        ("traceparent", header(Type::String, "Where this request stands in its trace (W3C Trace Context).")),
        ("Retry-After", header(Type::Integer, "Seconds to wait before the next try.")),
        ("WWW-Authenticate", header(Type::String, "What a token would need (RFC 6750).")),
    ]
}

fn header(name: &str) -> (String, RefOr<Header>) {
    (name.to_owned(), RefOr::Ref(Ref::new(format!("#/components/headers/{name}"))))
}

fn tracking() -> [(String, RefOr<Header>); 2] {
    ["X-Request-Id", "traceparent"].map(header)
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

/// The answer that is one of these problems, which share a status.
fn problem_response(problems: &[Problem]) -> Response {
    let mut content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem")));
    for problem in problems {
        let example = serde_json::json!({
            "type": format!("{}{}", super::problem::PAGES, problem.slug()),
            "title": problem.title(),
            "status": problem.status(),
            "detail": "what happened this time",
            "instance": "urn:fermata:request:req_01kamdz5y0f1tb3vvsrhpf2c4h",
        });
        let example = ExampleBuilder::new().summary(problem.title()).value(Some(example)).build();
        content = content.examples_from_iter([(problem.slug(), RefOr::T(example))]);
    }
    let said = problems.iter().map(|problem| format!("`{}`: {}", problem.slug(), problem.title()));
    let mut response = ResponseBuilder::new()
        .description(said.collect::<Vec<_>>().join("; "))
        .content(MEDIA_TYPE, content.build())
        .build();
    response.headers.extend(tracking());
    let wait = |problem: &Problem| matches!(problem.status(), 429 | 503) || *problem == Problem::IdempotencyInFlight;
    let challenge = |problem: &Problem| matches!(problem.status(), 401 | 403);
    response.headers.extend(problems.iter().any(wait).then(|| header("Retry-After")));
    response.headers.extend(problems.iter().any(challenge).then(|| header("WWW-Authenticate")));
    response
}

#[cfg(test)]
mod tests {
    use utoipa::{PartialSchema, ToSchema};

    use super::*;
    use crate::{http::vitals, journal};

    #[utoipa::path(
        post, path = "/runs/{id}", request_body = String, security(("bearer" = ["runs:write"])),
        responses((status = 200, body = String), (status = 404, description = "mine")),
        extensions(("x-problems" = json!(["conflict", "stale-digest"])))
    )]
    async fn act() {}

    fn document() -> Value {
        let metrics = crate::telemetry::metrics().expect("metrics");
        let (_, assembled) = utoipa_axum::router::OpenApiRouter::<()>::with_openapi(base())
            .routes(utoipa_axum::routes!(act))
            .merge(vitals(Vec::new(), metrics, Default::default()))
            .split_for_parts();
        let mut assembled = assembled;
        let components = assembled.components.get_or_insert_default();
        components.schemas.insert("Event".to_owned(), journal::Envelope::schema());
        let mut parts = journal::payload_parts();
        journal::Envelope::schemas(&mut parts);
        let events = Events { payloads: journal::payload_schemas(), parts };
        serde_json::to_value(complete(assembled, events).expect("complete")).expect("json")
    }

    #[test]
    fn an_operation_says_what_it_needs_and_what_can_go_wrong() {
        let document = document();
        let operation = &document["paths"]["/runs/{id}"]["post"];
        assert_eq!(operation["x-permissions"], serde_json::json!(["runs:write"]));
        assert!(operation["description"].as_str().expect("text").ends_with("Needs `runs:write`."));
        let responses = operation["responses"].as_object().expect("responses");
        for status in ["400", "401", "403", "413", "415", "422", "500", "503"] {
            assert!(responses[status]["$ref"].is_string(), "{status}");
        }
        assert_eq!(responses["404"]["description"], "mine");
        let examples = responses["409"]["content"]["application/problem+json"]["examples"].as_object().expect("both");
        assert_eq!(examples.keys().collect::<Vec<_>>(), ["conflict", "stale-digest"]);
        assert!(operation.get("x-problems").is_none());
        assert!(responses["200"]["headers"]["X-Request-Id"].is_object());
        assert!(document["paths"]["/health"]["get"]["responses"].get("401").is_none());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(document: &Value, value: &Value) {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(target)) = members.get("$ref") {
                        let found = target.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
                        assert!(found.is_some(), "{target}");
                    }
                    members.values().for_each(|inner| walk(document, inner));
                }
                Value::Array(items) => items.iter().for_each(|inner| walk(document, inner)),
                _ => {}
            }
        }
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        assert!(document["components"]["schemas"]["AwaitingApprovalPayload"].is_object());
        walk(&document, &document);
    }
}
