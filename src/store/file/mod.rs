//! [`FileStore`]: a store in a folder of one host.

mod default_folder;
mod entry;
mod file_error;
mod file_store;
#[cfg_attr(unix, path = "folder_unix.rs")]
#[cfg_attr(not(unix), path = "folder_other.rs")]
mod folder;
mod found;
mod life;
mod reports;

pub use self::file_store::FileStore;
