//! `tidemark log`: thin, everything is in [`crate::offline`].

use crate::cli::log::{Directory, Inspect, Log};
use crate::failure::{Exit, Failure};
use crate::offline::copy::VolumeCopy;
use crate::offline::replay::Replay;
use crate::offline::verify::Findings;
use crate::output::Printer;
use crate::report::log::{FrameSummary, Inspection, Verdict};

pub(super) fn run(command: Log, printer: &Printer) -> Result<(), Failure> {
    match command {
        Log::Inspect(args) => inspect(&args, printer),
        Log::Verify(args) => verify(&args, printer),
    }
}

fn inspect(args: &Inspect, printer: &Printer) -> Result<(), Failure> {
    let copy = VolumeCopy::open(&args.directory.dir)?;
    let mut frames = Vec::new();
    let replay = Replay::run(&copy, |frame| {
        if args.frames {
            frames.push(FrameSummary::from(frame));
        }
    })?;
    printer.print(&Inspection::new(&copy, &replay, frames))
}

fn verify(Directory { dir }: &Directory, printer: &Printer) -> Result<(), Failure> {
    let copy = VolumeCopy::open(dir)?;
    let replay = Replay::run(&copy, |_| {})?;
    let verdict = Verdict::new(&copy, &replay, Findings::of(&copy, &replay));
    printer.print(&verdict)?;
    if verdict.sound {
        return Ok(());
    }
    Err(Failure::Unsatisfied {
        exit: Exit::Failed,
        message: format!("the copy in {} is damaged", dir.display()),
        hint: Some("an agent repairs what it can from the peer; `tidemark reseed` takes everything anew".to_owned()),
    })
}
