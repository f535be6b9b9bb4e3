//! `tidemark verify`: compares both copies, with a progress bar on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidemark_proto::admin as pb;
use tidemark_proto::admin::verify_response::Event;

use crate::cli::volume::Named;
use crate::client::{Client, Messages};
use crate::failure::{Exit, Failure};
use crate::output::Printer;
use crate::report::outcome::Comparison;

const BLOCK_BYTES: u64 = 4096;

pub(super) async fn run(Named { volume }: Named, client: &mut Client, printer: &Printer) -> Result<(), Failure> {
    let request = pb::VerifyRequest { volume: volume.clone() };
    let mut events = client.stream(request, async |admin, request| admin.verify(request).await).await?;
    let result = follow(&mut events).await?;
    printer.print(&result)?;
    if result.equal { Ok(()) } else { Err(differs(&volume)) }
}

async fn follow(events: &mut Messages<pb::VerifyResponse>) -> Result<Comparison, Failure> {
    let bar = bar();
    while let Some(message) = events.next().await? {
        match message.event {
            Some(Event::Progress(progress)) => {
                bar.set_length(progress.blocks_total.saturating_mul(BLOCK_BYTES));
                bar.set_position(progress.blocks_done.saturating_mul(BLOCK_BYTES));
            }
            Some(Event::Result(result)) => {
                bar.finish_and_clear();
                return Ok(result.into());
            }
            None => {}
        }
    }
    let message = "the comparison ended without a result".to_owned();
    Err(Failure::Unsatisfied { exit: Exit::Failed, message, hint: Some("run it again".to_owned()) })
}

/// Draws on stderr, and only when that is a terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = "comparing [{bar:40}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

fn differs(volume: &str) -> Failure {
    Failure::Unsatisfied {
        exit: Exit::Failed,
        message: format!("the copies of volume {volume} differ"),
        hint: Some("`tidemark reseed` at the secondary takes the primary's content anew".to_owned()),
    }
}
