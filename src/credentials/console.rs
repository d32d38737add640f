//! Credentials from the files of the Adobe Developer Console.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use zeroize::Zeroizing;

use super::{
    ClientSecret, Scopes,
    credentials::{Credentials, Names, parse_secrets},
    json::Json,
};
use crate::error::ConfigError;

/// The largest file that is read, in bytes. Files of the Console have a few kilobytes.
const MAX_BYTES: usize = 1024 * 1024;

/// The first buffer of a file, in bytes: larger than a usual file.
const FIRST_BUFFER: usize = 16 * 1024;

pub(super) fn read_file(path: &Path) -> Result<Credentials, ConfigError> {
    read(&bytes(path)?)
}

pub(super) fn bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
    let bytes = File::open(path).and_then(read_to_end).map_err(|error| {
        ConfigError::with_source(format!("cannot read {}", path.display()), error)
    })?;
    if bytes.len() > MAX_BYTES {
        return Err(ConfigError::new(format!("{} is too large to be read", path.display())));
    }
    Ok(bytes)
}

/// Reads at most one byte more than [`MAX_BYTES`].
///
/// Unlike the standard library's method, it wipes a buffer that was too small.
fn read_to_end(file: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut file = file.take(MAX_BYTES as u64 + 1);
    let mut bytes = Zeroizing::new(vec![0; FIRST_BUFFER]);
    let mut length = 0;
    loop {
        if length == bytes.len() {
            let mut larger = Zeroizing::new(vec![0; 2 * length]);
            larger[..length].copy_from_slice(&bytes);
            bytes = larger;
        }
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

pub(super) fn read(bytes: &[u8]) -> Result<Credentials, ConfigError> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    // Only the position of serde's error is kept, because its text may quote the document.
    let document = Json::parse(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        ConfigError::new(format!("the credentials are not JSON at line {line}, column {column}"))
    })?;
    if !matches!(document, Json::Object(_)) {
        return Err(ConfigError::new("the credentials are not a JSON object"));
    }

    match document.get("project") {
        Some((_, project)) => read_project(project),
        None => read_flat(&document),
    }
}

/// The file of one credential, or the context of Adobe's command line: all on one level.
fn read_flat(document: &Json) -> Result<Credentials, ConfigError> {
    let field = |key| Field::of(document, "", key);
    let mut org_id = field("ORG_ID");
    if org_id.value.is_none() {
        org_id = field("ims_org_id");
    }
    read_fields(&field("CLIENT_ID"), &field("CLIENT_SECRETS"), &field("SCOPES"), &org_id)
}

/// The export of a project: its first credential of the kind.
fn read_project(project: &Json) -> Result<Credentials, ConfigError> {
    let kind = ["oauth_server_to_server"];
    let Some(Json::List(credentials)) = project.at(&["workspace", "details", "credentials"]) else {
        return Err(ConfigError::new("project.workspace.details.credentials is not a list"));
    };
    let credential = credentials.iter().find_map(|credential| credential.at(&kind));
    let credential = credential.ok_or_else(|| {
        ConfigError::new("project.workspace.details.credentials has no oauth_server_to_server")
    })?;

    let field = |key| Field::of(credential, "oauth_server_to_server.", key);
    let org_id = Field {
        name: "project.org.ims_org_id".to_owned(),
        value: project.at(&["org", "ims_org_id"]),
    };
    read_fields(&field("client_id"), &field("client_secrets"), &field("scopes"), &org_id)
}

fn read_fields(
    client_id: &Field<'_>,
    client_secrets: &Field<'_>,
    scopes: &Field<'_>,
    org_id: &Field<'_>,
) -> Result<Credentials, ConfigError> {
    let id = client_id.text()?.ok_or_else(|| client_id.missing())?;
    let secrets = client_secrets
        .text_or_texts(parse_secrets, |texts| texts.into_iter().map(ClientSecret::from).collect())?
        .ok_or_else(|| client_secrets.missing())?;

    let mut credentials = Credentials::with_secrets(id, secrets, &client_secrets.name)?;
    if let Some(scopes) = scopes.text_or_texts(Scopes::from, Scopes::from)? {
        credentials = credentials.with_scopes(scopes);
    }
    if let Some(org_id) = org_id.text()? {
        credentials = credentials.with_org_id(org_id);
    }
    credentials.check_as(&Names {
        client_id: &client_id.name,
        client_secret: &client_secrets.name,
        scopes: &scopes.name,
        org_id: &org_id.name,
    })?;
    Ok(credentials)
}

/// A field and what an error calls it.
struct Field<'a> {
    name: String,
    value: Option<&'a Json>,
}

impl<'a> Field<'a> {
    /// The member `key` of `object`, called as `object` writes it; a missing one as `key` does.
    fn of(object: &'a Json, path: &str, key: &str) -> Self {
        let (key, value) = object.get(key).map_or((key, None), |(name, value)| (name, Some(value)));
        Self { name: format!("{path}{key}"), value }
    }

    fn value(&self) -> Option<&'a Json> {
        self.value.filter(|value| !matches!(value, Json::Null))
    }

    fn text(&self) -> Result<Option<&'a str>, ConfigError> {
        let not_text = || ConfigError::new(format!("{} is not text", self.name));
        self.value().map(|value| value.text().ok_or_else(not_text)).transpose()
    }

    fn text_or_texts<T>(
        &self,
        of_text: impl FnOnce(&'a str) -> T,
        of_texts: impl FnOnce(Vec<&'a str>) -> T,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.value() else { return Ok(None) };
        if let Some(text) = value.text() {
            return Ok(Some(of_text(text)));
        }
        let neither = || ConfigError::new(format!("{} is not a list of texts", self.name));
        value.texts().map(of_texts).map(Some).ok_or_else(neither)
    }

    fn missing(&self) -> ConfigError {
        ConfigError::new(format!("{} is missing", self.name))
    }
}
