//! The API's description and the pages it points to.

use std::{collections::BTreeSet, fs};

use fermata::kernel::Problem;
use serde_json::Value;

use crate::world::{Operation, World, document};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

#[tokio::test]
async fn the_committed_description_is_the_servers() {
    let committed = fs::read_to_string(format!("{HERE}/openapi/openapi.yaml")).unwrap_or_default();
    let current = fermata::app::openapi().unwrap().to_yaml().unwrap();
    assert!(
        committed.trim_end() == current.trim_end(),
        "openapi/openapi.yaml is not what the server says: write it anew with\n\n    \
         cargo run -- openapi > openapi/openapi.yaml\n"
    );
}

#[tokio::test]
async fn the_server_serves_its_description_and_shows_it() {
    let world = World::new().await;
    let served = world.nobody().get("/openapi.json").await.expect(200);
    assert_eq!(&served, document());
    let page = world.nobody().get("/docs/").await;
    page.expect(200);
    assert!(page.text().contains("swagger-ui"), "{}", page.text());
}

#[tokio::test]
async fn every_problem_has_its_page_and_every_page_its_problem() {
    let world = World::new().await;
    for problem in Problem::ALL {
        let page = world.nobody().get(&format!("/docs/problems/{}", problem.slug())).await;
        page.expect(200);
        assert!(page.text().contains(problem.title()), "{}", page.text());
    }
    let slugs: BTreeSet<_> = Problem::ALL.iter().map(|problem| problem.slug().to_owned()).collect();
    let files = fs::read_dir(format!("{HERE}/docs/problems")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let pages: BTreeSet<_> =
        names.filter_map(|n| n.strip_suffix(".md").map(str::to_owned)).filter(|n| n != "README").collect();
    assert_eq!(pages, slugs);
}

#[test]
fn every_operation_is_described_for_people() {
    for operation in Operation::all() {
        let described = operation.described;
        assert!(described["summary"].as_str().is_some_and(|text| !text.is_empty()), "{} has no summary", operation.id);
        assert!(described["tags"].as_array().is_some_and(|tags| tags.len() == 1), "{} has no tag", operation.id);
        if let Some(content) = described["requestBody"]["content"].as_object() {
            assert!(content.values().all(|body| body["example"] != Value::Null), "{} has no example", operation.id);
        }
        let content = described["requestBody"]["content"].get("application/json");
        if let (Some(content), Some(body)) = (content, operation.body()) {
            let faults = crate::world::faults(&content["schema"], &body);
            assert!(faults.is_empty(), "the example of {} does not fit its own schema: {faults:#?}", operation.id);
        }
    }
}
