//! Over real servers, in folders of their own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{ConnectOptions, Connection, postgres::PgConnectOptions};

use super::{Cluster, DataDir, Durability, identity::Identity};
use crate::{db::Failure, kernel::Clock};

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("fermata-{name}-{}", std::process::id()));
    drop(fs::remove_dir_all(&dir));
    dir
}

async fn start(path: &Path) -> Result<Cluster, Failure> {
    Cluster::start(DataDir::claim(path, &Clock::system())?, Durability::None).await
}

async fn ask(options: &PgConnectOptions, query: &'static str) -> sqlx::Result<String> {
    let mut connection = options.connect().await?;
    let answer = sqlx::query_scalar(query).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(answer)
}

fn postmaster(pg: &Path) -> Pid {
    let text = fs::read_to_string(pg.join("postmaster.pid")).unwrap();
    Pid::from_raw(text.lines().next().unwrap().trim().parse().unwrap()).unwrap()
}

#[tokio::test]
async fn an_abandoned_server_is_replaced_and_its_data_is_kept() {
    let path = scratch("recovery");
    let first = start(&path).await.unwrap();
    assert_eq!(ask(&first.app_options(), "select current_user::text").await.unwrap(), "fermata_app");
    assert_eq!(ask(&first.admin_options(), "select current_user::text").await.unwrap(), "fermata_owner");
    sqlx::raw_sql("create table kept as select 'data'::text as v")
        .execute(&mut first.admin_options().connect().await.unwrap())
        .await
        .unwrap();
    assert!(matches!(start(&path).await, Err(Failure::Held(_))));
    let pg = path.join("pg");
    // As when this process is killed: nobody stops the server, and the lock is free.
    first.abandon().await;
    let orphan = postmaster(&pg);
    let second = start(&path).await.unwrap();
    assert_ne!(postmaster(&pg), orphan);
    assert_eq!(ask(&second.admin_options(), "select v from kept").await.unwrap(), "data");

    // As when everything is killed and the process id is another program's by now.
    second.abandon().await;
    let server = postmaster(&pg);
    let stale = fs::read_to_string(pg.join("postmaster.pid")).unwrap();
    kill_process(server, Signal::KILL).unwrap();
    super::orphan::stop(&pg).await.unwrap();
    let recycled = stale.replacen(&server.to_string(), &std::process::id().to_string(), 1);
    fs::write(pg.join("postmaster.pid"), recycled).unwrap();
    let third = start(&path).await.unwrap();
    assert_eq!(ask(&third.admin_options(), "select v from kept").await.unwrap(), "data");
    let socket_dir = third.socket_dir().to_owned();
    third.stop().await.unwrap();
    assert!(!pg.join("postmaster.pid").exists() && !socket_dir.exists());
    fs::remove_dir_all(&path).unwrap();
}

#[tokio::test]
async fn a_server_that_dies_alone_is_started_again() {
    let path = scratch("keeper");
    let cluster = start(&path).await.unwrap();
    let first = postmaster(&path.join("pg"));
    kill_process(first, Signal::KILL).unwrap();
    // A connection can be had again only from a new server.
    while ask(&cluster.app_options(), "select 'up'").await.is_err() || postmaster(&path.join("pg")) == first {
        tokio::task::yield_now().await;
    }
    cluster.stop().await.unwrap();
    fs::remove_dir_all(&path).unwrap();
}

#[tokio::test]
async fn root_may_also_run_it_under_an_account() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let path = scratch("account");
    let dir = DataDir::claim(&path, &Clock::system()).unwrap();
    let account = Identity::account().unwrap();
    let cluster = Cluster::start_as(account, dir, Durability::None).await.unwrap();
    assert!(cluster.notice().unwrap().contains("namespaces are refused"));
    assert_eq!(ask(&cluster.app_options(), "select 'up'").await.unwrap(), "up");
    cluster.stop().await.unwrap();
    // And then, where they are not, in one: the files change hands.
    let cluster = start(&path).await.unwrap();
    assert_eq!(ask(&cluster.app_options(), "select 'up'").await.unwrap(), "up");
    cluster.stop().await.unwrap();
    fs::remove_dir_all(&path).unwrap();
}
