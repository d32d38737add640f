//! The life of a token: `expires_in` of the response, cross-checked with the token's own claims.
//!
//! | the response has | the token lives for the shortest of |
//! | --- | --- |
//! | an opaque token | `expires_in` |
//! | claims and a `Date` | `expires_in`, the claimed lifetime, the claimed life left at `Date` |
//! | claims, no `Date` | `expires_in`, the claimed lifetime, the claimed life left by our clock |
//!
//! Only the server's clock is known to agree with the claims. If ours is ahead by nearly a lifetime,
//! each new token looks almost expired, and the source would request one after the other. By our
//! clock, a life left that is a tiny part of the lifetime is therefore ignored.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::claims::Claims;

/// The longest plausible life; Adobe's tokens live for a day. A larger number has another unit, or is
/// wrong.
const LONGEST: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// A token with no more life left than this, or than half of its claimed lifetime if that is
/// shorter, counts as expired, because using it would make every request wait for another.
const SHORTEST: Duration = Duration::from_secs(1);

/// By our own clock, a smaller part of the lifetime than one in this many is not believed: 57 s of a
/// day. A token so close to its end is much rarer than a wrong clock.
const SMALLEST_PART: u32 = 1_500;

/// The time at which a response arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The `Date` of the response, which does not depend on our clock.
    pub(crate) date: Option<SystemTime>,
    /// Our wall clock.
    pub(crate) wall: SystemTime,
}

impl Arrival {
    pub(crate) fn best(self) -> SystemTime {
        self.date.unwrap_or(self.wall)
    }
}

/// The life of a token, counted from `arrival`.
///
/// # Errors
///
/// The reason why the token cannot be used, as one clause.
pub(crate) fn lifetime(
    expires_in: Option<&Value>,
    claims: Option<Claims>,
    arrival: Arrival,
) -> Result<Duration, &'static str> {
    let answered = bounded(seconds(expires_in)?)?;
    let Some(claims) = claims else { return Ok(answered) };

    let mut claimed = claims.remaining(arrival.best());
    if arrival.date.is_none() && claimed <= SHORTEST.max(claims.lifetime() / SMALLEST_PART) {
        claimed = claims.lifetime();
    }
    if claimed <= SHORTEST.min(claims.lifetime() / 2) {
        return Err("IMS answered with an access token that has already expired");
    }
    Ok(answered.min(claimed))
}

fn seconds(expires_in: Option<&Value>) -> Result<u64, &'static str> {
    const NO_NUMBER: &str = "IMS answered with an expires_in that is not a number";
    let text = match expires_in {
        None | Some(Value::Null) => return Err("IMS answered without an expires_in"),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => text.trim().to_owned(),
        Some(_) => return Err(NO_NUMBER),
    };
    let seconds: f64 = text.parse().map_err(|_| NO_NUMBER)?;
    if !seconds.is_finite() {
        return Err(NO_NUMBER);
    }
    if seconds < 0.0 {
        return Err("IMS answered with a negative expires_in");
    }
    // Exact for every life up to `LONGEST`. The cast saturates.
    match seconds as u64 {
        0 => Err("IMS answered with an expires_in of zero"),
        seconds => Ok(seconds),
    }
}

/// Reads a number that is too large for seconds as milliseconds, the unit of the JWT exchange.
fn bounded(number: u64) -> Result<Duration, &'static str> {
    [Duration::from_secs(number), Duration::from_millis(number)]
        .into_iter()
        .find(|life| *life <= LONGEST)
        .ok_or("IMS answered with an expires_in longer than any access token lives")
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const DAY: u64 = 86_400;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn dated(seconds: u64) -> Arrival {
        Arrival { date: Some(at(seconds)), wall: at(0) }
    }

    fn undated(seconds: u64) -> Arrival {
        Arrival { date: None, wall: at(seconds) }
    }

    /// Claims of a token that was created at 1,000 s and lives for `life` seconds.
    fn claims(life: u64) -> Option<Claims> {
        let payload = json!({ "created_at": "1000000", "expires_in": (life * 1_000).to_string() });
        Claims::of(&format!("a.{}.c", URL_SAFE_NO_PAD.encode(payload.to_string())))
    }

    fn opaque(expires_in: impl Into<Value>) -> Result<u64, &'static str> {
        lifetime(Some(&expires_in.into()), None, undated(1_000)).map(|life| life.as_secs())
    }

    #[test]
    fn expires_in_is_a_number_or_a_numeric_string() {
        for value in [json!(86_399), json!("86399"), json!(" 86399 "), json!(86_399.0)] {
            assert_eq!(opaque(value), Ok(86_399));
        }
    }

    #[test]
    fn each_wrong_expires_in_has_its_own_words() {
        assert!(lifetime(None, None, undated(0)).unwrap_err().contains("without"));
        assert!(opaque(Value::Null).unwrap_err().contains("without"));
        for value in [json!(0), json!("0"), json!(-0.0), json!(0.5)] {
            assert!(opaque(value).unwrap_err().contains("zero"));
        }
        for value in [json!(-1), json!("-1"), json!(-1e300)] {
            assert!(opaque(value).unwrap_err().contains("negative"));
        }
        for value in [json!("abc"), json!(""), json!("NaN"), json!("inf"), json!([1]), json!(true)]
        {
            assert!(opaque(value).unwrap_err().contains("not a number"));
        }
        for value in [json!(1_000_000_000_000_u64), json!("9".repeat(300)), json!(u64::MAX)] {
            assert!(opaque(value).unwrap_err().contains("longer"));
        }
    }

    #[test]
    fn milliseconds_passed_off_as_seconds_are_read_as_milliseconds() {
        assert_eq!(opaque(json!(DAY * 1_000)), Ok(DAY));
        // 30 minutes are too few to be told from seconds; the claims tell.
        let life = lifetime(Some(&json!(1_800_000)), claims(1_800), dated(1_000));
        assert_eq!(life, Ok(Duration::from_secs(1_800)));
    }

    #[test]
    fn claims_do_not_excuse_an_absurd_lifetime() {
        let life = lifetime(Some(&json!(1_000_000_000_000_u64)), claims(DAY), dated(1_000));

        assert!(life.unwrap_err().contains("longer"));
    }

    #[test]
    fn the_earlier_expiry_wins() {
        let life = |expires_in, now| lifetime(Some(&json!(expires_in)), claims(DAY), now);

        assert_eq!(life(DAY, dated(1_000)), Ok(Duration::from_secs(DAY)));
        assert_eq!(life(DAY, dated(1_000 + DAY - 60)), Ok(Duration::from_secs(60)));
        assert_eq!(life(30, dated(1_000 + DAY - 60)), Ok(Duration::from_secs(30)));
        assert_eq!(life(DAY, undated(1_000 + DAY - 60)), Ok(Duration::from_secs(60)));
        assert_eq!(life(2 * DAY, dated(0)), Ok(Duration::from_secs(DAY)));
    }

    #[test]
    fn a_token_over_by_the_servers_date_is_an_error() {
        for now in [1_000 + DAY - 1, 1_000 + DAY, 1_000 + 9 * DAY] {
            let life = lifetime(Some(&json!(DAY)), claims(DAY), dated(now));
            assert!(life.unwrap_err().contains("already expired"));
        }
    }

    #[test]
    fn a_token_of_a_second_is_no_dead_one() {
        let arrival = Arrival { date: Some(at(1_000) + Duration::from_millis(300)), wall: at(0) };

        let life = lifetime(Some(&json!(1)), claims(1), arrival);

        assert_eq!(life, Ok(Duration::from_millis(700)));
    }

    #[test]
    fn our_own_clock_shortens_no_life_to_a_tiny_part() {
        // (seconds that our clock is ahead, expected life of a token of a day)
        for (ahead, expected) in [
            (-1_000_000, DAY),
            (-3_600, DAY),
            (0, DAY),
            (30, DAY - 30),
            (43_200, DAY / 2),
            (86_340, 60),
            (86_343, DAY),
            (86_396, DAY),
            (86_399, DAY),
            (86_400, DAY),
            (86_400_000, DAY),
        ] {
            let wall = at(u64::try_from(1_000_000_i64 + ahead).unwrap());
            let payload = json!({ "created_at": 1_000_000_000_u64, "expires_in": DAY * 1_000 });
            let token = format!("a.{}.c", URL_SAFE_NO_PAD.encode(payload.to_string()));
            for (expires_in, expected) in
                [(DAY, expected), (2 * DAY, expected), (30, expected.min(30))]
            {
                let arrival = Arrival { date: None, wall };

                let life = lifetime(Some(&json!(expires_in)), Claims::of(&token), arrival);

                assert_eq!(life, Ok(Duration::from_secs(expected)), "{ahead} {expires_in}");
            }
        }
    }

    #[test]
    fn date_of_the_server_limits_the_life() {
        // (life left at `Date` by the claims, `expires_in`, expected life)
        for (left, expires_in, expected) in [
            (86_400, 86_400, Some(86_400)),
            (86_399, 86_400, Some(86_399)),
            (43_200, 86_400, Some(43_200)),
            (43_200, 3_600, Some(3_600)),
            (4, 86_400, Some(4)),
            (1, 86_400, None),
            (0, 86_400, None),
        ] {
            let life = lifetime(Some(&json!(expires_in)), claims(DAY), dated(1_000 + DAY - left));

            assert_eq!(life.ok(), expected.map(Duration::from_secs), "{left} {expires_in}");
        }
    }

    #[test]
    fn token_without_a_claimed_life_has_expired() {
        let life = lifetime(Some(&json!(DAY)), claims(0), undated(1_000));

        assert!(life.unwrap_err().contains("already expired"));
    }

    proptest! {
        #[test]
        fn no_lifetime_is_zero_or_absurd(
            text in "-?[0-9a-z.]{0,30}", number in any::<f64>(), claim in 0..u64::MAX / 1_000,
            now in any::<u32>(), with_date in any::<bool>(),
        ) {
            let now = if with_date { dated(now.into()) } else { undated(now.into()) };
            for value in [json!(text), json!(number)] {
                for claims in [None, claims(claim)] {
                    if let Ok(life) = lifetime(Some(&value), claims, now) {
                        prop_assert!(!life.is_zero() && life <= LONGEST);
                    }
                }
            }
        }
    }
}
