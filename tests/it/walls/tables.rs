//! Every table the catalogue has, by every verb, for everybody who did not name the row's tenant.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row,
    postgres::{PgConnectOptions, PgQueryResult},
};

use fermata::app::Role;
use reqwest::Method;

use crate::world::{Client, Mcp, Oauth, Revision, World};

/// Tables without tenants. This list may only shrink.
const TENANTLESS: [&str; 2] = ["seaql_migrations", "workers"];

/// Refused by a policy, a grant or the policy's own function.
const FORBIDDEN: &str = "42501";

/// A setting that cannot be read as tenants.
const UNREADABLE: &str = "22P02";

const VERBS: [&str; 4] = ["select", "insert", "update", "delete"];

/// A table with a tenant in it.
struct Table {
    name: String,
    columns: Vec<String>,
    /// One of the victim's rows, as JSON.
    row: Value,
}

impl Table {
    /// All there are, whatever their kind and wherever they are: a partition too is a way to its rows.
    async fn all(superuser: &mut PgConnection, victim: &str) -> Vec<Self> {
        let catalogue = "
            select format('%I.%I', n.nspname, c.relname) as name, c.relname::text as plain,
                   array_agg(a.attname::text order by a.attnum) as columns
            from pg_class c
            join pg_namespace n on n.oid = c.relnamespace
            join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname not in ('pg_catalog', 'information_schema')
            group by 1, 2 order by 1";
        let (mut tables, mut without) = (Vec::new(), Vec::new());
        for found in sqlx::query(catalogue).fetch_all(&mut *superuser).await.unwrap() {
            let (name, columns): (String, Vec<String>) = (found.get("name"), found.get("columns"));
            if !columns.iter().any(|column| column == "tenant_id") {
                without.push(found.get::<String, _>("plain"));
                continue;
            }
            let row = format!("select to_jsonb(t) from {name} t where tenant_id = '{victim}' limit 1");
            let row = sqlx::query_scalar(AssertSqlSafe(row)).fetch_optional(&mut *superuser).await.unwrap();
            let row = row.unwrap_or_else(|| panic!("{name} is empty: make `lived_in` write to it"));
            tables.push(Self { name, columns, row });
        }
        assert_eq!(without, TENANTLESS);
        tables
    }

    /// What is tried on the victim's rows. An update names the columns one by one, as grants do.
    fn attempts(&self, verb: &str, victim: &str) -> Vec<String> {
        let Self { name, columns, row } = self;
        let whose = format!("where tenant_id = '{victim}'");
        match verb {
            "select" => vec![format!("select tenant_id from {name} {whose}")],
            "insert" => {
                let row = row.to_string().replace('\'', "''");
                vec![format!("insert into {name} select * from jsonb_populate_record(null::{name}, '{row}')")]
            }
            "update" => columns.iter().map(|c| format!("update {name} set {c} = {c} {whose}")).collect(),
            _ => vec![format!("delete from {name} {whose}")],
        }
    }
}

/// Leaves a row of a tenant in every table.
async fn lived_in(client: &Client, decider: &Client, admin: &Client) {
    // What waits has reserved, and what costs is in the books.
    admin.request(Method::PUT, "/usage/budget").json(&json!({ "toolCalls": 1000 })).send().await.expect(200);
    // An output that is too large for its event has a row.
    let large = "x".repeat(100_000);
    let definition = format!(
        "name: held\nsteps: [{{ id: a, uses: debug.echo, approval: {{ cost: 1 }} }},
        {{ id: nap, uses: time.wait, with: {{ for: 20d }} }},
        {{ id: large, uses: debug.echo, forEach: [1, 2, 3], with: {{ value: {large} }} }},
        {{ id: b, needs: [a, large], uses: debug.echo, approval: {{}} }}]"
    );
    client.put_yaml("held", &definition).await.expect(201);
    for (path, body) in [
        ("/llm/configs/held", json!({ "provider": "openai", "model": "m" })),
        ("/llm/keys/held", json!({ "secret": "sk-1" })),
    ] {
        admin.request(Method::PUT, path).json(&body).send().await.expect(201);
    }
    // A tool that changed since it was pinned has a row.
    let server = Mcp::start(Revision::Newer).await;
    admin.request(Method::PUT, "/tools/mcp/held").json(&json!({ "url": server.url() })).send().await.expect(201);
    server.change("echo", "description", json!("Another."));
    client.start(json!([{ "id": "a", "uses": "mcp:held/echo", "with": {} }])).await.wait_end().await;
    // So has an authorization that was begun.
    let server = Mcp::guarded(Revision::Newer, &Oauth::start().await).await;
    admin.request(Method::PUT, "/integrations/held").json(&json!({ "url": server.url() })).send().await.expect(201);
    let back = json!({ "redirectUrl": "http://127.0.0.1:4711/" });
    admin.post("/integrations/held/oauth/authorize", &back).await.expect(200);
    let body = json!({ "workflow": "held" });
    let run = client.request(Method::POST, "/agent/execute").json(&body).key("a-key").send().await.expect(202);
    let run = client.run(run["runId"].as_str().unwrap());
    decider.approve(&run.hold().await).await;
    run.wait_for_step("awaiting_approval", "b").await;
    client.request(Method::POST, "/workflow/events/ticket").send().await.expect(201);
    client.start(json!([{ "id": "a", "uses": "debug.echo" }])).await.completes().await;
}

/// Drops the runs that have ended, which leaves marks in the tenants' streams.
async fn forget(world: &World) {
    world.advance(Duration::from_secs(1));
    let mut tx = world.database().system().await.unwrap();
    let query = sqlx::query_scalar::<_, i64>("select forget_runs($1, 1000)").bind(world.now());
    assert!(query.fetch_one(tx.conn()).await.unwrap() > 0);
    tx.commit().await.unwrap();
}

/// Everything in these tables, in a word.
async fn contents(superuser: &mut PgConnection, tables: &[Table]) -> Vec<(String, i64, Option<String>)> {
    let mut all = Vec::new();
    for Table { name, .. } in tables {
        let digest = format!("select count(*), md5(string_agg(t::text, '' order by t::text)) from {name} t");
        let (rows, digest) = sqlx::query_as(AssertSqlSafe(digest)).fetch_one(&mut *superuser).await.unwrap();
        all.push((name.clone(), rows, digest));
    }
    all
}

/// A session that is not on the list of tenants: what it says before each attempt.
fn settings(victim: &str, other: &str) -> Vec<(&'static str, String)> {
    let name = |tenants: &str| format!("select set_config('fermata.tenants', '{}', true)", tenants.replace('\'', "''"));
    let mut all = vec![
        ("no tenant", "select 1".to_owned()),
        ("no tenant, emptied", name("")),
        ("a foreign tenant", name(other)),
        ("a foreign tenant and no policies", format!("set local row_security = off; {}", name(other))),
        ("another setting", format!("select set_config('fermata.tenant', '{victim}', true)")),
    ];
    let forged = [
        "*",
        "all",
        "null",
        "{}",
        "%",
        "' or true --",
        &format!("{other},*"),
        &format!("{other},"),
        &format!("{other};{victim}"),
        &format!("{victim},x"),
    ];
    all.extend(forged.map(|forged| ("a forged setting", name(forged))));
    all
}

async fn attempt(session: &mut PgConnection, setting: &str, statement: &str) -> Result<PgQueryResult, String> {
    let mut tx = session.begin().await.unwrap();
    if let Err(refused) = tx.execute(sqlx::raw_sql(AssertSqlSafe(setting))).await {
        return Err(code(&refused));
    }
    let outcome = tx.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await;
    match outcome {
        Ok(outcome) => {
            // So that whatever it did is there to be found.
            tx.commit().await.unwrap();
            Ok(outcome)
        }
        Err(refused) => Err(code(&refused)),
    }
}

fn code(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(|error| error.code()).map_or_else(|| panic!("{error}"), Into::into)
}

async fn session(login: &PgConnectOptions) -> PgConnection {
    login.clone().connect().await.unwrap()
}

#[tokio::test]
async fn no_verb_reaches_a_row_of_a_tenant_that_was_not_named() {
    let world = World::without_worker(|_| ()).await;
    let worker = world.server(Role::Worker).await;
    lived_in(&world.operator(), &world.approver(), &world.admin()).await;
    let (stranger, friend) =
        (world.stranger(), world.grant(world.abroad(), "user_friend", vec![fermata::auth::Role::Approver], None));
    let boss = world.grant(world.abroad(), "user_boss", vec![fermata::auth::Role::Admin], None);
    lived_in(&stranger, &world.bearer(&friend), &world.bearer(&boss)).await;
    forget(&world).await;
    // From here on nobody writes but the attempts.
    worker.stop().await;
    let (victim, other) = (world.home().uuid().to_string(), world.abroad().uuid().to_string());
    let mut superuser = world.superuser().await;
    let tables = Table::all(&mut superuser, &victim).await;
    let before = contents(&mut superuser, &tables).await;
    let mut tried = 0;
    // The server's login has few grants; the owner has them all, and only the policies in its way.
    for (who, login) in [("the server", &world.logins().app), ("the owner", &world.logins().owner)] {
        let mut session = session(login).await;
        for table in &tables {
            for verb in VERBS {
                for statement in table.attempts(verb, &victim) {
                    for (how, setting) in settings(&victim, &other) {
                        let outcome = attempt(&mut session, &setting, &statement).await;
                        let kept = match &outcome {
                            Ok(done) => verb != "insert" && done.rows_affected() == 0,
                            Err(code) => [FORBIDDEN, UNREADABLE].contains(&code.as_str()),
                        };
                        assert!(kept, "{who} with {how} ({setting}): {statement}: {outcome:?}");
                        tried += 1;
                    }
                }
            }
        }
    }
    assert_eq!(contents(&mut superuser, &tables).await, before);
    println!("{tried} attempts on {} tables, none of which read or wrote anything", tables.len());
}

/// The proof above proves something: whoever names the tenant gets through the policies.
#[tokio::test]
async fn every_verb_reaches_the_rows_of_the_tenant_that_was_named() {
    let world = World::new().await;
    lived_in(&world.operator(), &world.approver(), &world.admin()).await;
    forget(&world).await;
    let (victim, other) = (world.home().uuid().to_string(), world.abroad().uuid().to_string());
    let tables = Table::all(&mut world.superuser().await, &victim).await;
    let mut owner = session(&world.logins().owner).await;
    let name = format!("select set_config('fermata.tenants', '{victim}', true)");
    for table in &tables {
        for verb in VERBS {
            for statement in table.attempts(verb, &victim) {
                let mut tx = owner.begin().await.unwrap();
                tx.execute(sqlx::raw_sql(AssertSqlSafe(name.clone()))).await.unwrap();
                let reached = match tx.execute(sqlx::raw_sql(AssertSqlSafe(statement.clone()))).await {
                    Ok(done) => done.rows_affected() > 0,
                    // Past the policy: the row is there already, or others refer to it.
                    Err(refused) => ["23505", "23503"].contains(&&*code(&refused)),
                };
                assert!(reached, "{statement}");
            }
        }
        // And not out of it: a row cannot be handed to another tenant.
        let give = format!("update {} set tenant_id = '{other}'", table.name);
        assert_eq!(attempt(&mut owner, &name, &give).await.unwrap_err(), FORBIDDEN, "{give}");
    }
}
