//! [`FileError`]: a file or the folder of the store cannot be used.

use std::{error::Error, fmt, io, path::Path};

/// Names the path, the reason and the remedy.
#[derive(Debug)]
pub(super) struct FileError {
    message: String,
    source: Option<io::Error>,
}

impl FileError {
    /// A call of the operating system failed.
    pub(super) fn failed(
        action: &str,
        path: &Path,
        remedy: &str,
        source: impl Into<io::Error>,
    ) -> Self {
        let path = path.display();
        Self { message: format!("cannot {action} `{path}`; {remedy}"), source: Some(source.into()) }
    }

    /// The path may be used, but not safely.
    pub(super) fn refused(path: &Path, reason: &str, remedy: &str) -> Self {
        let path = path.display();
        Self { message: format!("`{path}` is not used, because {reason}; {remedy}"), source: None }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for FileError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
