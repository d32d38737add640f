//! Credentials from the environment. Each test reads them in a process of its own, because a
//! process cannot safely change its own environment.

#![allow(clippy::unwrap_used)]

use std::{env, ffi::OsStr, process::Command};

use tower_adobe_auth::{ClientSecret, Credentials};

/// Names the prefix to read, in the process that reads.
const PREFIX: &str = "CREDENTIALS_TEST_PREFIX";

/// What stands before the answer in the output of the process that reads.
const ANSWER: &str = "answer: ";

#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn reads_its_own_environment() {
    let read = match env::var(PREFIX) {
        Ok(prefix) => Credentials::from_env_with_prefix(prefix),
        Err(_) => Credentials::from_env(),
    };
    let answer = read.map_err(|error| error.to_string()).map(|credentials| {
        (
            credentials.client_id().to_owned(),
            credentials.client_secret().expose_secret().to_owned(),
            credentials.next_secret().map(ClientSecret::expose_secret).map(str::to_owned),
            credentials.scopes().to_string(),
            credentials.org_id().map(str::to_owned),
        )
    });
    println!("\n{ANSWER}{}", serde_json::to_string(&answer).unwrap());
}

type Answer = Result<(String, String, Option<String>, String, Option<String>), String>;

/// What credentials a process reads whose environment has `variables`.
fn read<V: AsRef<OsStr>>(prefix: Option<&str>, variables: &[(&str, V)]) -> Answer {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["reads_its_own_environment", "--exact", "--ignored", "--nocapture"]);
    for name in ["CLIENT_ID", "CLIENT_SECRET", "SECRET", "SCOPES", "ORG_ID"] {
        command.env_remove(format!("ADOBE_{name}"));
    }
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    if let Some(prefix) = prefix {
        command.env(PREFIX, prefix);
    }

    let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let answer = output.lines().find_map(|line| line.strip_prefix(ANSWER)).unwrap();
    serde_json::from_str(answer).unwrap()
}

/// What is read from a client id and a `CLIENT_SECRET` of `secret`.
fn read_secret(secret: &str) -> (String, Option<String>) {
    let variables = [("ADOBE_CLIENT_ID", "id-1"), ("ADOBE_CLIENT_SECRET", secret)];
    let (_, current, next, _, _) = read(None, &variables).unwrap();
    (current, next)
}

const FULL: [(&str, &str); 4] = [
    ("ADOBE_CLIENT_ID", "id-1"),
    ("ADOBE_CLIENT_SECRET", "p8e-secret"),
    ("ADOBE_SCOPES", "openid, AdobeID"),
    ("ADOBE_ORG_ID", "1234@AdobeOrg"),
];

#[test]
fn reads_the_four_variables() {
    let (id, secret, next, scopes, org_id) = read(None, &FULL).unwrap();

    assert_eq!((id.as_str(), secret.as_str(), next), ("id-1", "p8e-secret", None));
    assert_eq!(scopes, "openid,AdobeID");
    assert_eq!(org_id.as_deref(), Some("1234@AdobeOrg"));
}

#[test]
fn scopes_and_organization_are_optional() {
    let (_, _, _, scopes, org_id) = read(None, &FULL[..2]).unwrap();

    assert_eq!(scopes, "openid,AdobeID,firefly_api,ff_apis");
    assert_eq!(org_id, None);
}

#[test]
fn reads_the_variables_of_another_prefix_and_of_no_other() {
    let mut variables = vec![
        ("FIREFLY_SERVICES_CLIENT_ID", "id-2"),
        ("FIREFLY_SERVICES_SECRET", "p8e-shorter"),
        ("FIREFLY_SERVICES_SCOPES", r#"["openid"]"#),
    ];
    variables.extend(FULL);

    let (id, secret, _, scopes, org_id) = read(Some("FIREFLY_SERVICES"), &variables).unwrap();

    assert_eq!((id.as_str(), secret.as_str()), ("id-2", "p8e-shorter"));
    assert_eq!((scopes.as_str(), org_id), ("openid", None));
}

#[test]
fn the_longer_name_of_the_secret_comes_first() {
    let mut variables = vec![("ADOBE_SECRET", "p8e-shorter")];
    variables.extend(FULL);

    assert_eq!(read(None, &variables).unwrap().1, "p8e-secret");
}

#[test]
fn white_space_around_a_value_is_dropped() {
    let variables = FULL.map(|(name, value)| (name, format!(" {value}\r\n")));

    assert_eq!(read(None, &variables), read(None, &FULL));
}

#[test]
fn a_json_array_holds_the_current_and_the_next_secret() {
    let two = (String::from("one"), Some(String::from("two")));

    assert_eq!(read_secret(r#"["one"]"#), (String::from("one"), None));
    assert_eq!(read_secret(r#"["one", "two"]"#), two);
    assert_eq!(read_secret(r#"["one", "two", "three"]"#), two);
}

#[test]
fn any_other_secret_is_taken_literally() {
    for secret in ["p8e-a+b&c=d%41 é", "one,two", "[one]", r#"["one", 2]"#, r#"["one""#, "\"one\""]
    {
        assert_eq!(read_secret(secret), (secret.to_owned(), None));
    }
}

#[test]
fn a_missing_variable_is_named() {
    let id = read(None, &FULL[1..]).unwrap_err();
    let secret = read(None, &[FULL[0]]).unwrap_err();
    let prefixed = read(Some("PDF_SERVICES"), &FULL).unwrap_err();

    assert_eq!(id, "ADOBE_CLIENT_ID is not set in the environment");
    assert_eq!(secret, "ADOBE_CLIENT_SECRET is not set in the environment");
    assert_eq!(prefixed, "PDF_SERVICES_CLIENT_ID is not set in the environment");
}

#[test]
fn an_empty_variable_is_named() {
    for (index, (name, _)) in FULL.iter().enumerate() {
        for blank in ["", " \n"] {
            let mut variables = FULL;
            variables[index].1 = blank;
            assert_eq!(read(None, &variables).unwrap_err(), format!("{name} is empty"));
        }
    }
    let variables = [("ADOBE_CLIENT_ID", "id-1"), ("ADOBE_SECRET", "")];
    assert_eq!(read(None, &variables).unwrap_err(), "ADOBE_SECRET is empty");
}

#[test]
fn a_variable_that_cannot_be_sent_is_named_without_its_value() {
    for index in [0, 2, 3] {
        let mut variables = FULL;
        variables[index].1 = "p8e\u{1}secret";

        let error = read(None, &variables).unwrap_err();

        assert!(error.contains(FULL[index].0), "{error}");
        assert!(!error.contains("p8e"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_unicode_is_named_without_its_value() {
    use std::os::unix::ffi::OsStrExt;

    for (index, (name, _)) in FULL.iter().enumerate() {
        let mut variables = FULL.map(|(name, value)| (name, OsStr::new(value)));
        variables[index].1 = OsStr::from_bytes(b"p8e-\xff");

        let error = read(None, &variables).unwrap_err();

        assert_eq!(error, format!("{name} is not valid Unicode"));
    }
}
