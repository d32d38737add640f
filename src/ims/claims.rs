//! The claims of a token about its life, if the token is a JWT.
//!
//! Adobe's tokens have no `exp`. They expire at `created_at + expires_in`, both milliseconds in
//! strings. The claims are only used to cross-check the `expires_in` of the response.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, decoded_len_estimate, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

/// The claims on the life of a token, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    created_at: Option<u64>,
    expires_in: u64,
}

#[derive(Deserialize)]
struct Payload {
    created_at: Option<Value>,
    expires_in: Option<Value>,
}

impl Claims {
    /// The claims of `token`, or `None` if it is opaque or has no claim about its life.
    pub(crate) fn of(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let payload = decode(payload)?;
        let payload: Payload = serde_json::from_slice(&payload).ok()?;
        Some(Self {
            created_at: payload.created_at.as_ref().and_then(milliseconds),
            expires_in: payload.expires_in.as_ref().and_then(milliseconds)?,
        })
    }

    /// The whole life of the token.
    pub(crate) fn lifetime(self) -> Duration {
        Duration::from_millis(self.expires_in)
    }

    /// The remaining life at `now`, which is never longer than the whole life.
    pub(crate) fn remaining(self, now: SystemTime) -> Duration {
        let Some(created_at) = self.created_at else { return self.lifetime() };
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = Duration::from_millis(created_at.saturating_add(self.expires_in));
        end.saturating_sub(now).min(self.lifetime())
    }
}

/// Decodes base64 into memory that is wiped, also where the input is invalid.
fn decode(payload: &str) -> Option<Zeroizing<Vec<u8>>> {
    let payload = payload.trim_end_matches('=');
    // A buffer that grows would leave copies behind.
    let room = decoded_len_estimate(payload.len());
    let mut decoded = Zeroizing::new(Vec::with_capacity(room));
    URL_SAFE_NO_PAD.decode_vec(payload, &mut decoded).ok()?;
    Some(decoded)
}

fn milliseconds(claim: &Value) -> Option<u64> {
    match claim {
        Value::String(text) => text.trim().parse().ok(),
        number => number.as_u64(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(payload: &str) -> String {
        format!("eyJhbGciOiJSUzI1NiJ9.{}.c2ln", URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn claims_are_strings_or_numbers_of_milliseconds() {
        let expected = Claims { created_at: Some(1_700_000_000_000), expires_in: 86_400_000 };

        let strings = r#"{"created_at":"1700000000000","expires_in":"86400000","as":"ims-na1"}"#;
        assert_eq!(Claims::of(&token(strings)), Some(expected));
        let numbers = r#"{"created_at":1700000000000,"expires_in":86400000}"#;
        assert_eq!(Claims::of(&token(numbers)), Some(expected));
    }

    #[test]
    fn an_opaque_token_has_no_claims() {
        for opaque in ["", "token-1", "a.b.c", "a.b", "a.e30.c.d", &token("{}"), &token("[]")] {
            assert_eq!(Claims::of(opaque), None, "{opaque}");
        }
        for odd in ["-1", "abc", "null", "1e3", "1.5", "[]"] {
            let payload = format!(r#"{{"expires_in":"{odd}","created_at":"1"}}"#);
            assert_eq!(Claims::of(&token(&payload)), None, "{odd}");
        }
    }

    #[test]
    fn the_remaining_life_counts_from_the_creation() {
        let claims = Claims { created_at: Some(1_000_000), expires_in: 60_000 };
        let at = |seconds| claims.remaining(UNIX_EPOCH + Duration::from_secs(seconds));

        assert_eq!(at(1_000), Duration::from_secs(60));
        assert_eq!(at(1_020), Duration::from_secs(40));
        assert_eq!(at(1_060), Duration::ZERO);
        assert_eq!(at(5_000), Duration::ZERO);
        // Created in the future: one of the clocks is wrong.
        assert_eq!(at(0), Duration::from_secs(60));
    }

    proptest! {
        #[test]
        fn no_token_panics(text in ".*", payload in ".*", claim in any::<u64>(), now in any::<u64>()) {
            Claims::of(&text);
            Claims::of(&token(&payload));
            let claims = Claims { created_at: Some(claim), expires_in: claim };
            let now = UNIX_EPOCH.checked_add(Duration::from_millis(now)).unwrap();
            prop_assert!(claims.remaining(now) <= claims.lifetime());
        }
    }
}
