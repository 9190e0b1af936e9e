//! Futures that are polled only when they can go on.
//!
//! `join!`, `select!` and kube's runner poll all they hold whenever one of them moves, and a request under way is costly to
//! poll: through a dozen layers of the client.

use std::{future::Future, panic::resume_unwind};

use tokio::task::JoinSet;

/// Runs a future as a task that ends with the returned one, whether that completes, is dropped or panics.
pub async fn apart<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let mut task = JoinSet::new();
    task.spawn(future);
    match task.join_next().await {
        Some(Ok(output)) => output,
        Some(Err(error)) if error.is_panic() => resume_unwind(error.into_panic()),
        // Cancelled, which only the end of the runtime does.
        Some(Err(_)) | None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::apart;

    #[tokio::test]
    async fn ends_with_its_owner() {
        let held = Arc::new(());
        let forever = {
            let held = Arc::clone(&held);
            apart(async move {
                std::future::pending::<()>().await;
                drop(held);
            })
        };
        assert!(tokio::time::timeout(Duration::from_millis(10), forever).await.is_err());
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn gives_what_the_future_gives() {
        assert_eq!(apart(async { 7 }).await, 7);
    }

    #[tokio::test]
    #[should_panic(expected = "inside")]
    async fn passes_a_panic_on() {
        apart(async { panic!("inside") }).await;
    }
}
