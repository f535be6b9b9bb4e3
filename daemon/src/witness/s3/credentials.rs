//! Who the agent is at its object store: a file, or the environment. The secret goes into signatures alone, never into a log or an
//! error.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use object_store::CredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};

use super::WitnessError;
use crate::lock::lock;

/// The most bytes of a file of credentials.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// The names that a file has for what is needed; the environment has them in capitals.
const ID: &str = "aws_access_key_id";
const SECRET: &str = "aws_secret_access_key";
const TOKEN: &str = "aws_session_token";

/// Reads the file anew when it has changed, so that keys are renewed while the agent runs.
#[derive(Debug)]
struct FromFile {
    path: PathBuf,
    read: Mutex<(Option<SystemTime>, Arc<AwsCredential>)>,
}

/// Never changes.
#[derive(Debug)]
struct Fixed(Arc<AwsCredential>);

/// The credentials in the file at `path`; without one those of the environment.
///
/// # Errors
/// [`WitnessError::Refused`] when there are none.
pub(super) fn provider(path: Option<&Path>) -> Result<AwsCredentialProvider, WitnessError> {
    let Some(path) = path else {
        let variable = |name: &str| std::env::var(name.to_ascii_uppercase()).ok();
        let missing = |name: &str| format!("neither credentials nor {} in the environment", name.to_ascii_uppercase());
        return Ok(Arc::new(Fixed(Arc::new(found(variable, missing)?))));
    };
    let read = (changed(path), Arc::new(load(path)?));
    Ok(Arc::new(FromFile { path: path.to_owned(), read: Mutex::new(read) }))
}

#[tonic::async_trait]
impl CredentialProvider for Fixed {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(self.0.clone())
    }
}

#[tonic::async_trait]
impl CredentialProvider for FromFile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut read = lock(&self.read);
        let changed = changed(&self.path);
        if changed != read.0 {
            read.0 = changed;
            match load(&self.path) {
                Ok(anew) => read.1 = Arc::new(anew),
                Err(error) => tracing::warn!(%error, "changed credentials cannot be used; the old ones stay in force"),
            }
        }
        Ok(read.1.clone())
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

fn load(path: &Path) -> Result<AwsCredential, WitnessError> {
    let named = |error: std::io::Error| WitnessError::Refused(format!("{}: {error}", path.display()));
    let mut text = String::new();
    File::open(path).map_err(named)?.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(named)?;
    let value = |name: &str| default_section(&text).find_map(|(key, value)| (key == name).then(|| value.to_owned()));
    found(value, |name| format!("{}: no {name}", path.display()))
}

/// The keys and values of the section `[default]`, or of a file without sections.
fn default_section(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut is_default = true;
    text.lines().map(str::trim).filter_map(move |line| {
        if line.starts_with('[') {
            is_default = line == "[default]";
        }
        let (key, value) = line.split_once('=')?;
        (is_default && !line.starts_with('#')).then(|| (key.trim(), value.trim()))
    })
}

fn found(
    value: impl Fn(&str) -> Option<String>,
    missing: impl Fn(&str) -> String,
) -> Result<AwsCredential, WitnessError> {
    let need = |name: &str| {
        let value = value(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| WitnessError::Refused(missing(name)))
    };
    Ok(AwsCredential { key_id: need(ID)?, secret_key: need(SECRET)?, token: value(TOKEN) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_gives_its_default_section_and_is_read_again_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        let text = |id: &str| {
            format!("[other]\n{ID} = x\n{SECRET} = y\n[default]\n# {ID} = no\n{ID} = {id}\n{SECRET}=s=1\n{TOKEN} = t\n")
        };
        std::fs::write(&path, text("one")).unwrap();
        let provider = provider(Some(&path)).unwrap();
        let first = provider.get_credential().await.unwrap();
        let is = |id: &str| AwsCredential { key_id: id.into(), secret_key: "s=1".into(), token: Some("t".into()) };
        assert_eq!(*first, is("one"));
        std::thread::sleep(std::time::Duration::from_millis(20)); // a file's time has to differ
        std::fs::write(&path, text("two")).unwrap();
        assert_eq!(*provider.get_credential().await.unwrap(), is("two"));
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, "").unwrap();
        assert_eq!(*provider.get_credential().await.unwrap(), is("two"), "what cannot be used changes nothing");
    }

    #[test]
    fn what_a_file_lacks_is_named_without_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        std::fs::write(&path, format!("{SECRET} = hidden\n")).unwrap();
        let refused = provider(Some(&path)).err().unwrap().to_string();
        assert!(refused.contains(ID) && refused.contains("credentials") && !refused.contains("hidden"), "{refused}");
    }
}
