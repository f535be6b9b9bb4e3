//! What a command prints: one value, as a table for people or as JSON or YAML for programs.
//!
//! The JSON and YAML names are lowerCamel and stable; the table is for eyes and may change.

use std::ffi::OsString;
use std::io::{self, Write as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, presets};
use serde::Serialize;

use crate::failure::Failure;

/// The format of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Format {
    /// Aligned columns, for people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Something that a command can print.
pub trait Report: Serialize {
    /// The text for people, without a line end at its end.
    fn table(&self, paint: Paint) -> String;
}

/// How a line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tone {
    /// As it is.
    Plain,
    /// Wants attention.
    Warning,
    /// Is wrong.
    Alarm,
}

/// Colours lines, or leaves them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paint(pub bool);

impl Paint {
    /// `line` in the colour of `tone`.
    pub fn line(self, tone: Tone, line: &str) -> String {
        match (self.0, tone) {
            (false, _) | (true, Tone::Plain) => line.to_owned(),
            (true, Tone::Warning) => format!("\x1b[33m{line}\x1b[0m"),
            (true, Tone::Alarm) => format!("\x1b[31m{line}\x1b[0m"),
        }
    }
}

/// Writes reports to stdout.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    format: Format,
    paint: Paint,
}

impl Printer {
    /// A printer; colours only in tables.
    pub fn new(format: Format, colour: bool) -> Self {
        Self { format, paint: Paint(colour) }
    }

    /// The wanted format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Prints `report` in the wanted format.
    ///
    /// # Errors
    /// [`Failure::Output`], [`Failure::ClosedPipe`], [`Failure::Format`].
    pub fn print(&self, report: &impl Report) -> Result<(), Failure> {
        self.write(&self.render(report)?)
    }

    /// Prints `report` as one line of JSON, or as its table: for streams of reports.
    ///
    /// # Errors
    /// As [`Self::print`].
    pub fn print_streamed(&self, report: &impl Report) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.write(&(serde_json::to_string(report).map_err(unformatted)? + "\n")),
            Format::Yaml => self.write(&format!("---\n{}", self.render(report)?)),
            Format::Table => self.print(report),
        }
    }

    /// The text of `report` in the wanted format, with a line end.
    ///
    /// # Errors
    /// [`Failure::Format`].
    pub fn render(&self, report: &impl Report) -> Result<String, Failure> {
        let mut text = match self.format {
            Format::Table => report.table(self.paint),
            Format::Json => serde_json::to_string_pretty(report).map_err(unformatted)?,
            Format::Yaml => serde_saphyr::to_string(report).map_err(unformatted)?,
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(text)
    }

    /// Writes `text` to stdout as it is.
    ///
    /// # Errors
    /// [`Failure::Output`], [`Failure::ClosedPipe`].
    pub fn write(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

fn unformatted(error: impl std::fmt::Display) -> Failure {
    Failure::Format(error.to_string())
}

/// Aligned columns under a header; every row has a tone.
pub struct Table {
    inner: comfy_table::Table,
    tones: Vec<Tone>,
}

impl Table {
    /// An empty table.
    pub fn new(header: &[&str]) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        inner.set_header(header.iter().copied());
        Self { inner, tones: vec![Tone::Plain] }
    }

    /// Adds a row.
    pub fn row(&mut self, tone: Tone, cells: impl IntoIterator<Item = String>) {
        // A cell with a line break would shift the tones.
        self.inner.add_row(cells.into_iter().map(|cell| cell.replace('\n', " ")));
        self.tones.push(tone);
    }

    /// The text.
    pub fn render(mut self, paint: Paint) -> String {
        for column in self.inner.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let tones = self.tones.iter().copied().chain(std::iter::repeat(Tone::Plain));
        let lines: Vec<_> =
            self.inner.lines().zip(tones).map(|(line, tone)| paint.line(tone, line.trim_end())).collect();
        lines.join("\n")
    }
}

/// `name: value` lines, values aligned; empty values are left out.
pub fn fields(pairs: &[(&str, String)]) -> String {
    let shown: Vec<_> = pairs.iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = shown.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
    let line = |(name, value): &&(&str, String)| format!("{:width$}  {value}", format!("{name}:"));
    shown.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// True when a command line that could not be parsed asks for JSON.
pub fn wants_json(args: &[OsString]) -> bool {
    let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let joined = args.iter().any(|arg| matches!(arg.as_ref(), "--output=json" | "-ojson" | "-o=json"));
    let split = |pair: &[std::borrow::Cow<'_, str>]| matches!(pair[0].as_ref(), "--output" | "-o") && pair[1] == "json";
    joined || args.windows(2).any(split)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_only_whole_lines_are_coloured() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(Tone::Plain, ["a".to_owned(), "fine".to_owned()]);
        table.row(Tone::Alarm, ["longer".to_owned(), "broken\nbadly".to_owned()]);
        let text = table.render(Paint(true));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "NAME    STATE");
        assert_eq!(lines[1], "a       fine");
        assert_eq!(lines[2], "\x1b[31mlonger  broken badly\x1b[0m");
    }

    #[test]
    fn json_is_seen_in_every_spelling_of_the_flag() {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for line in ["tidemark status -o json", "tidemark --output json x", "tidemark --output=json", "tidemark -ojson"]
        {
            assert!(wants_json(&args(line)), "{line}");
        }
        assert!(!wants_json(&args("tidemark volume show json -o yaml")));
    }
}
