//! The errors themselves: what they say, and how long they may become.

#![allow(clippy::unwrap_used)]

use std::{error::Error, fmt, io, time::Duration};

use proptest::prelude::*;
use tower_adobe_auth::{BoxError, StoreError, TokenError, TokenResponse, TokenSource};

/// The longest chain of causes below an error, and the longest text of each.
const MAX_CAUSES: usize = 16;
const MAX_TEXT: usize = 2_048;
/// The longest `Debug` of an error: its fields, and its source.
const MAX_DEBUG: usize = 8_192;

/// An error with a text and a cause.
#[derive(Debug)]
struct Nested {
    text: String,
    cause: Option<BoxError>,
}

impl Nested {
    fn with_depth(depth: usize, text: &str) -> Self {
        let innermost = Self { text: format!("{text} 1"), cause: None };
        (2..=depth).fold(innermost, |cause, number| Self {
            text: format!("{text} {number}"),
            cause: Some(Box::new(cause)),
        })
    }
}

impl fmt::Display for Nested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Nested {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// An error that is its own cause.
#[derive(Debug)]
struct Cyclic;

impl fmt::Display for Cyclic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cyclic")
    }
}

impl Error for Cyclic {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&Self)
    }
}

/// The texts of all causes below `error`.
fn causes(error: &dyn Error) -> Vec<String> {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        assert!(causes.len() < 1_000, "the chain does not end");
        causes.push(error.to_string());
        cause = error.source();
    }
    causes
}

fn assert_bounded(error: &dyn Error) {
    let causes = causes(error);
    assert!(causes.len() <= MAX_CAUSES, "{} causes", causes.len());
    for text in causes.iter().chain([&error.to_string()]) {
        assert!(text.len() <= MAX_TEXT, "a text of {} bytes", text.len());
    }
    for text in [format!("{error:?}"), format!("{error:#?}")] {
        assert!(text.len() <= MAX_DEBUG, "a Debug of {} bytes", text.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chain_of_causes_is_bounded(depth in 1..200_usize, text in "[a-zé]{0,12}", length in 0..2_000_usize) {
        let text = text.repeat(length / 12 + 1);
        let nested = || Nested::with_depth(depth, &text);

        for error in [TokenError::transient(nested()), TokenError::permanent(nested())] {
            assert_bounded(&error);
            prop_assert!(causes(&error)[0].starts_with(&text.chars().take(20).collect::<String>()));
        }
        assert_bounded(&StoreError::new(nested()));
    }
}

#[test]
fn chain_within_the_bound_keeps_its_types() {
    let cause = Nested { text: "request".into(), cause: Some(io::Error::other("reset").into()) };

    let error = TokenError::transient(cause);

    let source = error.source().unwrap();
    assert!(source.is::<Nested>());
    assert!(source.source().unwrap().is::<io::Error>());
    assert_eq!(causes(&error), ["request", "reset"]);
    assert!(
        causes(&TokenError::transient(Nested::with_depth(MAX_CAUSES, "e"))).len() == MAX_CAUSES
    );
}

#[test]
fn chain_beyond_the_bound_keeps_its_nearest_causes() {
    let error = TokenError::transient(Nested::with_depth(100, "error"));

    let causes = causes(&error);
    assert_eq!(causes.len(), MAX_CAUSES);
    assert_eq!(causes[0], "error 100");
    assert_eq!(causes[MAX_CAUSES - 2], "error 86");
    assert_eq!(causes[MAX_CAUSES - 1], "further causes are left out");
}

#[test]
fn cyclic_chain_ends() {
    assert_bounded(&TokenError::transient(Cyclic));
}

#[tokio::test(start_paused = true)]
async fn fetcher_that_wraps_its_last_error_keeps_errors_bounded() {
    let (sender, last) = tokio::sync::watch::channel(None::<TokenError>);
    let tokens = TokenSource::builder_from_fetcher(move || {
        let last = last.borrow().clone();
        async move {
            let text = last.as_ref().map_or_else(String::new, |last| format!("again: {last:?}"));
            let cause = last.map(Into::into);
            Err::<TokenResponse, _>(TokenError::transient(Nested { text, cause }))
        }
    })
    .build()
    .unwrap();

    for _ in 0..150 {
        let error = tokens.token().await.unwrap_err();
        assert_bounded(&error);
        sender.send_replace(Some(error));
        tokio::time::sleep(Duration::from_secs(100)).await;
    }
}
