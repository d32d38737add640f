//! [`Folder`] on Unix.
//!
//! Files are opened relative to the opened folder: the folder that was checked is the one that is used,
//! whatever becomes of its path. No link is followed but those that lead to the folder itself.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::unix::fs::fchown,
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, renameat, statat,
        unlinkat,
    },
    io::Errno,
    path::Arg,
    process::geteuid,
};

use super::{file_error::FileError, found::Found};

/// The folder of a store, opened and checked.
pub(super) struct Folder {
    path: PathBuf,
    opened: OwnedFd,
    stat: Stat,
}

impl Folder {
    /// Opens the folder; `None` if it does not exist.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, FileError> {
        match open_folder(CWD, path) {
            Ok(opened) => Self::check(path, opened).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => {
                let remedy = "choose a folder that this user may read and write";
                Err(FileError::failed("open the folder", path, remedy, error))
            }
        }
    }

    /// Opens the folder, and creates it before that if it does not exist.
    pub(super) fn create(path: &Path) -> Result<Self, FileError> {
        let opened = create_folder(path).map_err(|error| {
            let remedy = "choose a folder that this user may create and write";
            FileError::failed("create the folder", path, remedy, error)
        })?;
        Self::check(path, opened)
    }

    /// A user who may write the folder, or owns it, can replace each file in it. Root may use the folder of
    /// any user, and gives that user the files that it creates.
    fn check(path: &Path, opened: OwnedFd) -> Result<Self, FileError> {
        let stat = fstat(&opened).map_err(|error| {
            FileError::failed("examine the folder", path, "choose another folder", error)
        })?;
        let user = geteuid().as_raw();
        if user != 0 && stat.st_uid != user && stat.st_uid != 0 {
            let reason = format!("the folder belongs to another user (uid {})", stat.st_uid);
            let remedy = "choose a folder of this user, or give it to this user with `chown`";
            return Err(FileError::refused(path, &reason, remedy));
        }
        if others_may_write(&stat) {
            let reason = "other users may write into the folder";
            let remedy = "take that right away with `chmod go-w`, or choose a folder within it";
            return Err(FileError::refused(path, reason, remedy));
        }
        Ok(Self { path: path.to_owned(), opened, stat })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file to read it.
    pub(super) fn read(&self, name: &str) -> io::Result<Found> {
        self.find(name, OFlags::RDONLY)
    }

    /// Opens a file to lock it. Some file systems lock a file only for those who may write it.
    pub(super) fn lockable(&self, name: &str) -> io::Result<Found> {
        self.find(name, OFlags::RDWR)
    }

    fn find(&self, name: &str, access: OFlags) -> io::Result<Found> {
        // With NONBLOCK a named pipe does not hold up the caller. A regular file does not care.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let error = match openat(&self.opened, name, flags, Mode::empty()) {
            Ok(file) => {
                let fault = self.fault(&fstat(&file)?);
                return Ok(fault.map_or_else(|| Found::File(file.into()), Found::Unusable));
            }
            Err(Errno::NOENT) => return Ok(Found::Absent),
            Err(error) => error,
        };
        // A link, a socket, a file of root: each has another error, and on another system yet another.
        let stat = statat(&self.opened, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| error)?;
        let denied = matches!(error, Errno::ACCESS | Errno::PERM);
        let fault = self.fault(&stat).or(denied.then_some("this user may not open it"));
        fault.map(Found::Unusable).ok_or(error.into())
    }

    /// The reason why a file is not one of ours.
    fn fault(&self, stat: &Stat) -> Option<&'static str> {
        let owners = [geteuid().as_raw(), 0, self.stat.st_uid];
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => Some("it is a symbolic link"),
            FileType::RegularFile if !owners.contains(&stat.st_uid) => {
                Some("it belongs to another user")
            }
            FileType::RegularFile if others_may_write(stat) => Some("other users may write it"),
            FileType::RegularFile => None,
            _ => Some("it is not a regular file"),
        }
    }

    /// Creates a file that does not exist yet, and that only the owner of the folder can read.
    pub(super) fn create_new(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.opened, name, flags, Mode::RUSR | Mode::WUSR)?;
        hand_over(&file, &self.stat);
        Ok(file.into())
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.opened, from, &self.opened, to)?)
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.opened, name, AtFlags::empty())?)
    }

    /// Returns whether `file` is still the file of this name.
    pub(super) fn holds(&self, name: &str, file: &File) -> bool {
        let named = statat(&self.opened, name, AtFlags::SYMLINK_NOFOLLOW);
        let (Ok(named), Ok(opened)) = (named, fstat(file)) else { return false };
        (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
    }
}

fn others_may_write(stat: &Stat) -> bool {
    Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH)
}

fn open_folder(parent: impl AsFd, path: impl Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(parent, path, flags, Mode::empty())
}

/// Opens the folder, and creates it and its parents if they do not exist.
fn create_folder(path: &Path) -> io::Result<OwnedFd> {
    match open_folder(CWD, path) {
        Err(Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::NOENT.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent = create_folder(parent)?;
    match mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) => hand_over_folder(&parent, name)?,
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(open_folder(&parent, name)?)
}

/// Gives a folder that root has just created to the owner of its parent. Without that a run as root
/// would lock the user out of the user's own cache.
fn hand_over_folder(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(parent, name, flags, Mode::empty())?;
    // The owner of the parent may have put another folder of root in its place. An empty one is worth
    // nothing.
    let is_empty = Dir::read_from(&folder)?
        .all(|entry| entry.is_ok_and(|entry| matches!(entry.file_name().to_bytes(), b"." | b"..")));
    if is_empty {
        hand_over(&folder, &fstat(parent)?);
    }
    Ok(())
}

/// Gives what root has just created to the owner of the folder that contains it. Some file systems know
/// no owners: there it fails, and does not matter.
fn hand_over(created: &OwnedFd, to: &Stat) {
    if geteuid().is_root() && to.st_uid != 0 {
        let _ = fchown(created, Some(to.st_uid), Some(to.st_gid));
    }
}
