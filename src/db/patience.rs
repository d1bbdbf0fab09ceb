use std::time::Duration;

use crate::kernel::{Problem, Result};

/// Asks the database, again and again while it is away. What is asked must bear asking twice; whoever does not want to
/// wait any longer drops this.
///
/// # Errors
/// Those of `ask`, but for its being away.
pub async fn patiently<T, F: Future<Output = Result<T>>>(ask: impl Fn() -> F) -> Result<T> {
    let mut pause = Duration::from_millis(50);
    loop {
        match ask().await {
            Err(error) if error.problem() == Problem::Unavailable => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            answered => return answered,
        }
    }
}
