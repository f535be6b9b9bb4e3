//! The result as tables for people, or as one JSON document.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};

use crate::bars::{BARS, Limit, Standing};
use crate::job::Job;
use crate::replication::Replication;
use crate::run::{Sample, Samples, Scale};
use crate::target::{Name, Target};

/// What a run has shown.
#[derive(Debug)]
pub struct Report {
    scale: Scale,
    samples: Samples,
    idle: Vec<(Name, u64)>,
    stream: Option<String>,
    replication: Replication,
}

impl Report {
    /// The report of a run.
    pub fn new(
        scale: Scale,
        samples: Samples,
        targets: &[Target],
        stream: Option<String>,
        replication: Replication,
    ) -> Self {
        let idle = targets.iter().map(|target| (target.name, target.idle_bytes)).collect();
        Self { scale, samples, idle, stream, replication }
    }

    fn median(&self, job: Job, name: Name) -> Option<Sample> {
        self.samples.get(&(job, name)).map(|samples| Sample::median(samples))
    }

    fn standings(&self) -> Vec<Standing> {
        BARS.iter().filter_map(|bar| bar.judge(|job, name| self.median(job, name))).collect()
    }

    /// True when every bar that could be judged holds.
    pub fn passes(&self) -> bool {
        self.standings().iter().all(|standing| standing.pass || standing.void)
    }

    /// The tables.
    pub fn tables(&self) -> String {
        let Scale { repeats, seconds, size } = self.scale;
        let mut parts =
            vec![format!("medians of {repeats} interleaved repeats of {seconds} s over {} MiB", size >> 20)];
        parts.extend(Job::ALL.iter().filter_map(|&job| self.job_table(job)));
        parts.extend(self.stream.as_ref().map(|table| format!("bare gRPC stream between two agents\n{table}")));
        parts.extend(Some(self.replication.lines().join("\n")).filter(|lines| !lines.is_empty()));
        parts.push(self.bars_table());
        parts.push(self.semantics());
        parts.join("\n\n")
    }

    fn job_table(&self, job: Job) -> Option<String> {
        let rows: Vec<(Name, Sample)> = self
            .samples
            .keys()
            .filter(|(of, _)| *of == job)
            .filter_map(|&(_, name)| Some((name, self.median(job, name)?)))
            .collect();
        let (raw, quorum) = (self.median(job, Name::Raw), self.median(job, Name::Quorum));
        let mut table = plain(&header(job));
        for (name, sample) in &rows {
            table.add_row(self.row(job, *name, sample, (raw, quorum)));
        }
        align(&mut table);
        (!rows.is_empty()).then(|| format!("{}\n{table}", job.title()))
    }

    fn row(
        &self,
        job: Job,
        name: Name,
        sample: &Sample,
        (raw, quorum): (Option<Sample>, Option<Sample>),
    ) -> Vec<String> {
        let ratio = |to: Option<Sample>| to.map_or("-".to_owned(), |to| format!("{:.2}", sample.iops / to.iops));
        let served = name != Name::Raw;
        let idle = self.idle.iter().find(|(of, _)| *of == name).map_or(0, |(_, bytes)| *bytes);
        let cpu = if job.is_streaming() { sample.cpu_per_gb } else { sample.cpu_per_100k };
        let rate = if job.is_streaming() { sample.bytes_per_second / 1e6 } else { sample.iops };
        let drained = if sample.iops > 0.0 { rate * sample.drained_iops / sample.iops } else { 0.0 };
        vec![
            name.title().to_owned(),
            format!("{rate:.0}"),
            ratio(raw),
            ratio(quorum),
            if job.writes() { format!("{drained:.0}") } else { "-".to_owned() },
            format!("{:.0}", sample.p50_us),
            format!("{:.0}", sample.p99_us),
            if served { format!("{cpu:.2}") } else { "-".to_owned() },
            if served {
                format!("{}/{:.0}", idle >> 20, sample.resident_bytes / f64::from(1 << 20))
            } else {
                "-".to_owned()
            },
            if sample.is_void() { "VOID: client stall".to_owned() } else { String::new() },
        ]
    }

    fn bars_table(&self) -> String {
        let mut table = plain(&["bar", "measured", "wanted", ""].map(str::to_owned));
        for standing in self.standings() {
            let wanted = match standing.limit {
                Limit::AtLeast(least) => format!(">= {least:.2}"),
                Limit::AtMost(most) => format!("<= {most:.2}"),
            };
            let word = verdict(&standing).to_owned();
            table.add_row(vec![standing.title, format!("{:.2}", standing.ratio), wanted, word]);
        }
        if table.row_count() == 0 {
            "no bar could be judged: its targets were not run".to_owned()
        } else {
            table.to_string()
        }
    }

    fn semantics(&self) -> String {
        let mut table = plain(&["what an answer means", ""].map(str::to_owned));
        for (name, _) in &self.idle {
            table.add_row(vec![name.title(), name.semantics()]);
        }
        table.to_string()
    }

    /// Medians and all samples.
    pub fn json(&self) -> Value {
        let rows = self.samples.iter().map(|(&(job, name), samples)| {
            json!({
                "job": job.title(), "target": name.title(), "semantics": name.semantics(),
                "median": sample_json(&Sample::median(samples)),
                "samples": samples.iter().map(sample_json).collect::<Vec<_>>(),
                "idleBytes": self.idle.iter().find(|(of, _)| *of == name).map(|(_, bytes)| bytes),
            })
        });
        let bars = self.standings().into_iter().map(|standing| {
            let (word, ratio) = (verdict(&standing), standing.ratio);
            json!({ "bar": standing.title, "ratio": ratio, "limit": format!("{:?}", standing.limit), "verdict": word })
        });
        json!({
            "repeats": self.scale.repeats, "seconds": self.scale.seconds, "sizeBytes": self.scale.size,
            "rows": rows.collect::<Vec<_>>(), "bars": bars.collect::<Vec<_>>(), "stream": self.stream,
            "replication": self.replication.json(),
        })
    }
}

fn verdict(standing: &Standing) -> &'static str {
    match (standing.void, standing.pass) {
        (true, _) => "VOID",
        (false, true) => "PASS",
        (false, false) => "FAIL",
    }
}

fn sample_json(sample: &Sample) -> Value {
    json!({
        "iops": sample.iops, "bytesPerSecond": sample.bytes_per_second, "drainedIops": sample.drained_iops,
        "p50Us": sample.p50_us, "p99Us": sample.p99_us, "cpuPer100k": sample.cpu_per_100k, "cpuPerGb": sample.cpu_per_gb,
        "residentBytes": sample.resident_bytes, "void": sample.is_void(),
    })
}

fn header(job: Job) -> Vec<String> {
    let (rate, drained, cpu) =
        if job.is_streaming() { ("MB/s", "drained MB/s", "CPU s/GB") } else { ("IOPS", "drained", "CPU s/100k") };
    ["target", rate, "x RAW", "x QQ", drained, "p50 us", "p99 us", cpu, "MiB idle/load", ""].map(str::to_owned).to_vec()
}

fn plain(header: &[String]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    table
}

fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
