//! Where a platform keeps what can be had again.

use std::{env, path::PathBuf};

use crate::error::ConfigError;

const NAME: &str = "tower-adobe-auth";

/// The folder for caches of this user, by the conventions of the platform.
pub(super) fn default() -> Result<PathBuf, ConfigError> {
    // A path that is not absolute is to be ignored, says the XDG Base Directory Specification.
    let folder = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        folder("HOME").map(|home| home.join("Library").join("Caches"))
    } else {
        folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))
    };
    caches.map(|caches| caches.join(NAME)).ok_or_else(|| {
        ConfigError::new(
            "the environment does not say where caches are kept: use `FileStore::in_folder`",
        )
    })
}
