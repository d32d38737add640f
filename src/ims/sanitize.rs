//! What a server says, made fit for a log line.

use std::borrow::Cow;

const MAX_CHARS: usize = 256;
const REDACTED: &str = "[redacted]";

/// Secrets shorter than this are looked for as whole words: they may be part of ordinary ones.
const DISTINCTIVE: usize = 8;

/// `text` on one line of bounded length, with no control character and without any of `secrets`.
pub(crate) fn sanitize(text: &str, secrets: &[&str]) -> String {
    // Redacted before it is cut, so that no cut leaves half a secret.
    let mut text = Cow::Borrowed(text);
    for secret in secrets {
        if let Cow::Owned(redacted) = redact(&text, secret) {
            text = Cow::Owned(redacted);
        }
    }
    let mut chars = text.trim().chars().map(|c| if is_unprintable(c) { ' ' } else { c });
    let mut line: String = chars.by_ref().take(MAX_CHARS).collect();
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

/// Control characters, line breaks, and what is invisible or turns the direction of text.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Replaces `secret` where it stands in `text`, as it is or in one of its encodings.
fn redact<'a>(text: &'a str, secret: &str) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    if secret.is_empty() {
        return text;
    }
    let form: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let percent = form.replace('+', "%20");
    for encoding in [secret, &form, &percent] {
        if let Cow::Owned(redacted) = replace(&text, encoding) {
            text = Cow::Owned(redacted);
        }
    }
    text
}

/// Compares ASCII letters without case, since the digits of a percent-encoding have none.
fn replace<'a>(text: &'a str, secret: &str) -> Cow<'a, str> {
    let (lower, secret) = (text.to_ascii_lowercase(), secret.to_ascii_lowercase());
    let mut redacted = String::new();
    let mut rest = 0;
    for (start, found) in lower.match_indices(&secret) {
        let end = start + found.len();
        if secret.len() < DISTINCTIVE && !is_whole_word(text, start, end) {
            continue;
        }
        redacted.push_str(&text[rest..start]);
        redacted.push_str(REDACTED);
        rest = end;
    }
    if rest == 0 {
        return Cow::Borrowed(text);
    }
    redacted.push_str(&text[rest..]);
    Cow::Owned(redacted)
}

fn is_whole_word(text: &str, start: usize, end: usize) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    !text[..start].ends_with(is_part) && !text[end..].starts_with(is_part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn line_breaks_and_control_characters_become_spaces() {
        let text = "a\r\nb\u{1b}[31mc\u{2028}d\u{2029}e\u{202e}f\u{2066}g\u{0}h\u{85}i\u{200b}j";

        assert_eq!(sanitize(text, &["secret"]), "a  b [31mc d e f g h i j");
    }

    #[test]
    fn a_long_text_is_cut() {
        let line = sanitize(&"é".repeat(10_000), &["secret"]);

        assert_eq!(line, format!("{}…", "é".repeat(256)));
    }

    #[test]
    fn an_echo_of_the_secret_is_redacted_in_every_encoding() {
        let secret = "p8e-a+b&c=d%41 é";
        for echo in
            ["p8e-a+b&c=d%41 é", "p8e-a%2Bb%26c%3Dd%2541+%C3%A9", "p8e-a%2bb%26c%3dd%2541%20%c3%a9"]
        {
            let line = sanitize(&format!("bad {echo}, {echo}!"), &[secret]);

            assert_eq!(line, "bad [redacted], [redacted]!");
        }
    }

    #[test]
    fn a_cut_leaves_no_half_of_a_secret() {
        let line = sanitize(&format!("{}p8e-secret", "x".repeat(250)), &["p8e-secret"]);

        assert!(!line.contains("p8e"), "{line}");
    }

    #[test]
    fn a_short_secret_is_redacted_as_a_word() {
        assert_eq!(
            sanitize("invalid client_secret parameter 'secret'", &["secret"]),
            "invalid client_secret parameter '[redacted]'"
        );
    }

    proptest! {
        #[test]
        fn no_text_panics_and_every_line_is_bounded(text in ".*", secret in ".*") {
            let line = sanitize(&text, &[&secret]);

            prop_assert!(line.chars().count() <= MAX_CHARS + 1);
            prop_assert!(!line.contains(is_unprintable));
        }

        #[test]
        fn no_secret_survives(before in ".{0,300}", secret in "[!-~]{8,40}", after in ".{0,20}") {
            let line = sanitize(&format!("{before}{secret}{after}"), &[&secret]);

            prop_assert!(!line.contains(&secret) || REDACTED.contains(&secret));
        }
    }
}
