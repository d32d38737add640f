//! Who we are: taken from the program, the environment and the Console's files, and never shown.

#![allow(clippy::unwrap_used)]

use std::{
    error::Error,
    fmt::{Debug, Display},
    fs,
};

use proptest::prelude::*;
use serde_json::{Value, json};
use tower_adobe_auth::{ClientSecret, ConfigError, Credentials, ImsClient, Scopes};

const SECRET: &str = "p8e-a+b&c=d%41 é";
const DEFAULT_SCOPES: &str = "openid,AdobeID,firefly_api,ff_apis";

fn flat() -> Value {
    json!({
        "CLIENT_ID": "id-1",
        "CLIENT_SECRETS": [SECRET],
        "SCOPES": ["openid", "AdobeID"],
        "ORG_ID": "1234@AdobeOrg",
        "TECHNICAL_ACCOUNT_ID": "5678@techacct.adobe.com",
        "TYPE": "oauthservertoserver"
    })
}

fn context() -> Value {
    json!({
        "client_id": "id-1",
        "client_secrets": [SECRET],
        "technical_account_id": "5678@techacct.adobe.com",
        "ims_org_id": "1234@AdobeOrg",
        "scopes": ["openid", "AdobeID"]
    })
}

fn project() -> Value {
    json!({
        "project": {
            "name": "demo",
            "org": { "id": "1", "ims_org_id": "1234@AdobeOrg" },
            "workspace": { "details": { "credentials": [
                { "integration_type": "apikey", "api_key": { "client_id": "other" } },
                {
                    "integration_type": "oauth_server_to_server",
                    "oauth_server_to_server": {
                        "client_id": "id-1",
                        "client_secrets": [SECRET],
                        "scopes": ["openid", "AdobeID"]
                    }
                }
            ] } }
        }
    })
}

/// `flat` with `value` at `key`.
fn flat_with(key: &str, value: Value) -> String {
    let mut document = flat();
    document[key] = value;
    document.to_string()
}

fn flat_without(key: &str) -> String {
    let mut document = flat();
    document.as_object_mut().unwrap().remove(key);
    document.to_string()
}

fn read(json: impl AsRef<[u8]>) -> Credentials {
    Credentials::from_console_json(json).unwrap()
}

fn refusal(json: impl AsRef<[u8]>) -> ConfigError {
    Credentials::from_console_json(json).unwrap_err()
}

fn current(credentials: &Credentials) -> &str {
    credentials.client_secret().expose_secret()
}

fn next(credentials: &Credentials) -> Option<&str> {
    credentials.next_secret().map(ClientSecret::expose_secret)
}

/// All that an error can say, its causes included.
fn everything_said<E: Display + Debug + Error>(error: &E) -> String {
    let mut said = format!("{error} {error:?} {error:#?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        said += &format!(" {error} {error:?}");
        cause = error.source();
    }
    said
}

#[test]
fn new_credentials_ask_for_the_default_scopes_of_no_organization() {
    let credentials = Credentials::new("id-1", SECRET);

    assert_eq!(credentials.client_id(), "id-1");
    assert_eq!(current(&credentials), SECRET);
    assert_eq!(next(&credentials), None);
    assert_eq!(credentials.scopes().to_string(), DEFAULT_SCOPES);
    assert_eq!(credentials.org_id(), None);
}

#[test]
fn what_is_optional_can_be_set_and_cleared() {
    let full = Credentials::new("id-1", String::from("one"))
        .with_next_secret("two")
        .with_scopes(["openid"])
        .with_org_id("1234");
    let bare = full.clone().without_next_secret().without_org_id();

    assert_eq!((current(&full), next(&full), full.org_id()), ("one", Some("two"), Some("1234")));
    assert_eq!((current(&bare), next(&bare), bare.org_id()), ("one", None, None));
}

#[test]
fn debug_redacts_the_secrets() {
    let credentials = Credentials::new("id-1", "p8e-one").with_next_secret("p8e-two");

    let shown = format!("{credentials:?} {credentials:#?} {:?}", credentials.client_secret());

    assert!(!shown.contains("p8e"), "{shown}");
    assert!(shown.contains("id-1") && shown.contains("[redacted]"), "{shown}");
}

#[test]
fn reads_each_of_the_consoles_shapes() {
    for document in [flat(), context(), project()] {
        let credentials = read(document.to_string());

        assert_eq!(credentials.client_id(), "id-1");
        assert_eq!(current(&credentials), SECRET);
        assert_eq!(next(&credentials), None);
        assert_eq!(credentials.scopes().to_string(), "openid,AdobeID");
        assert_eq!(credentials.org_id(), Some("1234@AdobeOrg"));
    }
}

#[test]
fn reads_keys_without_regard_to_case() {
    for json in [
        r#"{"Client_Id": "id-1", "client_SECRETS": ["s"], "Ims_Org_Id": "o"}"#,
        r#"{"Project": {"Org": {"IMS_ORG_ID": "o"}, "Workspace": {"Details": {"Credentials":
           [{"OAuth_Server_To_Server": {"CLIENT_ID": "id-1", "CLIENT_SECRETS": ["s"]}}]}}}}"#,
    ] {
        let credentials = read(json);
        assert_eq!(credentials.client_id(), "id-1");
        assert_eq!(credentials.org_id(), Some("o"));
    }
}

#[test]
fn reads_bytes_with_a_byte_order_mark() {
    let json = format!("\u{feff}{}", flat());

    assert_eq!(read(json.into_bytes()).client_id(), "id-1");
}

#[test]
fn the_consoles_json_without_scopes_and_organization_asks_for_the_defaults() {
    for json in [
        r#"{"CLIENT_ID": "id-1", "CLIENT_SECRETS": ["s"]}"#,
        r#"{"CLIENT_ID": "id-1", "CLIENT_SECRETS": ["s"], "SCOPES": null, "ORG_ID": null}"#,
    ] {
        let credentials = read(json);
        assert_eq!(credentials.scopes().to_string(), DEFAULT_SCOPES);
        assert_eq!(credentials.org_id(), None);
    }
}

#[test]
fn the_consoles_json_may_hold_scopes_and_secrets_as_text() {
    for (secrets, two) in [("only", None), (r#"["only", "other"]"#, Some("other"))] {
        for scopes in ["openid,AdobeID", "openid AdobeID", r#"["openid","AdobeID"]"#] {
            let document =
                json!({ "CLIENT_ID": "id-1", "CLIENT_SECRETS": secrets, "SCOPES": scopes });
            let credentials = read(document.to_string());

            assert_eq!((current(&credentials), next(&credentials)), ("only", two));
            assert_eq!(credentials.scopes().to_string(), "openid,AdobeID");
        }
    }
}

#[test]
fn the_first_two_secrets_are_the_current_and_the_next() {
    let two = read(flat_with("CLIENT_SECRETS", json!(["one", "two"])));
    let three = read(flat_with("CLIENT_SECRETS", json!(["one", "two", "three"])));

    assert_eq!((current(&two), next(&two)), ("one", Some("two")));
    assert_eq!((current(&three), next(&three)), ("one", Some("two")));
}

#[test]
fn a_missing_field_is_named() {
    for key in ["CLIENT_ID", "CLIENT_SECRETS"] {
        for json in [flat_without(key), flat_with(key, Value::Null)] {
            assert_eq!(refusal(json).to_string(), format!("{key} is missing"));
        }
    }
    for key in ["client_id", "client_secrets"] {
        let mut document = project();
        document["project"]["workspace"]["details"]["credentials"][1]["oauth_server_to_server"]
            .as_object_mut()
            .unwrap()
            .remove(key);
        let expected = format!("oauth_server_to_server.{key} is missing");
        assert_eq!(refusal(document.to_string()).to_string(), expected);
    }
}

#[test]
fn an_empty_field_is_named() {
    for key in ["CLIENT_ID", "CLIENT_SECRETS", "SCOPES", "ORG_ID"] {
        for blank in ["", " \n\t"] {
            let error = refusal(flat_with(key, json!(blank)));
            assert_eq!(error.to_string(), format!("{key} is empty"));
        }
    }
    for key in ["CLIENT_SECRETS", "SCOPES"] {
        for blank in [json!([]), json!([""]), json!([" "])] {
            let error = refusal(flat_with(key, blank));
            assert_eq!(error.to_string(), format!("{key} is empty"));
        }
    }
    let error = refusal(flat_with("CLIENT_SECRETS", json!(["one", ""])));
    assert_eq!(error.to_string(), "CLIENT_SECRETS is empty");
}

#[test]
fn a_field_is_called_as_the_file_writes_it() {
    let mut document = context();
    document["ims_org_id"] = json!("");
    assert_eq!(refusal(document.to_string()).to_string(), "ims_org_id is empty");

    let mut document = project();
    document["project"]["org"]["ims_org_id"] = json!("");
    assert_eq!(refusal(document.to_string()).to_string(), "project.org.ims_org_id is empty");
}

#[test]
fn a_value_that_no_header_can_carry_is_refused() {
    for key in ["CLIENT_ID", "ORG_ID"] {
        for value in ["a\nb", "a\r\nX-Other: 1", "a\0", " a", "a "] {
            let error = refusal(flat_with(key, json!(value)));
            let expected = format!("{key} cannot be sent as the value of a header");
            assert_eq!(error.to_string(), expected, "{value:?}");
        }
    }
}

#[test]
fn an_organization_is_taken_as_it_is() {
    assert_eq!(read(flat_with("ORG_ID", json!("1234"))).org_id(), Some("1234"));
}

#[test]
fn a_scope_that_rfc_6749_does_not_allow_is_refused_by_its_place() {
    for scope in ["a\"b", "a\\b", "é", "a\0b", "\u{7f}"] {
        let error = refusal(flat_with("SCOPES", json!(["openid", scope])));
        let expected = "scope 2 of SCOPES holds a character that no scope can hold";
        assert_eq!(error.to_string(), expected, "{scope:?}");
    }
}

#[test]
fn a_project_without_a_server_to_server_credential_is_refused() {
    let without = [
        json!({ "project": {} }),
        json!({ "project": { "workspace": { "details": { "credentials": {} } } } }),
        json!({ "project": { "workspace": { "details": { "credentials": [] } } } }),
        json!({ "project": { "workspace": { "details": { "credentials": [{ "jwt": {} }] } } } }),
    ];

    for document in without {
        let error = refusal(document.to_string()).to_string();
        assert!(error.starts_with("project.workspace.details.credentials "), "{error}");
    }
}

#[test]
fn no_error_shows_a_secret_that_stands_where_something_else_is_expected() {
    let misplaced = [
        json!(SECRET),
        json!([SECRET]),
        json!([SECRET, 7]),
        json!([[SECRET]]),
        json!({ "secret": SECRET }),
        json!({ SECRET: SECRET }),
        json!(format!("{SECRET}\n")),
        json!([{ "client_secret": SECRET }]),
    ];
    let mut documents: Vec<String> = misplaced.iter().map(Value::to_string).collect();
    for value in &misplaced {
        for key in ["CLIENT_ID", "CLIENT_SECRETS", "SCOPES", "ORG_ID", "project"] {
            documents.push(flat_with(key, value.clone()));
        }
    }

    let errors: Vec<_> =
        documents.iter().filter_map(|json| Credentials::from_console_json(json).err()).collect();

    assert!(errors.len() > documents.len() / 2);
    for error in errors {
        let said = everything_said(&error);
        assert!(!said.contains("p8e"), "{said}");
    }
}

#[test]
fn no_error_shows_a_secret_of_a_file_that_breaks_off() {
    let whole = project().to_string();

    for end in (0..whole.len()).filter(|end| whole.is_char_boundary(*end)) {
        let said = everything_said(&refusal(&whole[..end]));
        assert!(!said.contains("p8e"), "{said}");
    }
    let error = refusal(format!("{{\n\"CLIENT_SECRETS\": {SECRET}}}"));
    assert!(error.to_string().contains("line 2"), "{error}");
    assert!(!everything_said(&error).contains("p8e"));
}

#[test]
fn what_is_no_json_object_is_refused() {
    for json in ["[]", "null", "7", "\"p8e\""] {
        assert_eq!(refusal(json).to_string(), "the credentials are not a JSON object");
    }
    assert!(Credentials::from_console_json("[".repeat(100_000)).is_err());
}

#[test]
fn reads_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials.json");
    fs::write(&path, flat().to_string()).unwrap();

    assert_eq!(Credentials::from_console_file(&path).unwrap().client_id(), "id-1");
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing.json");

    let error = Credentials::from_console_file(&path).unwrap_err();

    assert!(error.to_string().contains("missing.json"), "{error}");
    assert!(error.source().unwrap().is::<std::io::Error>());
}

#[test]
fn a_file_too_large_for_credentials_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.json");
    fs::write(&path, " ".repeat(2 * 1024 * 1024)).unwrap();

    let error = Credentials::from_console_file(&path).unwrap_err();

    assert!(error.to_string().ends_with("large.json is too large to be read"), "{error}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_credentials_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..256),
    ) {
        let _ = Credentials::from_console_json(bytes);
    }

    #[test]
    fn what_the_console_writes_is_what_is_read(
        id in "[!-~]{1,40}",
        secrets in prop::collection::vec(".*[^\\s\\p{C}].*", 1..3),
        scopes in prop::collection::vec("[a-zA-Z_.]{1,12}", 1..5),
        org_id in "[!-~]{1,40}",
    ) {
        let mut flat = flat();
        flat["CLIENT_ID"] = json!(id);
        flat["CLIENT_SECRETS"] = json!(secrets);
        flat["SCOPES"] = json!(scopes);
        flat["ORG_ID"] = json!(org_id);

        let credentials = read(flat.to_string());

        prop_assert_eq!(credentials.client_id(), id);
        prop_assert_eq!(current(&credentials), &secrets[0]);
        prop_assert_eq!(next(&credentials), secrets.get(1).map(String::as_str));
        prop_assert_eq!(credentials.scopes(), &Scopes::from(scopes));
        prop_assert_eq!(credentials.org_id(), Some(org_id.as_str()));
    }
}

#[test]
fn only_without_scopes_may_there_be_none() {
    let build = |credentials: Credentials| {
        let nobody =
            tower::service_fn(|_: http::Request<http_body_util::Full<bytes::Bytes>>| async {
                Err::<http::Response<String>, _>("not reached")
            });
        ImsClient::builder(credentials).transport(nobody).build()
    };
    let credentials = Credentials::new("client-id", "p8e-secret");

    build(credentials.clone().without_scopes()).unwrap();

    let error = build(credentials.clone().with_scopes("")).unwrap_err();
    assert_eq!(error.to_string(), "scopes is empty");
    let error = build(credentials.without_scopes().with_scopes(" , ")).unwrap_err();
    assert_eq!(error.to_string(), "scopes is empty");
}
