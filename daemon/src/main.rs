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
    /// Disconnect the block devices that an agent which is gone left in the kernel, name them, and end: input and output that
    /// waits there fails, also of file systems that are mounted. Refused while an agent runs.
    #[arg(long, conflicts_with = "check_config")]
    end_devices: bool,
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
    #[cfg(feature = "__planted")]
    plant()?;
    // One cryptographic provider per process, before anything can ask for another.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .context("start the control runtime")?;
    if arguments.end_devices {
        return runtime.block_on(end_devices(&config));
    }
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

async fn end_devices(config: &Config) -> anyhow::Result<()> {
    let ended = app::end_devices(config).await.context("devices may be left")?;
    let mut out = std::io::stdout().lock();
    for device in ended {
        std::io::Write::write_fmt(&mut out, format_args!("{}\n", device.display()))?;
    }
    Ok(())
}

/// Breaks the rule that `TIDEMARK_PLANTED` names, so that the tests of whole agents can show that they would notice.
#[cfg(feature = "__planted")]
fn plant() -> anyhow::Result<()> {
    use tidemark_core::planted::{Planted, plant};
    let Some(name) = std::env::var_os("TIDEMARK_PLANTED") else { return Ok(()) };
    let bug = name.to_str().and_then(Planted::parse);
    let bug = bug.with_context(|| format!("no such planted bug: {}", name.display()))?;
    tracing::warn!(?bug, "this agent is built to lose data");
    plant(Some(bug));
    Ok(())
}
