//! Scopes: read from every usual form, written as they are sent.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tower_adobe_auth::{Credentials, Scopes};

#[test]
fn scopes_are_taken_in_every_usual_form() {
    let list = ["openid", "AdobeID", "ff_apis"];
    let forms = [
        Scopes::from(list),
        Scopes::from(list.as_slice()),
        Scopes::from(list.to_vec()),
        Scopes::from(list.map(String::from).to_vec()),
        Scopes::from("openid,AdobeID,ff_apis"),
        Scopes::from(" openid, AdobeID,\n ff_apis,"),
        Scopes::from(String::from("openid AdobeID  ff_apis")),
        Scopes::from(" [\"openid\", \"AdobeID\",\n\"ff_apis\"] "),
        Scopes::from(["openid,AdobeID", "ff_apis"]),
        Scopes::from("openid,openid,AdobeID,ff_apis,AdobeID"),
        list.into_iter().collect(),
    ];

    for scopes in forms {
        assert!(scopes.iter().eq(list), "{scopes:?}");
    }
}

#[test]
fn scopes_are_written_with_commas_and_by_choice_with_spaces() {
    let scopes = Scopes::from(["openid", "AdobeID"]);

    assert_eq!(scopes.to_string(), "openid,AdobeID");
    assert_eq!(scopes.separated_by_spaces().to_string(), "openid AdobeID");
}

#[test]
fn text_without_a_scope_is_empty() {
    for text in ["", " \n", ", ,", "[]", "[\"\"]"] {
        assert!(Scopes::from(text).is_empty(), "{text:?}");
    }
    assert!(!Scopes::from("openid").is_empty());
}

#[test]
fn credentials_take_scopes_in_each_of_their_forms() {
    let credentials = || Credentials::new("id-1", "p8e-secret");

    for credentials in [
        credentials().with_scopes(["openid", "AdobeID"]),
        credentials().with_scopes(vec![String::from("openid"), String::from("AdobeID")]),
        credentials().with_scopes("openid, AdobeID"),
        credentials().with_scopes(r#"["openid", "AdobeID"]"#),
        credentials().with_scopes(Scopes::from(["openid", "AdobeID"])),
    ] {
        assert_eq!(credentials.scopes().to_string(), "openid,AdobeID");
    }
}

/// A scope whose text alone is never read as a JSON array.
const SCOPE: &str = "[A-Za-z0-9][!#-+\\--\\[\\]-~]{0,12}";

proptest! {
    #[test]
    fn scopes_survive_being_written_and_read(list in prop::collection::vec(SCOPE, 0..8)) {
        let scopes = Scopes::from(list.clone());
        let array = serde_json::to_string(&list).unwrap();

        prop_assert_eq!(&Scopes::from(array), &scopes);
        prop_assert_eq!(&Scopes::from(scopes.to_string()), &scopes);
        let spaced = scopes.clone().separated_by_spaces();
        prop_assert_eq!(&Scopes::from(spaced.to_string()), &scopes);
    }

    #[test]
    fn scopes_keep_their_order_and_come_once(list in prop::collection::vec("[abc]", 0..12)) {
        let scopes = Scopes::from(list.clone());

        let mut expected: Vec<String> = Vec::new();
        for scope in list {
            if !expected.contains(&scope) {
                expected.push(scope);
            }
        }
        prop_assert!(scopes.iter().eq(expected));
    }

    #[test]
    fn no_scope_is_blank_or_holds_a_separator(text in any::<String>()) {
        for scope in Scopes::from(text).iter() {
            prop_assert!(!scope.is_empty());
            prop_assert!(!scope.contains(|c: char| c == ',' || c.is_whitespace()));
        }
    }
}

/// The shortest of a few readings of this many scopes, one of them twice.
fn time_to_read(count: usize) -> Duration {
    let names: Vec<String> =
        (0..count).map(|number| format!("scope_{}", number % (count - 1))).collect();
    let readings = (0..5).map(|_| {
        let start = Instant::now();
        let scopes = Scopes::from(names.join(","));
        let from_list = Scopes::from(names.as_slice());
        let elapsed = start.elapsed();

        assert!(scopes.iter().eq(names[..count - 1].iter().map(String::as_str)));
        assert_eq!(from_list, scopes);
        elapsed
    });
    readings.min().unwrap()
}

#[test]
fn many_scopes_are_read_in_linear_time() {
    // A ratio, because a busy machine is slow at both. Comparing each scope with every other would take
    // a hundred times as long for ten times as many.
    let (few, many) = (time_to_read(4_000), time_to_read(40_000));

    assert!(many < 40 * few, "{few:?} for 4,000 and {many:?} for 40,000");
}
