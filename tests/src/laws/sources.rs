use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Violation;

/// The law of the source files: every published crate forbids unsafe code and inherits the workspace's lints, which deny
/// missing documentation.
///
/// `workspace` is the directory of the workspace's `Cargo.toml`. Returns how many crates there are.
///
/// # Errors
///
/// The law's name is `sources`, the subject the file.
pub fn sources(workspace: &Path) -> Result<usize, Violation> {
    let manifest = workspace.join("Cargo.toml");
    let lints = read(&manifest)?;
    demand(&manifest, &lints, r#"missing_docs = "deny""#)?;

    let crates = workspace.join("crates");
    let entries = fs::read_dir(&crates).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|error| broken(&crates, error.to_string()))?;
    for entry in &entries {
        let library = entry.path().join("src/lib.rs");
        demand(&library, &read(&library)?, "#![forbid(unsafe_code)]")?;
        let manifest = entry.path().join("Cargo.toml");
        demand(&manifest, &read(&manifest)?, "[lints]\nworkspace = true")?;
    }
    match entries.len() {
        0 => Err(broken(&crates, "there is no crate".to_owned())),
        crates => Ok(crates),
    }
}

fn read(file: &PathBuf) -> Result<String, Violation> {
    fs::read_to_string(file).map_err(|error| broken(file, error.to_string()))
}

fn demand(file: &Path, text: &str, line: &str) -> Result<(), Violation> {
    // A line of its own: one that is commented out begins otherwise.
    match text.starts_with(line) || text.contains(&format!("\n{line}")) {
        true => Ok(()),
        false => Err(broken(file, format!("it does not say {line:?}"))),
    }
}

fn broken(file: &Path, saw: String) -> Violation {
    Violation { law: "sources", subject: file.display().to_string(), saw }
}
