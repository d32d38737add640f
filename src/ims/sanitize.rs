//! Makes a text from a server fit for a log line.

use crate::credentials::Text;

const MAX_CHARS: usize = 256;
const REDACTED: &str = "[redacted]";

/// Shorter secrets, in bytes, are redacted only as whole words, because they may be part of a word.
const DISTINCTIVE: usize = 8;

/// Returns `text` as one line of bounded length, without control characters and `secrets`.
///
/// Every copy of `text` that may hold a secret is wiped.
pub(crate) fn sanitize(text: &str, secrets: &[&str]) -> String {
    // Redact before cutting, so that no cut leaves half a secret.
    let mut redacted = None;
    for secret in secrets {
        let encodings = encodings(secret);
        for encoding in encodings.iter().filter(|encoding| !encoding.is_empty()) {
            let text = redacted.as_deref().map_or(text, String::as_str);
            redacted = replace(text, encoding).or(redacted);
        }
    }
    let text = redacted.as_deref().map_or(text, String::as_str);
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

/// The secret as it is, form-encoded and percent-encoded.
fn encodings(secret: &str) -> [Text; 3] {
    // Room for every byte percent-encoded. A buffer that grows would leave copies behind.
    let empty = || Text::new(String::with_capacity(3 * secret.len()));
    let (mut plain, mut form, mut percent) = (empty(), empty(), empty());
    plain.push_str(secret);
    form.extend(form_urlencoded::byte_serialize(secret.as_bytes()));
    for piece in form.split_inclusive('+') {
        let (end, plus) = piece.strip_suffix('+').map_or((piece, ""), |end| (end, "%20"));
        percent.push_str(end);
        percent.push_str(plus);
    }
    [plain, form, percent]
}

/// Returns `text` with `secret` replaced, or `None` if it is not in there.
///
/// ASCII letters match without regard to case, because the digits of a percent-encoding may have
/// either.
fn replace(text: &str, secret: &str) -> Option<Text> {
    let lower_case = |text: &str| {
        let mut text = Text::new(text.to_owned());
        text.make_ascii_lowercase();
        text
    };
    let (lower, secret) = (lower_case(text), lower_case(secret));
    let is_redacted =
        |start| secret.len() >= DISTINCTIVE || is_whole_word(text, start, start + secret.len());
    let count = lower.matches(secret.as_str()).count();

    let mut redacted = Text::new(String::with_capacity(text.len() + count * REDACTED.len()));
    let mut rest = 0;
    for (start, found) in lower.match_indices(secret.as_str()) {
        if is_redacted(start) {
            redacted.push_str(&text[rest..start]);
            redacted.push_str(REDACTED);
            rest = start + found.len();
        }
    }
    redacted.push_str(&text[rest..]);
    (rest > 0).then_some(redacted)
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
