//! Where the service finds its secrets: a JSON file of the Console that it watches with
//! [`FileCredentials`](tower_adobe_auth::FileCredentials).
//!
//! The rotation keeps its notes in the same file, as `ROTATION`, so that secrets and notes change
//! together; the crate ignores keys that it does not know. A team with a vault has these two, the
//! reading and the writing at once, to write for it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tower_adobe_auth::{BoxError, ClientSecret, Credentials};

const NOTES: &str = "ROTATION";

pub(crate) struct Sink {
    path: PathBuf,
}

/// What the file holds.
pub(super) struct Held {
    document: Map<String, Value>,
    /// As the service reads them.
    pub(super) credentials: Credentials,
    /// The current secret and, while both live, the old one.
    pub(super) secrets: Vec<ClientSecret>,
    pub(super) notes: Notes,
}

/// What the rotation has to know the next time it is run. No `Debug`: it may hold a secret.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Notes {
    /// Which secrets of Adobe's list those of the file are, in their order.
    pub(super) uuids: Vec<String>,
    /// The file's secrets as they were written, which tells whether other hands changed them.
    secrets: Vec<String>,
    /// A secret is being added.
    pub(super) adding: bool,
    /// The secret that was added, until it is proven.
    pub(super) pending: Option<Pending>,
    /// When the first secret was stored, in milliseconds since 1970.
    pub(super) stored_at: u64,
}

#[derive(Deserialize, Serialize)]
pub(super) struct Pending {
    pub(super) uuid: String,
    pub(super) client_secret: String,
}

impl Held {
    /// Whether the secrets are those that the notes were written for.
    pub(super) fn is_as_written(&self) -> bool {
        let secrets = self.secrets.iter().map(ClientSecret::expose_secret);
        self.notes.uuids.len() == self.secrets.len() && secrets.eq(&self.notes.secrets)
    }
}

impl Sink {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub(super) fn read(&self) -> Result<Held, BoxError> {
        let text = fs::read(&self.path)
            .map_err(|error| format!("cannot read {}: {error}", self.path.display()))?;
        let credentials = Credentials::from_console_json(&text)?;
        let text = text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&text);
        let document: Map<String, Value> = serde_json::from_slice(text)?;
        // What serde says of a wrong type could quote a secret, so it is left out.
        let notes = document.get(NOTES).cloned().map(serde_json::from_value).transpose();
        let notes = notes.map_err(|_| format!("{NOTES} in the file is not what was written"))?;
        let secrets = std::iter::once(credentials.client_secret())
            .chain(credentials.next_secret())
            .cloned()
            .collect();
        Ok(Held { document, credentials, secrets, notes: notes.unwrap_or_default() })
    }

    /// Replaces the file by one with these secrets and notes, and all else as it was read.
    pub(super) fn write(&self, held: Held) -> Result<(), BoxError> {
        let Held { mut document, secrets, mut notes, .. } = held;
        let slot = secrets_of(&mut document).ok_or("the file has no place for secrets")?;
        *slot = secrets.iter().map(ClientSecret::expose_secret).collect();
        notes.secrets = secrets.iter().map(|secret| secret.expose_secret().to_owned()).collect();
        document.insert(NOTES.to_owned(), serde_json::to_value(notes)?);
        let text = serde_json::to_vec_pretty(&document)?;
        replace(&self.path, &text)
            .map_err(|error| format!("cannot replace {}: {error}", self.path.display()).into())
    }
}

/// The place of the secrets, in each of the shapes that the crate reads.
fn secrets_of(document: &mut Map<String, Value>) -> Option<&mut Value> {
    if !document.keys().any(|key| key.eq_ignore_ascii_case("project")) {
        return member(document, "client_secrets");
    }
    let project = member(document, "project")?.as_object_mut()?;
    let workspace = member(project, "workspace")?.as_object_mut()?;
    let details = member(workspace, "details")?.as_object_mut()?;
    let credentials = member(details, "credentials")?.as_array_mut()?;
    let mut kinds = credentials
        .iter_mut()
        .filter_map(|credential| member(credential.as_object_mut()?, "oauth_server_to_server"));
    member(kinds.next()?.as_object_mut()?, "client_secrets")
}

/// As the crate reads keys: without regard to case.
fn member<'a>(object: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Value> {
    object.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
}

/// Nobody sees half a file, and after a crash it is the old one or the new one.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    // A link stays a link; the new file has to be where the old one is.
    let path = fs::canonicalize(path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text)?;
    file.as_file().set_permissions(fs::metadata(&path)?.permissions())?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    // So that the new name lasts too; not every system opens a folder.
    File::open(folder).map_or(Ok(()), |folder| folder.sync_all())
}
