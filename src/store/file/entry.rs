//! [`Entry`]: the files of one key, and the steps of a store on them. Everything here blocks, but never
//! waits for another process.
//!
//! - `<key>.record`: the record, behind one line of JSON ([`Head`]).
//! - `<key>.lease`: the lease, and the highest fencing token that was granted.
//! - `<key>.<owner>.alive`: locked while the holder of the lease is alive.
//! - `<key>.lock`: locked during a step.
//! - `<key>.record.new`, `<key>.lease.new`: the next version of a file, until it is renamed.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use fs4::{FileExt, TryLockError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{
    super::{
        is_plausible,
        token_store::{Acquired, CommitOutcome, LeaseRequest, StoredRecord},
    },
    file_error::FileError,
    folder::Folder,
    found::Found,
    life::{Life, Now},
    reports::Reports,
};

/// The format of the files. A file of another format is ignored and replaced.
const FORMAT: u32 = 2;

/// The longest file in bytes. Records are shorter.
const MAX_LEN: u64 = 128 * 1024;

/// How long a record without a time to live is kept.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a lock file is opened again, because another process has replaced it meanwhile.
const MAX_REOPENS: u32 = 4;

const REMEDY: &str = "make sure that this user may read and write the folder and that the disk is not \
                      full, or remove the file";

/// The files of one key.
pub(super) struct Entry {
    folder: PathBuf,
    key: String,
    reports: Arc<Reports>,
}

/// The result of [`Entry::acquire`]. The lease is held as long as `alive` is.
pub(super) struct Grant {
    pub(super) acquired: Acquired,
    pub(super) alive: Option<File>,
}

/// The first line of a record.
#[derive(Deserialize, Serialize)]
struct Head {
    format: u32,
    fencing_token: u64,
    life: Life,
    /// The length of the value in bytes. A file that a crash has cut is shorter.
    len: usize,
}

/// The content of `<key>.lease`.
#[derive(Deserialize, Serialize)]
struct Lease {
    format: u32,
    /// The highest fencing token that was granted.
    granted: u64,
    holder: Option<Holder>,
}

#[derive(Deserialize, Serialize)]
struct Holder {
    owner: String,
    life: Life,
}

impl Default for Lease {
    fn default() -> Self {
        Self { format: FORMAT, granted: 0, holder: None }
    }
}

impl Entry {
    pub(super) fn new(folder: &Path, key: &str, reports: &Arc<Reports>) -> Result<Self, FileError> {
        check_name(folder, key)?;
        Ok(Self { folder: folder.to_owned(), key: key.to_owned(), reports: Arc::clone(reports) })
    }

    /// Reads the record. A file is replaced in one step, so reading it takes no lock.
    pub(super) fn read(&self) -> Result<Acquired, FileError> {
        let Some(folder) = Folder::open(&self.folder)? else { return Ok(Acquired::new(None)) };
        let kept = Files { entry: self, folder }.read_record()?;
        Ok(Acquired::new(kept.and_then(|kept| kept.at(&Now::read()))))
    }

    /// Reads the record, and grants the lease if nobody holds it and the caller has read the record.
    /// `None` if the files are locked.
    pub(super) fn acquire(&self, request: &LeaseRequest) -> Result<Option<Grant>, FileError> {
        let owner = request.owner();
        check_name(&self.folder, owner)?;
        let Some((files, _lock)) = self.lock()? else { return Ok(None) };
        let now = Now::read();
        let kept = files.read_record()?;
        let kept_token = kept.as_ref().map_or(0, |kept| kept.record.fencing_token());
        let acquired = Acquired::new(kept.and_then(|kept| kept.at(&now)));
        let refused = |acquired| Ok(Some(Grant { acquired, alive: None }));
        if acquired.record().is_some_and(|record| record.fencing_token() > request.seen()) {
            return refused(acquired);
        }
        let lease = files.read_lease()?;
        if let Some(holder) = &lease.holder {
            if holder.life.left(&now).is_some() && files.is_alive(&holder.owner)? {
                return refused(acquired);
            }
            let _ = files.folder.remove(&self.alive(&holder.owner));
        }
        let highest = lease.granted.max(kept_token).max(request.above());
        // A fencing token at the end of the range has no successor, so no lease can follow it.
        let Some(granted) = highest.checked_add(1) else { return refused(acquired) };
        let holder = Holder { owner: owner.to_owned(), life: Life::new(&now, request.ttl()) };
        files.write_lease(&Lease { granted, holder: Some(holder), ..lease })?;
        // After the lease: a process that is killed in between leaves a lease that another one takes over.
        let alive = files.create_alive(owner)?;
        Ok(Some(Grant { acquired: acquired.with_lease(granted), alive: Some(alive) }))
    }

    /// Keeps the record if its fencing token is higher, and ends the lease of `owner`. `None` if the
    /// files are locked.
    pub(super) fn commit(
        &self,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<Option<CommitOutcome>, FileError> {
        check_name(&self.folder, owner)?;
        let Some((files, _lock)) = self.lock()? else { return Ok(None) };
        // A record that cannot be kept, as on a full disk, does not keep the lease either.
        let outcome = record.map_or(Ok(CommitOutcome::Released), |record| files.keep(record));
        files.end_lease(owner)?;
        outcome.map(Some)
    }

    /// The time at which the record was replaced last.
    pub(super) fn modified(&self) -> Result<Option<SystemTime>, FileError> {
        let Some(folder) = Folder::open(&self.folder)? else { return Ok(None) };
        let name = self.record();
        let modified = match folder.read(&name) {
            Ok(Found::File(file)) => file.metadata().and_then(|metadata| metadata.modified()),
            Ok(Found::Absent | Found::Unusable(_)) => return Ok(None),
            Err(error) => Err(error),
        };
        modified.map(Some).map_err(|error| failed("read", &folder.path(&name), error))
    }

    /// Locks the files, unless another process has locked them.
    fn lock(&self) -> Result<Option<(Files<'_>, File)>, FileError> {
        let (name, folder) = (self.lock_name(), Folder::create(&self.folder)?);
        let path = folder.path(&name);
        let files = Files { entry: self, folder };
        for _ in 0..MAX_REOPENS {
            let Some(file) = files.open_or_create(&name)? else { continue };
            match FileExt::try_lock(&file) {
                // A file that was replaced before it was locked excludes nobody.
                Ok(()) if files.folder.holds(&name, &file) => {
                    self.reports.record_mended(&path);
                    return Ok(Some((files, file)));
                }
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    let remedy = "choose a folder on a file system that can lock files";
                    return Err(FileError::failed("lock", &path, remedy, error));
                }
            }
        }
        Ok(None)
    }

    /// Reports once that another process keeps the files locked.
    pub(super) fn report_locked(&self) {
        self.reports.report_locked(&self.folder.join(self.lock_name()));
    }

    fn lock_name(&self) -> String {
        format!("{}.lock", self.key)
    }

    fn record(&self) -> String {
        format!("{}.record", self.key)
    }

    fn lease(&self) -> String {
        format!("{}.lease", self.key)
    }

    fn alive(&self, owner: &str) -> String {
        format!("{}.{owner}.alive", self.key)
    }
}

/// The files of an entry in its opened folder.
struct Files<'a> {
    entry: &'a Entry,
    folder: Folder,
}

/// A record that may have ended.
struct Kept {
    record: StoredRecord,
    life: Life,
}

impl Kept {
    /// The record with what is left of its time to live; `None` if it has ended.
    fn at(self, now: &Now) -> Option<StoredRecord> {
        let left = self.life.left(now)?;
        Some(self.record.with_ttl(left))
    }
}

impl Files<'_> {
    /// Keeps the record if its fencing token is higher than that of the kept one.
    fn keep(&self, record: &StoredRecord) -> Result<CommitOutcome, FileError> {
        let kept = self.read_record()?;
        if kept.is_some_and(|kept| kept.record.fencing_token() >= record.fencing_token()) {
            return Ok(CommitOutcome::Superseded);
        }
        let life = Life::new(&Now::read(), record.ttl().unwrap_or(DEFAULT_TTL));
        let (fencing_token, len) = (record.fencing_token(), record.value().len());
        let head = Head { format: FORMAT, fencing_token, life, len };
        self.replace(&self.entry.record(), &head, record.value())?;
        Ok(CommitOutcome::Committed)
    }

    fn end_lease(&self, owner: &str) -> Result<(), FileError> {
        let lease = self.read_lease()?;
        if lease.holder.as_ref().is_none_or(|holder| holder.owner != owner) {
            return Ok(());
        }
        // Before the lease is written: a process that is killed in between leaves no file behind.
        let _ = self.folder.remove(&self.entry.alive(owner));
        self.write_lease(&Lease { holder: None, ..lease })
    }

    fn read_record(&self) -> Result<Option<Kept>, FileError> {
        self.parse(&self.entry.record(), |bytes| {
            let (head, value) = split_line::<Head>(bytes)?;
            let is_ours = head.format == FORMAT && head.len == value.len();
            (is_ours && is_plausible(head.fencing_token, Now::read().wall)).then(|| Kept {
                record: StoredRecord::new(head.fencing_token, value),
                life: head.life,
            })
        })
    }

    fn read_lease(&self) -> Result<Lease, FileError> {
        let lease = self.parse(&self.entry.lease(), |bytes| {
            let (lease, _) = split_line::<Lease>(bytes)?;
            let names = lease.holder.as_ref().is_none_or(|holder| is_name(&holder.owner));
            let is_ours = lease.format == FORMAT && names;
            (is_ours && is_plausible(lease.granted, Now::read().wall)).then_some(lease)
        })?;
        Ok(lease.unwrap_or_default())
    }

    fn write_lease(&self, lease: &Lease) -> Result<(), FileError> {
        self.replace(&self.entry.lease(), lease, b"")
    }

    /// Reads a whole file. One that cannot be read or parsed is reported and ignored.
    fn parse<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, FileError> {
        let path = self.folder.path(name);
        let reason = match self.folder.read(name) {
            Ok(Found::Absent) => return Ok(None),
            Ok(Found::Unusable(reason)) => reason,
            Ok(Found::File(file)) => {
                // One buffer that never grows, because growing would leave copies of the token in memory.
                let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN as usize + 1));
                let read = file.take(MAX_LEN + 1).read_to_end(&mut bytes);
                read.map_err(|error| failed("read", &path, error))?;
                match parse(&bytes) {
                    _ if bytes.len() as u64 > MAX_LEN => "it is too long",
                    Some(parsed) => return Ok(Some(parsed)),
                    None => "it is damaged, or of another format",
                }
            }
            Err(error) => return Err(failed("open", &path, error)),
        };
        self.entry.reports.report_ignored(&path, reason);
        Ok(None)
    }

    /// Replaces a file in one step. The caller holds the lock, so that one name is enough for the next
    /// version; a file of that name was left by a process that was killed, and is removed.
    ///
    /// No fsync: it may take long, while others wait for the lock. A power failure that loses the file
    /// costs one token request.
    fn replace(&self, name: &str, line: &impl Serialize, rest: &[u8]) -> Result<(), FileError> {
        let new = format!("{name}.new");
        let _ = self.folder.remove(&new);
        let written = serde_json::to_vec(line).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            let mut file = self.folder.create_new(&new)?;
            file.write_all(&line)?;
            file.write_all(rest)?;
            self.folder.rename(&new, name)
        });
        let path = self.folder.path(name);
        if let Err(error) = written {
            let _ = self.folder.remove(&new);
            return Err(failed("replace", &path, error));
        }
        self.entry.reports.record_mended(&path);
        Ok(())
    }

    /// Returns whether the holder of the lease keeps its file locked.
    fn is_alive(&self, owner: &str) -> Result<bool, FileError> {
        let name = self.entry.alive(owner);
        let file = match self.folder.lockable(&name) {
            Ok(Found::File(file)) => file,
            Ok(Found::Absent | Found::Unusable(_)) => return Ok(false),
            Err(error) => return Err(failed("open", &self.folder.path(&name), error)),
        };
        match FileExt::try_lock(&file) {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(failed("lock", &self.folder.path(&name), error)),
        }
    }

    /// Creates and locks the file that says that the holder of the lease is alive.
    fn create_alive(&self, owner: &str) -> Result<File, FileError> {
        let name = self.entry.alive(owner);
        let _ = self.folder.remove(&name);
        let created = self.folder.create_new(&name).and_then(|file| {
            FileExt::try_lock(&file)?;
            Ok(file)
        });
        created.map_err(|error| failed("create and lock", &self.folder.path(&name), error))
    }

    /// Opens a file that is only there to be locked. `None` if another process was faster.
    fn open_or_create(&self, name: &str) -> Result<Option<File>, FileError> {
        let path = self.folder.path(name);
        match self.folder.lockable(name) {
            Ok(Found::File(file)) => return Ok(Some(file)),
            Ok(Found::Absent) => {}
            // A run as root, or of another version, may have left it. It locks nobody out.
            Ok(Found::Unusable(reason)) => {
                self.entry.reports.report_ignored(&path, reason);
                self.folder.remove(name).map_err(|error| failed("remove", &path, error))?;
            }
            Err(error) => return Err(failed("open", &path, error)),
        }
        match self.folder.create_new(name) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(failed("create", &path, error)),
        }
    }
}

/// The first line, parsed, and the bytes behind it.
fn split_line<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((serde_json::from_slice(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

/// Names become parts of paths.
fn is_name(name: &str) -> bool {
    let is_plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_plain && name.len() <= 100
}

fn check_name(folder: &Path, name: &str) -> Result<(), FileError> {
    if is_name(name) {
        return Ok(());
    }
    let remedy = "name keys and owners with at most 100 letters and digits";
    Err(FileError::refused(&folder.join(name), "that is not the name of a key or owner", remedy))
}

fn failed(action: &str, path: &Path, error: io::Error) -> FileError {
    FileError::failed(action, path, REMEDY, error)
}
