//! The credentials of a client: its id, one or two secrets, the scopes and, where needed, the
//! organization.
//!
//! [`Credentials`] come from the program itself ([`Credentials::new`]), from environment variables
//! ([`Credentials::from_env`]) or from a file of the Adobe Developer Console
//! ([`Credentials::from_console_file`]). Values from outside are checked immediately, and an error
//! names the invalid variable or field. Values that the program sets are checked when a token source
//! is built.
//!
//! A [`ClientSecret`] is wrapped on entry and wiped on drop. No `Debug` and no error of this module
//! contains a secret, not even if a file has it in the wrong field.
//!
//! A Console credential has up to two secrets at once, so that one can be replaced while the other
//! still works; [`Credentials`] carry both.
//!
//! # Example
//!
//! ```
//! use tower_adobe_auth::{ConfigError, Credentials};
//!
//! # fn main() -> Result<(), ConfigError> {
//! let credentials = Credentials::from_console_json(
//!     r#"{
//!         "CLIENT_ID": "4f5a",
//!         "CLIENT_SECRETS": ["p8e-current", "p8e-next"],
//!         "SCOPES": ["openid", "AdobeID", "firefly_api"],
//!         "ORG_ID": "1234@AdobeOrg"
//!     }"#,
//! )?;
//!
//! assert_eq!(credentials.client_id(), "4f5a");
//! assert_eq!(credentials.org_id(), Some("1234@AdobeOrg"));
//! assert!(!format!("{credentials:?}").contains("p8e"));
//! # Ok(())
//! # }
//! ```

mod console;
#[expect(clippy::module_inception, reason = "a file is named after its main type")]
mod credentials;
mod file;
mod json;
mod provide;
mod scopes;
mod secret;
mod variables;

pub use credentials::Credentials;
pub use file::FileCredentials;
pub use provide::ProvideCredentials;
pub use scopes::Scopes;
pub use secret::ClientSecret;

pub(crate) use json::{Text, text};
pub(crate) use provide::Provider;
