//! The folder for caches of this user, by the conventions of the platform.

use std::{env, path::PathBuf};

use crate::error::ConfigError;

const NAME: &str = "tower-adobe-auth";

pub(super) fn default_folder() -> Result<PathBuf, ConfigError> {
    // The XDG Base Directory Specification says that a relative path is to be ignored.
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
