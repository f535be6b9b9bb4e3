//! The agent's own log lines: text for people or one JSON object per line, on standard error.

use std::io;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};

/// The environment variable that goes before the configuration.
const VARIABLE: &str = "TIDEMARK_LOG";

/// Why there are no log lines.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter cannot be parsed.
    #[error("{origin} = {filter:?}: {why}")]
    Filter {
        /// `TIDEMARK_LOG` or `log.level`.
        origin: &'static str,
        /// The filter.
        filter: String,
        /// What is wrong.
        why: String,
    },
    /// Somebody else has set up logging in this process.
    #[error("logging is set up already: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up logging for the whole process; the environment variable `TIDEMARK_LOG` goes before `log.level`.
///
/// # Errors
/// When the filter cannot be parsed, or logging is set up already.
pub fn init_logging(config: &LogConfig) -> Result<(), LoggingError> {
    let filter = filter(config, std::env::var(VARIABLE).ok())?;
    Ok(subscriber(config.format, filter, io::stderr).try_init()?)
}

fn filter(config: &LogConfig, variable: Option<String>) -> Result<EnvFilter, LoggingError> {
    let (origin, filter) = match variable.filter(|text| !text.is_empty()) {
        Some(text) => (VARIABLE, text),
        None => ("log.level", config.level.clone()),
    };
    EnvFilter::try_new(&filter).map_err(|error| LoggingError::Filter { origin, filter, why: error.to_string() })
}

fn subscriber<W>(format: LogFormat, filter: EnvFilter, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    match format {
        LogFormat::Text => Box::new(builder.finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(format: LogFormat, level: &str) -> String {
        let (lines, config) = (Lines::default(), LogConfig { format, level: level.to_owned() });
        let writer = lines.clone();
        let subscriber = subscriber(format, filter(&config, None).unwrap(), move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("volume", vol = "pg");
            let _entered = span.enter();
            tracing::info!(lsn = 7, "floor advanced");
            tracing::debug!("not at this level");
        });
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_is_one_object_per_line_with_its_span() {
        let text = lines(LogFormat::Json, "info");
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in ["\"message\":\"floor advanced\"", "\"lsn\":7", "\"vol\":\"pg\"", "\"level\":\"INFO\""] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn text_is_for_people() {
        let text = lines(LogFormat::Text, "info");
        assert!(text.contains("INFO volume{vol=\"pg\"}") && text.contains("floor advanced lsn=7"), "{text}");
        assert_eq!(lines(LogFormat::Text, "error"), "");
    }

    #[test]
    fn the_environment_goes_before_the_configuration() {
        let config = LogConfig { format: LogFormat::Text, level: "info".to_owned() };
        assert_eq!(filter(&config, Some("debug".to_owned())).unwrap().to_string(), "debug");
        assert_eq!(filter(&config, Some(String::new())).unwrap().to_string(), "info");
        let error = filter(&config, Some("a=b=c".to_owned())).unwrap_err().to_string();
        assert!(error.contains(VARIABLE), "{error}");
    }
}
