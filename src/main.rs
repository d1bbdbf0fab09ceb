//! The `fermata` binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use fermata::cli::Cli;

/// Keeps what is large and untouched apart from what is small, which the system's allocator does not.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider was installed twice");
        return ExitCode::FAILURE;
    }
    cli.run().await
}
