//! The files of one key, and what is done with them. Everything here blocks.
//!
//! - `<key>.token`: the value, behind a line with its version and its end.
//! - `<key>.lease`: who has the lease, and the highest version that was granted.
//! - `<key>.<owner>.alive`: locked as long as the holder of the lease lives.
//! - `<key>.token.new`, `<key>.lease.new`: what is about to replace one of them.
//! - `<key>.lock`: locked by who changes one of them, for a moment.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use fs4::{FileExt, TryLockError};
use serde::{Deserialize, Serialize};
use tracing::warn;
use zeroize::Zeroizing;

use super::super::{Saved, StoredToken, is_sane};
use crate::{
    clock::{millis, unix_millis},
    error::BoxError,
};

/// What is longer is none of ours.
const LONGEST: u64 = 128 * 1024;

/// How long to wait while others change files: a process may have been stopped while it did. Who asks
/// has a limit of its own.
const PATIENCE: Duration = Duration::from_secs(4);

pub(super) struct Entry {
    folder: PathBuf,
    key: String,
}

/// What stands in `<key>.lease`.
#[derive(Default, Deserialize, Serialize)]
struct Leases {
    granted: u64,
    owner: Option<String>,
    /// When the lease ends: milliseconds since 1970. All processes have the clock of this host.
    until: u64,
}

impl Entry {
    pub(super) fn new(folder: &Path, key: &str) -> Result<Self, BoxError> {
        is_plain(key)?;
        Ok(Self { folder: folder.to_owned(), key: key.to_owned() })
    }

    pub(super) fn load(&self) -> Result<Option<StoredToken>, BoxError> {
        let kept = self.read_token()?;
        Ok(kept.filter(|(_, until)| *until > now()).map(|(token, _)| token))
    }

    pub(super) fn save(&self, token: &StoredToken) -> Result<Saved, BoxError> {
        let _changing = self.change()?;
        let kept = self.read_token()?;
        if kept.is_some_and(|(kept, _)| kept.version() >= token.version()) {
            return Ok(Saved::Superseded);
        }
        let ttl = token.ttl().unwrap_or(Duration::from_secs(86_400));
        let head = format!("{} {}\n", token.version(), now().saturating_add(millis(ttl)));
        self.replace("token", &[head.as_bytes(), token.value()])?;
        Ok(Saved::Saved)
    }

    /// When the value was replaced last.
    pub(super) fn stamp(&self) -> Option<SystemTime> {
        fs::metadata(self.path("token")).and_then(|metadata| metadata.modified()).ok()
    }

    /// The version of a new lease and the lock that its holder keeps, unless somebody has it.
    pub(super) fn lease(
        &self,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> Result<Option<(u64, File)>, BoxError> {
        is_plain(owner)?;
        let _changing = self.change()?;
        let leases = self.read_leases()?;
        if let Some(held) = &leases.owner {
            if leases.until > now() && self.is_alive(held)? {
                return Ok(None);
            }
            // Dead, or at the end of its lease.
            let _ = fs::remove_file(self.alive(held));
        }
        let kept = self.read_token()?.map_or(0, |(kept, _)| kept.version());
        let granted = leases.granted.max(kept).max(above).saturating_add(1);
        let until = now().saturating_add(millis(ttl));
        let leases = Leases { granted, owner: Some(owner.to_owned()), until };
        self.replace("lease", &[&serde_json::to_vec(&leases)?])?;
        // After that: whoever dies in between has a lease that another takes over.
        let lock = create(&self.alive(owner))?;
        FileExt::try_lock(&lock)?;
        Ok(Some((granted, lock)))
    }

    pub(super) fn release(&self, owner: &str) -> Result<(), BoxError> {
        is_plain(owner)?;
        let _changing = self.change()?;
        let leases = self.read_leases()?;
        if leases.owner.as_deref() == Some(owner) {
            // Before that: nobody would know of it who dies in between.
            let _ = fs::remove_file(self.alive(owner));
            let leases = Leases { owner: None, ..leases };
            self.replace("lease", &[&serde_json::to_vec(&leases)?])?;
        }
        Ok(())
    }

    /// The value, and when its time is over.
    fn read_token(&self) -> Result<Option<(StoredToken, u64)>, BoxError> {
        let path = self.path("token");
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let parsed = bytes.iter().position(|byte| *byte == b'\n').and_then(|end| {
            let (version, until) = std::str::from_utf8(&bytes[..end]).ok()?.split_once(' ')?;
            let (version, until) = (version.parse().ok()?, until.parse().ok()?);
            is_sane(version, now()).then(|| (StoredToken::new(version, &bytes[end + 1..]), until))
        });
        if parsed.is_none() {
            ignore(&path, "it cannot be read");
        }
        Ok(parsed)
    }

    fn read_leases(&self) -> Result<Leases, BoxError> {
        let path = self.path("lease");
        let Some(bytes) = read(&path)? else { return Ok(Leases::default()) };
        let leases: Option<Leases> = serde_json::from_slice(&bytes).ok();
        let leases = leases.filter(|leases| is_sane(leases.granted, now()));
        let leases = leases
            .filter(|leases| leases.owner.as_deref().is_none_or(|owner| is_plain(owner).is_ok()));
        Ok(leases.unwrap_or_else(|| {
            ignore(&path, "it cannot be read");
            Leases::default()
        }))
    }

    fn is_alive(&self, owner: &str) -> Result<bool, BoxError> {
        let file = OpenOptions::new().read(true).write(true).open(self.alive(owner));
        let Some(file) = if_there(file)? else { return Ok(false) };
        match FileExt::try_lock(&file) {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// The right to change the files, as long as it is kept.
    fn change(&self) -> Result<File, BoxError> {
        create_folder(&self.folder)?;
        let file = create(&self.path("lock"))?;
        let start = Instant::now();
        loop {
            match FileExt::try_lock(&file) {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                    sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return Err("its files are locked".into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Replaces a file in one step. Whoever does that has the right to change the files, so that one
    /// name is enough for the new one; what a process that was killed has left there goes first.
    ///
    /// It is not waited for until it lasts, which may take long while others wait for the lock: what
    /// is lost with the power costs one token request.
    fn replace(&self, kind: &str, parts: &[&[u8]]) -> Result<(), BoxError> {
        let new = self.path(&format!("{kind}.new"));
        let _ = fs::remove_file(&new);
        let written = write(&new, parts).and_then(|()| fs::rename(&new, self.path(kind)));
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        Ok(written?)
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.key))
    }

    fn alive(&self, owner: &str) -> PathBuf {
        self.path(&format!("{owner}.alive"))
    }
}

/// Names become parts of paths.
fn is_plain(name: &str) -> Result<(), BoxError> {
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if plain && name.len() <= 100 {
        Ok(())
    } else {
        Err("a name has letters and digits only".into())
    }
}

/// The file as a whole; nothing if it is not there, or is none of ours.
fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, BoxError> {
    // Before it is opened, which for a named pipe may not end.
    let Some(found) = if_there(fs::metadata(path))? else { return Ok(None) };
    if !found.is_file() {
        ignore(path, "it is no file");
        return Ok(None);
    }
    let Some(file) = if_there(File::open(path))? else { return Ok(None) };
    let metadata = file.metadata()?;
    let reason = match () {
        () if metadata.len() > LONGEST => "it is too long",
        () if others_may_write(&metadata) => "others may write it",
        () => {
            let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST as usize + 1));
            file.take(LONGEST).read_to_end(&mut bytes)?;
            return Ok(Some(bytes));
        }
    };
    ignore(path, reason);
    Ok(None)
}

fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn ignore(path: &Path, reason: &str) {
    let path = path.display();
    warn!(%path, reason, "a file of the token store is no good; it is ignored");
}

#[cfg(unix)]
fn others_may_write(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let ours = [rustix::process::geteuid().as_raw(), 0];
    !ours.contains(&metadata.uid()) || metadata.mode() & 0o022 != 0
}

#[cfg(not(unix))]
fn others_may_write(_metadata: &fs::Metadata) -> bool {
    false
}

#[cfg(unix)]
fn create_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn create_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)
}

/// An empty file to be locked, made if need be.
fn create(path: &Path) -> io::Result<File> {
    ours().create(true).truncate(false).open(path)
}

/// A file that is not there yet.
fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = ours().create_new(true).open(path)?;
    parts.iter().try_for_each(|part| file.write_all(part))
}

/// Only we can read it, from birth.
fn ours() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn now() -> u64 {
    unix_millis(SystemTime::now())
}
