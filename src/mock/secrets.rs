//! The Console's API for the secrets of a client. It stands behind the guard of the API.

use std::time::{Duration, UNIX_EPOCH};

use http::header::ALLOW;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Value, json};

use super::clients::{Clients, Secret};
use super::reply::{self, Reply};

/// The scopes that a token must have, all of them.
pub(super) const SCOPES: [&str; 8] = [
    "AdobeID",
    "openid",
    "read_organizations",
    "additional_info.projectedProductContext",
    "additional_info.roles",
    "adobeio_api",
    "read_client_secret",
    "manage_client_secrets",
];

/// What the Console calls the organization of all clients.
const ORGANIZATION: &str = "23294";

/// The secrets of a credential, or one of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route<'a> {
    organization: &'a str,
    credential: &'a str,
    uuid: Option<&'a str>,
}

/// The path of the secrets of a credential.
pub(super) fn path(credential: &str) -> String {
    format!("/console/organizations/{ORGANIZATION}/credentials/{credential}/secrets")
}

/// What a path names, if it is one of this API.
pub(super) fn route(path: &str) -> Option<Route<'_>> {
    let rest = path.strip_prefix("/console/organizations/")?;
    let (organization, credential, uuid) = match *rest.split('/').collect::<Vec<_>>() {
        [organization, "credentials", credential, "secrets"] => (organization, credential, None),
        [organization, "credentials", credential, "secrets", uuid] => {
            (organization, credential, Some(uuid))
        }
        _ => return None,
    };
    Some(Route { organization, credential, uuid })
}

/// Answers a request that the guard has let through.
pub(super) fn answer(clients: &mut Clients, method: &Method, route: &Route<'_>, now: u64) -> Reply {
    let client = clients.of_credential(route.credential).map(str::to_owned);
    let Some(id) = client.filter(|_| route.organization == ORGANIZATION) else {
        return error(StatusCode::NOT_FOUND, "there is no such credential");
    };
    match (method, route.uuid) {
        (&Method::GET, None) => list(clients, &id),
        (&Method::POST, None) => match clients.generate(&id, now) {
            Some(secret) => reply::json(StatusCode::CREATED, &in_clear(secret)),
            None => error(StatusCode::BAD_REQUEST, "the credential has two secrets already"),
        },
        (&Method::DELETE, Some(uuid)) => {
            if clients.remove(&id, uuid) {
                reply::empty(StatusCode::NO_CONTENT)
            } else {
                error(StatusCode::NOT_FOUND, "there is no such secret")
            }
        }
        (_, uuid) => {
            let allowed = if uuid.is_some() { "DELETE" } else { "GET, POST" };
            let mut reply = error(StatusCode::METHOD_NOT_ALLOWED, "this method is not known here");
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            reply
        }
    }
}

fn list(clients: &Clients, id: &str) -> Reply {
    let secrets: Vec<_> = clients.secrets(id).unwrap_or_default().iter().map(described).collect();
    reply::json(StatusCode::OK, &json!({ "client_id": id, "client_secrets": secrets }))
}

/// All but the secret itself.
fn described(secret: &Secret) -> Value {
    let usage =
        |at: u64| json!([{ "last_used_at": at.to_string(), "grant_type": "client_credentials" }]);
    json!({
        "uuid": secret.uuid,
        "expires_at": "PERMANENT",
        "expires_at_str": "PERMANENT",
        "created_at": secret.created_at.to_string(),
        "created_at_str": for_people(secret.created_at),
        "secret_usages": secret.last_used_at.map(usage),
    })
}

fn in_clear(secret: &Secret) -> Value {
    let mut described = described(secret);
    described["client_secret"] = Value::from(secret.value.as_str());
    described
}

/// As the Console writes a time: `Tue, May 2 2023 05:36:17.000 UTC`.
fn for_people(millis: u64) -> String {
    let time = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(millis));
    match *time.split(' ').collect::<Vec<_>>() {
        [weekday, day, month, year, time, _] => {
            let day = day.trim_start_matches('0');
            format!("{weekday} {month} {day} {year} {time}.{:03} UTC", millis % 1000)
        }
        _ => time,
    }
}

fn error(status: StatusCode, message: &str) -> Reply {
    let code = format!("{}000", status.as_u16());
    reply::json(status, &json!({ "error_code": code, "message": message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_the_secrets_of_a_credential_or_one_of_them() {
        let (organization, credential) = (ORGANIZATION, "7");
        let all = path(credential);
        let one = format!("{all}/abc");

        assert_eq!(route(&all), Some(Route { organization, credential, uuid: None }));
        assert_eq!(route(&one), Some(Route { organization, credential, uuid: Some("abc") }));
        assert_eq!(route(&format!("{one}/more")), None);
        assert_eq!(route("/console/organizations/23294/projects"), None);
    }

    #[test]
    fn a_time_is_written_as_the_console_writes_it() {
        assert_eq!(for_people(1_683_005_777_000), "Tue, May 2 2023 05:36:17.000 UTC");
    }
}
