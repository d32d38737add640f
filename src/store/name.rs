//! The key under which a token is kept. Pure.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// A hash of what makes two tokens interchangeable, as 64 hexadecimal digits.
///
/// Each part is hashed with its length, so that no two lists of parts are the same text.
pub(crate) fn name<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    hash.update(b"tower-adobe-auth/1");
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn differs_where_the_parts_differ_also_where_their_text_does_not() {
        let one = name(["client", "scope"]);

        assert_eq!(one.len(), 64);
        assert_eq!(one, name(["client", "scope"]));
        assert_ne!(one, name(["clients", "cope"]));
        assert_ne!(one, name(["client", "scope", ""]));
    }
}
