//! Writes the inputs that the corpora of `peer` and `admin` begin with: what a true peer says and good requests. Run from
//! tests/fuzz: `cargo +nightly run --bin seed`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let seeds = [
        ("peer", tidemark_agent::peer::exercise::seeds()),
        ("admin", tidemark_agent::control::exercise::seeds()),
    ];
    for (target, seeds) in seeds {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        std::fs::create_dir_all(&dir)?;
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}
