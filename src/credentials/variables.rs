//! Credentials from environment variables.

use std::ffi::OsString;

use zeroize::Zeroizing;

use super::{
    credentials::{Credentials, Names, parse_secrets},
    json::Text,
};
use crate::error::ConfigError;

/// Reads the variables that start with `prefix` and `_`; `lookup` is the environment.
pub(super) fn read(
    prefix: &str,
    lookup: impl Fn(&str) -> Option<OsString>,
) -> Result<Credentials, ConfigError> {
    let variable = |suffix| Variable::read(format!("{prefix}_{suffix}"), &lookup);
    let id = variable("CLIENT_ID")?;
    let mut secret = variable("CLIENT_SECRET")?;
    if secret.value.is_none() {
        // Adobe's Firefly and PDF Services documentation use the shorter name.
        let shorter = variable("SECRET")?;
        if shorter.value.is_some() {
            secret = shorter;
        }
    }
    let scopes = variable("SCOPES")?;
    let org_id = variable("ORG_ID")?;

    let mut credentials =
        Credentials::with_secrets(id.required()?, parse_secrets(secret.required()?), &secret.name)?;
    if let Some(scopes) = scopes.text() {
        credentials = credentials.with_scopes(scopes);
    }
    if let Some(org_id) = org_id.text() {
        credentials = credentials.with_org_id(org_id);
    }
    credentials.check_as(&Names {
        client_id: &id.name,
        client_secret: &secret.name,
        scopes: &scopes.name,
        org_id: &org_id.name,
    })?;
    Ok(credentials)
}

struct Variable {
    name: String,
    value: Option<Text>,
}

impl Variable {
    fn read(name: String, lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        match lookup(&name).map(OsString::into_string).transpose() {
            Ok(value) => Ok(Self { name, value: value.map(Zeroizing::new) }),
            Err(_) => Err(ConfigError::new(format!("{name} is not valid Unicode"))),
        }
    }

    /// The value without surrounding white space, because values from mounted files end with a
    /// newline.
    fn text(&self) -> Option<&str> {
        self.value.as_ref().map(|value| value.trim())
    }

    fn required(&self) -> Result<&str, ConfigError> {
        let missing = || ConfigError::new(format!("{} is not set in the environment", self.name));
        self.text().ok_or_else(missing)
    }
}
