//! Regenerates the code in `proto/src/gen`; called by `hack/gen-proto`.

#[path = "../tests/codegen/mod.rs"]
mod codegen;

use std::error::Error;
use std::fs;

fn main() -> Result<(), Box<dyn Error>> {
    // Into a fresh directory first: a failure leaves the old code, and a package that is gone leaves no file behind.
    let fresh = tempfile::tempdir()?;
    codegen::generate(fresh.path())?;
    let target = codegen::checked_in();
    fs::create_dir_all(&target)?;
    for old in fs::read_dir(&target)? {
        fs::remove_file(old?.path())?;
    }
    for new in fs::read_dir(fresh.path())? {
        let new = new?;
        fs::copy(new.path(), target.join(new.file_name()))?;
    }
    Ok(())
}
