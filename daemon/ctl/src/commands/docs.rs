//! Completions and manual pages, made from the definition of the command line.

use std::io;
use std::path::Path;

use clap::CommandFactory as _;

use crate::cli::{Cli, Completions, Man};
use crate::failure::Failure;
use crate::output::Printer;

/// Prints the completions of a shell.
pub(super) fn completions(args: &Completions, printer: &Printer) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tidemark", &mut script);
    printer.write(&String::from_utf8_lossy(&script))
}

/// Prints the first page, or writes all of them.
pub(super) fn man(args: &Man, printer: &Printer) -> Result<(), Failure> {
    match &args.dir {
        Some(dir) => write_pages(dir)
            .map_err(|source| Failure::Local { verb: format!("write the manual to {}", dir.display()), source }),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            printer.write(&String::from_utf8_lossy(&page))
        }
    }
}

fn write_pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command(), dir)
}
