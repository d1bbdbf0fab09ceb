//! The `fermata` binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use fermata::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        eprintln!("error: a TLS provider was installed twice");
        return ExitCode::FAILURE;
    }
    cli.run().await
}
