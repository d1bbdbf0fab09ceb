//! Tools made from operations of OpenAPI documents.

use reqwest::Method;
use serde_json::{Value, json};

use crate::world::{Answer, Client, Upstream, World};

async fn put(client: &Client, name: &str, body: &Value) -> Answer {
    client.request(Method::PUT, &format!("/tools/http/{name}")).json(body).send().await
}

fn with(body: Value, more: Value) -> Value {
    let mut whole = body;
    whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    whole
}

async fn test(client: &Client, tool: &str, arguments: Value) -> Answer {
    let request = client.request(Method::POST, &format!("/tools/{tool}/test")).header("prefer", "wait=20");
    request.json(&json!({ "arguments": arguments })).send().await
}

/// A document as they are: parts by reference, one of them in itself, and words of version 3.0.
fn document() -> Value {
    json!({
        "openapi": "3.0.3",
        "info": { "title": "Shop", "version": "2" },
        "servers": [{ "url": "https://{region}.shop.example/v2/", "variables": { "region": { "default": "eu" } } }],
        "paths": {
            "/orders/{order}/refunds": {
                "parameters": [{ "$ref": "#/components/parameters/order" }],
                "post": {
                    "operationId": "createRefund",
                    "summary": "Refund an order",
                    "description": "In full or in part.",
                    "parameters": [
                        { "name": "notify", "in": "query", "schema": { "type": "boolean", "default": true } },
                        { "name": "tags", "in": "query", "schema": { "type": "array", "items": { "type": "string" } } },
                        { "name": "filter", "in": "query", "style": "deepObject", "schema": { "type": "object" } },
                        { "name": "X-Shop", "in": "header", "required": true, "description": "Which shop", "schema": { "type": "string" } },
                    ],
                    "requestBody": { "$ref": "#/components/requestBodies/refund" },
                    "responses": {
                        "400": { "description": "No" },
                        "201": { "$ref": "#/components/responses/refunded" },
                    },
                },
                "get": { "operationId": "listRefunds", "responses": { "200": { "description": "All" } } },
            },
            "/categories/{id}": {
                "put": {
                    "operationId": "putCategory",
                    "parameters": [{ "name": "id", "in": "path", "required": true, "schema": { "type": "integer" } }],
                    "requestBody": { "required": true, "content": { "application/json": { "schema": { "$ref": "#/components/schemas/category" } } } },
                    "responses": {},
                },
            },
            "/upload": {
                "post": {
                    "operationId": "upload",
                    "requestBody": { "required": true, "content": { "multipart/form-data": { "schema": {} } } },
                    "responses": {},
                },
                "put": {
                    "operationId": "elsewhere",
                    "requestBody": { "required": true, "content": { "application/json": { "schema": { "$ref": "other.json#/x" } } } },
                    "responses": {},
                },
            },
        },
        "components": {
            "parameters": { "order": { "name": "order", "in": "path", "required": true, "schema": { "type": "string" } } },
            "requestBodies": {
                "refund": {
                    "required": true,
                    "content": { "application/json; charset=utf-8": { "schema": { "$ref": "#/components/schemas/refund" } } },
                },
            },
            "responses": {
                "refunded": {
                    "description": "Done",
                    "content": { "application/json": { "schema": { "$ref": "#/components/schemas/refund" } } },
                },
            },
            "schemas": {
                "refund": {
                    "type": "object",
                    "required": ["id", "amount"],
                    "properties": {
                        "id": { "type": "string", "readOnly": true },
                        "amount": { "$ref": "#/components/schemas/money" },
                        "reason": { "type": "string", "nullable": true, "enum": ["broken", "late"] },
                    },
                },
                "money": { "type": "number", "minimum": 0, "exclusiveMinimum": true, "example": 5 },
                "category": {
                    "type": "object",
                    "properties": {
                        "id": { "type": "integer" },
                        "children": { "type": "array", "items": { "$ref": "#/components/schemas/category" } },
                    },
                },
            },
        },
    })
}

#[tokio::test]
async fn an_operation_of_an_openapi_document_is_a_tool() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let operator = world.operator();
    let import = |operation: &str, more: Value| with(json!({ "openapi": document(), "operationId": operation }), more);
    let derived = put(&operator, "shop.refund", &import("createRefund", json!({ "cost": 1 }))).await.expect(201);
    let body = &derived["body"];
    assert_eq!(
        body,
        &json!({
            "description": "Refund an order\n\nIn full or in part.",
            "method": "POST",
            "url": "https://eu.shop.example/v2/orders/{order}/refunds",
            "arguments": {
                "type": "object",
                "required": ["X-Shop", "order", "amount"],
                "additionalProperties": false,
                "properties": {
                    "order": { "type": "string" },
                    "notify": { "type": "boolean", "default": true },
                    "tags": { "type": "array", "items": { "type": "string" } },
                    "X-Shop": { "type": "string", "description": "Which shop" },
                    "amount": { "type": "number", "exclusiveMinimum": 0 },
                    "reason": { "type": ["string", "null"], "enum": ["broken", "late", null] },
                },
            },
            "query": ["notify", "tags"],
            "headers": { "X-Shop": "{X-Shop}" },
            "output": {
                "type": "object",
                "required": ["id", "amount"],
                "properties": {
                    "id": { "type": "string", "readOnly": true },
                    "amount": { "type": "number", "exclusiveMinimum": 0 },
                    "reason": { "type": ["string", "null"], "enum": ["broken", "late", null] },
                },
            },
            "effect": "once",
            "cost": 1.0,
        })
    );
    // Its words are overridden, and it runs.
    let more = json!({ "server": upstream.url("/v2"), "description": "Refunds", "effect": "repeatable" });
    let derived = put(&operator, "shop.refund", &import("createRefund", more)).await.expect(201);
    assert_eq!(
        (&derived["body"]["description"], &derived["body"]["effect"]),
        (&json!("Refunds"), &json!("repeatable"))
    );
    let arguments = json!({ "order": "7", "notify": false, "X-Shop": "s", "amount": 2.5, "reason": null });
    test(&operator, "shop.refund", arguments).await.expect(202);
    let [sent] = &upstream.requests_to("/v2/orders/7/refunds")[..] else { panic!("one request") };
    assert_eq!((sent.query.as_deref(), sent.header("x-shop")), (Some("notify=false"), Some("s")));
    assert_eq!(sent.json(), json!({ "amount": 2.5, "reason": null }));
    // A body that has a name of a parameter's in it, and is in itself.
    let derived = put(&operator, "shop.category", &import("putCategory", json!({ "server": upstream.url("") })))
        .await
        .expect(201);
    let body = &derived["body"];
    assert_eq!((&body["body"], &body["arguments"]["required"]), (&json!("body"), &json!(["id", "body"])));
    let inner = &body["arguments"]["properties"]["body"]["properties"]["children"]["items"];
    assert_eq!(inner, &json!({ "description": "As #/components/schemas/category, which it is in." }));
    test(&operator, "shop.category", json!({ "id": 3, "body": { "id": 3, "children": [{}] } })).await.expect(202);
    let [sent] = &upstream.requests_to("/categories/3")[..] else { panic!("one request") };
    assert_eq!(sent.json(), json!({ "id": 3, "children": [{}] }));
    for (body, field) in [
        (json!({ "openapi": document() }), "operationId"),
        (import("deleteRefund", json!({})), "operationId"),
        (import("upload", json!({})), "openapi"),
        (import("elsewhere", json!({})), "openapi"),
        (import("createRefund", json!({ "server": "/v2" })), "server"),
        (import("createRefund", json!({ "openapi": { "swagger": "2.0" } })), "openapi"),
    ] {
        let problem = put(&operator, "shop.other", &body).await.problem(422, "invalid-input");
        assert_eq!(problem["field"], field, "{problem}");
    }
}

/// A document in the words of version 3.1: types in lists, constants, numbers as exclusive bounds, what stands beside a
/// reference, and paths that are parts.
fn newer_document() -> Value {
    json!({
        "openapi": "3.1.1",
        "info": { "title": "Shop", "version": "3", "summary": "All of it" },
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "servers": [{ "url": "https://shop.example/v3" }],
        "webhooks": { "refunded": { "post": { "operationId": "refunded", "responses": {} } } },
        "paths": { "/orders/{order}/refunds": { "$ref": "#/components/pathItems/refunds" } },
        "components": {
            "pathItems": {
                "refunds": {
                    "post": {
                        "operationId": "createRefund",
                        "summary": "Refund an order",
                        "parameters": [
                            { "name": "order", "in": "path", "required": true, "schema": { "type": ["string", "integer"] } },
                            { "name": "dry", "in": "query", "schema": { "type": "boolean", "examples": [true] } },
                        ],
                        "requestBody": { "required": true, "content": {
                            "application/json": { "schema": { "$ref": "#/components/schemas/refund" } } } },
                        "responses": { "201": { "description": "Done", "content": { "application/problem+json": {
                            "schema": { "type": ["object", "null"], "required": ["id"] } } } } },
                    },
                },
            },
            "schemas": {
                "refund": {
                    "type": "object",
                    "required": ["amount", "kind"],
                    "properties": {
                        "amount": { "$ref": "#/components/schemas/money", "description": "At most what was paid" },
                        "kind": { "const": "refund" },
                        "reason": { "type": ["string", "null"], "enum": ["broken", null] },
                        "lines": { "type": "array", "prefixItems": [{ "type": "integer" }], "contains": { "type": "integer" } },
                    },
                },
                "money": { "type": "number", "exclusiveMinimum": 0, "examples": [5] },
            },
        },
    })
}

#[tokio::test]
async fn a_document_of_version_3_1_is_read_in_its_own_words() {
    let (world, upstream) = (World::new().await, Upstream::start().await);
    let operator = world.operator();
    let import = json!({ "openapi": newer_document(), "operationId": "createRefund", "server": upstream.url("/v3") });
    let derived = put(&operator, "shop.refund", &import).await.expect(201);
    let body = &derived["body"];
    assert_eq!((&body["description"], &body["query"]), (&json!("Refund an order"), &json!(["dry"])));
    assert_eq!(body["url"], upstream.url("/v3/orders/{order}/refunds"));
    let arguments = json!({
        "type": "object",
        "required": ["order", "amount", "kind"],
        "additionalProperties": false,
        "properties": {
            "order": { "type": ["string", "integer"] },
            "dry": { "type": "boolean" },
            "amount": { "type": "number", "exclusiveMinimum": 0, "description": "At most what was paid" },
            "kind": { "const": "refund" },
            "reason": { "type": ["string", "null"], "enum": ["broken", null] },
            "lines": { "type": "array", "prefixItems": [{ "type": "integer" }], "contains": { "type": "integer" } },
        },
    });
    assert_eq!(body["arguments"], arguments);
    assert_eq!(body["output"], json!({ "type": ["object", "null"], "required": ["id"] }));
    // Its schemas count when it is called.
    let good = json!({ "order": 7, "amount": 2.5, "kind": "refund", "reason": null, "lines": [1, "x"] });
    for (change, field) in [
        (json!({ "amount": 0 }), "arguments.amount"),
        (json!({ "kind": "gift" }), "arguments.kind"),
        (json!({ "reason": "late" }), "arguments.reason"),
        (json!({ "lines": ["x"] }), "arguments.lines"),
        (json!({ "order": true }), "arguments.order"),
    ] {
        let problem = test(&operator, "shop.refund", with(good.clone(), change)).await.problem(422, "invalid-input");
        assert!(problem["field"].as_str().unwrap().starts_with(field), "{problem}");
    }
    let held = test(&operator, "shop.refund", good).await.expect(202);
    world.approver().approve(held["pendingApprovals"][0].as_str().unwrap()).await;
    operator.run(held["runId"].as_str().unwrap()).completes().await;
    let [sent] = &upstream.requests_to("/v3/orders/7/refunds")[..] else { panic!("one request") };
    assert_eq!(sent.json(), json!({ "amount": 2.5, "kind": "refund", "reason": null, "lines": [1, "x"] }));
    let refused = with(import, json!({ "operationId": "refunded" }));
    let problem = put(&operator, "shop.other", &refused).await.problem(422, "invalid-input");
    assert_eq!(problem["field"], "operationId", "what others call is none: {problem}");
}
