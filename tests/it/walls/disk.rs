//! A database whose disk is full: who asks is told so, and everything goes on once there is room again.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use fermata::kernel::Span;
use serde_json::json;

use crate::world::{Ground, World, within};

/// A small file system of its own for the database.
struct Disk {
    path: PathBuf,
}

impl Disk {
    const SIZE: &str = "size=160m,mode=0755";

    /// Needs the right to mount; its folder's caretaker unmounts it.
    fn mount(path: &Path) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", Self::SIZE, "fermata-disk"]).arg(path).status();
        status.is_ok_and(|status| status.success()).then(|| Self { path: path.to_owned() })
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Fills it to the last byte.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        for chunk in [1 << 20, 1 << 12, 1] {
            let bytes = vec![0; chunk];
            while file.write_all(&bytes).is_ok() {}
        }
    }

    fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_everything_goes_on_when_there_is_room() {
    let Some((ground, disk)) = Ground::apart(Disk::mount).await else {
        println!("not proved here: this user may not mount a file system");
        return;
    };
    let world = World::on(ground, |settings| settings.database.acquire_timeout = Span::seconds(1)).await;
    let client = world.operator();
    let held = client.start(json!([{ "id": "a", "uses": "debug.echo", "approval": {} }])).await;
    let approval = held.hold().await;
    let mut follow = held.follow().await;
    let large = json!({ "plan": [{ "id": "a", "uses": "debug.echo" }], "input": { "text": "x".repeat(100_000) } });
    let (mut taken, mut refused) = (Vec::new(), 0);
    for round in 0..2 {
        disk.fill();
        // Through the journal's last reserve too, where PostgreSQL itself gives up.
        while refused < 10 * (round + 1) {
            let answer = client.post("/agent/execute", &large).await;
            if answer.status == 202 {
                taken.push(client.run(answer.json()["runId"].as_str().unwrap()));
                continue;
            }
            answer.problem(503, "unavailable");
            assert!(answer.header("retry-after").is_some());
            refused += 1;
            world.nobody().get("/health").await.expect(200);
            let read = client.get("/workflow/runs").await;
            assert!([200, 503].contains(&read.status), "{}", read.text());
        }
        disk.empty();
        let back = async { while world.nobody().get("/health/ready").await.status != 200 {} };
        within("readiness", back).await;
        let run = within("a run that is taken", async {
            loop {
                let answer = client.post("/agent/execute", &large).await;
                if answer.status == 202 {
                    return client.run(answer.json()["runId"].as_str().unwrap());
                }
            }
        });
        taken.push(run.await);
    }
    // Whatever was said to be taken is there, and comes to its end; and streams stayed open.
    for run in &taken {
        run.completes().await;
    }
    world.approver().approve(&approval).await;
    follow.until("completed").await;
    println!("{} runs taken, all of them completed; {refused} requests refused", taken.len());
}
