//! `tidemark-agent`: one per node; fronts local volumes, keeps their log, ships it to the peer site.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use tidemark_agent::app;
use tidemark_agent::config::Config;
use tidemark_agent::telemetry::init_logging;
use tokio::signal::unix::{SignalKind, signal};

/// Node-level block replication: fronts local volumes, keeps their log and ships it to the peer site.
#[derive(Debug, Parser)]
#[command(name = "tidemark-agent", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, short, default_value = "/etc/tidemark/agent.toml", env = "TIDEMARK_CONFIG")]
    config: PathBuf,
    /// Check the configuration file and end: 0 when it is good, 1 with every mistake named.
    #[arg(long)]
    check_config: bool,
}

fn main() -> std::process::ExitCode {
    match start(&Arguments::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            // The one place where an error meets a person directly: the log may not be set up yet.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("tidemark-agent: {error:#}\n"));
            std::process::ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    if arguments.check_config {
        return Ok(());
    }
    init_logging(&config.log).context("set up the log")?;
    // One cryptographic provider per process, before anything can ask for another.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .context("start the control runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        app::run(config, stop).await.context("the agent does not run")
    })
}
