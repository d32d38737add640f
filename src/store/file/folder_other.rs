//! [`Folder`] where files have no owner and no mode, as on Windows. There the folder for caches is only
//! accessible to its user.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::{file_error::FileError, found::Found};

/// The folder of a store.
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens the folder; `None` if it does not exist.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, FileError> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(Some(Self { path: path.to_owned() })),
            Ok(_) => {
                Err(FileError::refused(path, "it is not a folder", "choose the path of a folder"))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => {
                let remedy = "choose a folder that this user may read and write";
                Err(FileError::failed("open the folder", path, remedy, error))
            }
        }
    }

    /// Opens the folder, and creates it before that if it does not exist.
    pub(super) fn create(path: &Path) -> Result<Self, FileError> {
        fs::create_dir_all(path).map_err(|error| {
            let remedy = "choose a folder that this user may create and write";
            FileError::failed("create the folder", path, remedy, error)
        })?;
        Ok(Self { path: path.to_owned() })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file to read it.
    pub(super) fn read(&self, name: &str) -> io::Result<Found> {
        self.find(name, OpenOptions::new().read(true))
    }

    /// Opens a file to lock it.
    pub(super) fn lockable(&self, name: &str) -> io::Result<Found> {
        self.find(name, OpenOptions::new().read(true).write(true))
    }

    fn find(&self, name: &str, options: &OpenOptions) -> io::Result<Found> {
        let path = self.path(name);
        let found = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => return Ok(Found::Unusable("it is a link")),
            Ok(metadata) if metadata.is_file() => options.open(&path),
            Ok(_) => return Ok(Found::Unusable("it is not a regular file")),
            Err(error) => Err(error),
        };
        match found {
            Ok(file) => Ok(Found::File(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Found::Absent),
            Err(error) => Err(error),
        }
    }

    /// Creates a file that does not exist yet.
    pub(super) fn create_new(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).open(self.path(name))
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    /// Returns whether `file` is still the file of this name: here only what cannot be locked is replaced.
    pub(super) fn holds(&self, _name: &str, _file: &File) -> bool {
        true
    }
}
