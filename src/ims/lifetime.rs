//! How long a token is believed to live: the answer's `expires_in`, cross-checked with the claims.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::claims::Claims;

/// Adobe's tokens live a day. What claims to live longer than this is counted in another unit, or
/// wrong.
const LONGEST: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// A token whose claims leave it no more than this, or than half of a shorter life, is dead on
/// arrival: taking it would make every request ask for another.
const SHORTEST: Duration = Duration::from_secs(1);

/// When an answer came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// By the server's own `Date`, which knows nothing of our clock's error.
    pub(crate) date: Option<SystemTime>,
    /// By our wall clock.
    pub(crate) wall: SystemTime,
}

impl Arrival {
    pub(crate) fn best(self) -> SystemTime {
        self.date.unwrap_or(self.wall)
    }
}

/// The life of a token that arrived at `arrival`: the shorter of what `expires_in` and `claims`
/// leave it.
///
/// # Errors
///
/// What is wrong with it, in one clause.
pub(crate) fn lifetime(
    expires_in: Option<&Value>,
    claims: Option<Claims>,
    arrival: Arrival,
) -> Result<Duration, &'static str> {
    let answered = bounded(seconds(expires_in)?)?;
    let Some(claims) = claims else { return Ok(answered) };

    let shortest = SHORTEST.min(claims.lifetime() / 2);
    let mut claimed = claims.remaining(arrival.best());
    // Without the server's time, a token that seems to be over may only mean that our clock is
    // wrong: IMS has just said that it is not.
    if claimed <= shortest && arrival.date.is_none() {
        claimed = claims.lifetime();
    }
    if claimed <= shortest {
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
    // Exact for every lifetime that is not refused as too long; the cast saturates.
    match seconds as u64 {
        0 => Err("IMS answered with an expires_in of zero"),
        seconds => Ok(seconds),
    }
}

/// Reads a number of seconds that is too large as milliseconds, as the retired JWT exchange
/// answered.
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
    fn a_token_over_by_our_clock_alone_is_believed() {
        let life = lifetime(Some(&json!(3_600)), claims(DAY), undated(1_000 + 9 * DAY));
        assert_eq!(life, Ok(Duration::from_secs(3_600)));
        let life = lifetime(Some(&json!(9 * DAY)), claims(DAY), undated(1_000 + 9 * DAY));
        assert_eq!(life, Ok(Duration::from_secs(DAY)));

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
