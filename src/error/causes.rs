//! Bounds on the causes below an error, which are errors of other code.
//!
//! A fetcher may wrap the last failure of its own source, which then becomes the last failure, and so
//! on: without a bound such a chain grows with each attempt, and with it each log line.

use std::{
    error::Error,
    fmt::{self, Write},
    iter,
};

use super::BoxError;

/// The longest chain of causes. The deepest usual one has about ten: contexts of an application, then
/// its HTTP client, TLS and the operating system.
const MAX_CAUSES: usize = 16;

/// The longest text of one cause, in bytes.
const MAX_TEXT: usize = 2_000;

/// The longest `Debug` of all causes together, in bytes.
const MAX_DEBUG: usize = 4_000;

/// Returns `error` itself if its chain of causes is within the bounds.
///
/// If not, the result has the texts of the nearest causes, but no longer their types.
pub(super) fn bounded(error: BoxError) -> BoxError {
    if is_bounded(&*error) {
        return error;
    }
    let mut texts: Vec<String> = chain(&*error).take(MAX_CAUSES).map(cut).collect();
    if chain(&*error).nth(MAX_CAUSES).is_some() {
        texts[MAX_CAUSES - 1] = "further causes are left out".to_owned();
    }
    let mut cause = None;
    for text in texts.drain(1..).rev() {
        cause = Some(Box::new(Text { text, cause }));
    }
    Box::new(Text { text: texts.remove(0), cause })
}

/// Writes the `Debug` of an error, cut to its bound.
pub(super) struct Bounded<'a>(pub(super) &'a dyn Error);

impl fmt::Debug for Bounded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_alternate = f.alternate();
        let mut rest = Limited { inner: f, rest: MAX_DEBUG };
        let written = match is_alternate {
            true => write!(rest, "{:#?}", self.0),
            false => write!(rest, "{:?}", self.0),
        };
        written.or_else(|_| f.write_char('…'))
    }
}

/// A cause of which only the text is kept.
#[derive(Debug)]
struct Text {
    text: String,
    cause: Option<Box<Self>>,
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Text {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

fn is_bounded(error: &(dyn Error + 'static)) -> bool {
    let mut causes = 0;
    chain(error).take(MAX_CAUSES + 1).all(|cause| {
        causes += 1;
        let mut nowhere = Limited { inner: &mut Nowhere, rest: MAX_TEXT };
        causes <= MAX_CAUSES && write!(nowhere, "{cause}").is_ok()
    })
}

/// `error` and its causes. The chain may be endless, since an error may be its own cause.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// The text of `error`, with an ellipsis in place of everything beyond its bound.
fn cut(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    if write!(Limited { inner: &mut text, rest: MAX_TEXT }, "{error}").is_err() {
        text.push('…');
    }
    text
}

/// Passes on as many bytes as `rest` says, then fails.
struct Limited<'a, W: ?Sized> {
    inner: &'a mut W,
    rest: usize,
}

impl<W: Write + ?Sized> Write for Limited<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut length = text.len().min(self.rest);
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        self.inner.write_str(&text[..length])?;
        self.rest -= length;
        if length < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Takes text and keeps none of it.
struct Nowhere;

impl Write for Nowhere {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        Ok(())
    }
}
