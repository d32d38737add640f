//! JSON that may hold secrets, read into memory that is wiped.
//!
//! serde_json resolves the escapes of a text in a buffer of its own, which it frees with the secret
//! in it. It only splits a document here, into [`RawValue`]s that borrow from it.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// Text that may be a secret, wiped when dropped.
pub(crate) type Text = Zeroizing<String>;

/// The deepest nesting that is read; the export of a Console project has eight levels. Anything
/// deeper counts as [`Json::Other`], so that no document overflows the stack.
const MAX_DEPTH: usize = 16;

/// A JSON document whose texts are wiped when it is dropped.
///
/// It accepts every type everywhere, so that only malformed JSON is an error of serde, because serde's
/// errors about types quote the value, which could be a secret.
pub(super) enum Json {
    Null,
    Text(Text),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
    /// A number, a Boolean, a text that is not valid Unicode, or anything nested too deep.
    Other,
}

impl Json {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(Self::read(serde_json::from_slice(bytes)?, MAX_DEPTH))
    }

    fn read(json: &RawValue, depth: usize) -> Self {
        let value = match json.get().as_bytes().first() {
            Some(b'n') => Some(Self::Null),
            Some(b'"') => text(json).map(Self::Text),
            Some(b'[') if depth > 0 => {
                serde_json::from_str::<Vec<&RawValue>>(json.get()).ok().map(|entries| {
                    Self::List(
                        entries.into_iter().map(|entry| Self::read(entry, depth - 1)).collect(),
                    )
                })
            }
            Some(b'{') if depth > 0 => {
                serde_json::from_str::<Members<'_>>(json.get()).ok().map(|Members(members)| {
                    let read = |(name, value)| (name, Self::read(value, depth - 1));
                    Self::Object(members.into_iter().map(read).collect())
                })
            }
            _ => None,
        };
        value.unwrap_or(Self::Other)
    }

    /// The last member named `key` without regard to case, and its name as written.
    pub(super) fn get(&self, key: &str) -> Option<(&str, &Self)> {
        let Self::Object(members) = self else { return None };
        let (name, value) =
            members.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(key))?;
        Some((name, value))
    }

    /// The value at the end of `path`, which is a member's name on each level.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |json, key| json.get(key).map(|(_, value)| value))
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The texts of a list that contains only texts.
    pub(super) fn texts(&self) -> Option<Vec<&str>> {
        let Self::List(entries) = self else { return None };
        entries.iter().map(Self::text).collect()
    }
}

/// Reads a JSON text. `None` if `json` is of another type, or has an unpaired surrogate.
pub(crate) fn text(json: &RawValue) -> Option<Text> {
    let mut rest = json.get().strip_prefix('"')?.strip_suffix('"')?;
    // No escape is shorter than its character. A buffer that grows would leave copies behind.
    let mut text = Text::new(String::with_capacity(rest.len()));
    while let Some((plain, escape)) = rest.split_once('\\') {
        let (character, after) = unescape(escape)?;
        text.push_str(plain);
        text.push(character);
        rest = after;
    }
    text.push_str(rest);
    Some(text)
}

/// The character of an escape (RFC 8259 §7), which begins after its backslash, and the text after it.
fn unescape(escape: &str) -> Option<(char, &str)> {
    let mut characters = escape.chars();
    let character = match characters.next()? {
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => {
            let (unit, rest) = code_unit(characters.as_str())?;
            if let Some(character) = char::from_u32(unit.into()) {
                return Some((character, rest));
            }
            // The first half of a surrogate pair.
            let (second, rest) = code_unit(rest.strip_prefix("\\u")?)?;
            return Some((char::decode_utf16([unit, second]).next()?.ok()?, rest));
        }
        quote_or_slash => quote_or_slash,
    };
    Some((character, characters.as_str()))
}

fn code_unit(digits: &str) -> Option<(u16, &str)> {
    let (digits, rest) = digits.split_at_checked(4)?;
    Some((u16::from_str_radix(digits, 16).ok()?, rest))
}

/// The members of an object in their order, doubled ones included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn is_same(json: &Json, value: &Value) -> bool {
        match (json, value) {
            (Json::Null, Value::Null) | (Json::Other, Value::Bool(_) | Value::Number(_)) => true,
            (Json::Text(text), Value::String(value)) => **text == *value,
            (Json::List(list), Value::Array(values)) => {
                list.len() == values.len()
                    && list.iter().zip(values).all(|(json, value)| is_same(json, value))
            }
            (Json::Object(_), Value::Object(values)) => values
                .iter()
                .all(|(key, value)| json.at(&[key]).is_some_and(|json| is_same(json, value))),
            _ => false,
        }
    }

    #[test]
    fn escapes_are_resolved() {
        let json = Json::parse(br#""\"\\\/\b\f\n\r\t\u0041\u00e9\u20AC\ud83d\ude00\u0000z""#);

        assert_eq!(json.unwrap().text(), Some("\"\\/\u{8}\u{c}\n\r\tAé€😀\0z"));
    }

    #[test]
    fn unpaired_surrogate_is_not_a_text() {
        for text in
            [r"\ud83d", r"\ude00", r"\ud83dx", r"\ud83d\n", r"\ud83d\u0041", r"\ud83d\ud83d"]
        {
            let json = Json::parse(format!("\"{text}\"").as_bytes()).unwrap();

            assert!(matches!(json, Json::Other), "{text}");
        }
    }

    #[test]
    fn deep_nesting_is_not_read() {
        let deep = format!("{}\"x\"{}", "[".repeat(200_000), "]".repeat(200_000));

        let mut json = &Json::parse(deep.as_bytes()).unwrap();
        let mut depth = 0;
        while let Json::List(entries) = json {
            json = &entries[0];
            depth += 1;
        }

        assert_eq!(depth, MAX_DEPTH);
        assert!(matches!(json, Json::Other));
    }

    proptest! {
        #[test]
        fn any_text_is_read_as_serde_json_reads_it(text in any::<String>(), escaped in any::<bool>()) {
            let mut json = serde_json::to_string(&text).unwrap();
            if escaped {
                let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
                json = format!("\"{}\"", units.collect::<String>());
            }

            let json = Json::parse(json.as_bytes()).unwrap();
            prop_assert_eq!(json.text(), Some(&*text));
        }

        #[test]
        fn any_document_is_read_as_serde_json_reads_it(
            json in r#"([\[\]{},: ]|"[a-c]"|"\\u00e9"|"\\ud83d"|"\\x"|1|-0\.5|true|null){0,12}"#,
        ) {
            match serde_json::from_str::<Value>(&json) {
                Ok(value) => {
                    let is_equal = Json::parse(json.as_bytes()).is_ok_and(|json| is_same(&json, &value));
                    prop_assert!(is_equal);
                }
                // Doubled keys and unpaired surrogates aside, both reject the same documents.
                Err(_) => prop_assert!(json.contains("ud83d") || Json::parse(json.as_bytes()).is_err()),
            }
        }
    }
}
