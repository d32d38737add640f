//! The scopes of a token request, and how they are written.

use std::{collections::HashSet, fmt};

/// The scopes of a token request: each once, in the order of their first mention.
///
/// They are built from a list, or from text that is a JSON array or a list separated by commas or
/// white space. An entry of a list may contain several. [`Display`](fmt::Display) writes them as they
/// are sent: separated by commas, or by spaces after
/// [`separated_by_spaces`](Self::separated_by_spaces).
///
/// Building them never fails. Characters that RFC 6749 §3.3 does not allow in a scope are an error
/// when the credentials are checked.
///
/// # Example
///
/// ```
/// use tower_adobe_auth::Scopes;
///
/// let scopes = Scopes::from("openid, AdobeID firefly_api");
/// assert_eq!(scopes, Scopes::from(["openid", "AdobeID", "firefly_api"]));
/// assert_eq!(scopes, Scopes::from(r#"["openid", "AdobeID", "firefly_api"]"#));
///
/// assert_eq!(scopes.to_string(), "openid,AdobeID,firefly_api");
/// assert_eq!(scopes.separated_by_spaces().to_string(), "openid AdobeID firefly_api");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scopes {
    list: Vec<String>,
    separator: char,
}

impl Scopes {
    /// Sends the scopes separated by spaces, as in RFC 6749. Default: by commas, as in Adobe's
    /// documentation.
    #[must_use]
    pub fn separated_by_spaces(mut self) -> Self {
        self.separator = ' ';
        self
    }

    /// The scopes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(String::as_str)
    }

    /// Returns whether the list has no scope.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The position, counted from 1, of the first scope with a character that RFC 6749 forbids.
    pub(super) fn first_illegal(&self) -> Option<usize> {
        let legal = |scope: &str| scope.bytes().all(is_scope_character);
        self.iter().position(|scope| !legal(scope)).map(|index| index + 1)
    }
}

/// RFC 6749 §3.3: `%x21 / %x23-5B / %x5D-7E`.
fn is_scope_character(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'"' && byte != b'\\'
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|scope| !scope.is_empty())
}

impl<S: AsRef<str>> FromIterator<S> for Scopes {
    fn from_iter<I: IntoIterator<Item = S>>(entries: I) -> Self {
        let mut list = Vec::new();
        let mut known = HashSet::new();
        for entry in entries {
            for scope in split(entry.as_ref()) {
                if known.insert(scope.to_owned()) {
                    list.push(scope.to_owned());
                }
            }
        }
        Self { list, separator: ',' }
    }
}

impl From<&str> for Scopes {
    fn from(text: &str) -> Self {
        serde_json::from_str::<Vec<String>>(text)
            .map_or_else(|_| Self::from_iter([text]), Self::from_iter)
    }
}

impl From<String> for Scopes {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl<S: AsRef<str>, const N: usize> From<[S; N]> for Scopes {
    fn from(list: [S; N]) -> Self {
        Self::from_iter(list)
    }
}

impl<S: AsRef<str>> From<&[S]> for Scopes {
    fn from(list: &[S]) -> Self {
        Self::from_iter(list)
    }
}

impl<S: AsRef<str>> From<Vec<S>> for Scopes {
    fn from(list: Vec<S>) -> Self {
        Self::from_iter(list)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, scope) in self.iter().enumerate() {
            if index > 0 {
                write!(f, "{}", self.separator)?;
            }
            f.write_str(scope)?;
        }
        Ok(())
    }
}
