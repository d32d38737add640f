//! The span of a flight, as a collector of traces sees it.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::yield_now;
use tower_adobe_auth::{MemoryStore, TokenError, TokenResponse, TokenSource};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Registry,
    layer::{Context, Layer, SubscriberExt},
    registry::LookupSpan,
};

type Fields = BTreeMap<String, String>;

/// What was told of the spans of the name `token_refresh`, in the order of their beginning.
#[derive(Clone, Default)]
struct Flights(Arc<Mutex<Vec<Told>>>);

#[derive(Clone, Default)]
struct Told {
    id: u64,
    fields: Fields,
    is_root: bool,
    follows: Vec<String>,
    events: Vec<String>,
    closed: bool,
}

struct Recorded<'a>(&'a mut Fields);

impl Visit for Recorded<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl Flights {
    fn with(&self, id: &Id, change: impl FnOnce(&mut Told)) {
        let mut flights = self.0.lock().unwrap();
        // The registry uses numbers again: the last one is meant.
        if let Some(told) = flights.iter_mut().rev().find(|told| told.id == id.into_u64()) {
            change(told);
        }
    }

    fn told(&self) -> Vec<Told> {
        self.0.lock().unwrap().clone()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Flights {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        if attributes.metadata().name() == "token_refresh" {
            let mut told =
                Told { id: id.into_u64(), is_root: attributes.is_root(), ..Told::default() };
            attributes.record(&mut Recorded(&mut told.fields));
            self.0.lock().unwrap().push(told);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        self.with(id, |told| values.record(&mut Recorded(&mut told.fields)));
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        let name = context.span(follows).unwrap().name().to_owned();
        self.with(id, |told| told.follows.push(name));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Recorded(&mut fields));
        if let Some(span) = context.event_span(event) {
            self.with(&span.id(), |told| told.events.push(fields["message"].clone()));
        }
    }

    fn on_close(&self, id: Id, _: Context<'_, S>) {
        self.with(&id, |told| told.closed = true);
    }
}

async fn flights(work: impl Future<Output = ()>) -> Vec<Told> {
    let flights = Flights::default();
    // Of this thread, where all tasks of the test run.
    let subscriber = Registry::default().with(flights.clone());
    let _default = tracing::subscriber::set_default(subscriber);
    work.await;
    // Tasks that have landed are still to be dropped.
    for _ in 0..10 {
        yield_now().await;
    }
    flights.told()
}

#[tokio::test(start_paused = true)]
async fn a_flight_is_one_span_with_stable_fields() {
    let told = flights(async {
        let fetch = || async {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            Ok(TokenResponse::new("a-token", Duration::from_secs(3_600)))
        };
        let tokens = TokenSource::builder_from_fetcher(fetch).name("firefly").build().unwrap();
        let caller = tracing::info_span!("caller");
        let first = tracing::Instrument::instrument(tokens.token(), caller);
        let (one, another, third) = tokio::join!(first, tokens.token(), tokens.token());
        assert!(one.is_ok() && another.is_ok() && third.is_ok());
    })
    .await;

    let [flight] = &told[..] else { panic!("{} flights", told.len()) };
    let expected = [
        ("attempt", "1"),
        ("duration", "1.5"),
        ("expires_in", "3600.0"),
        ("flight", "1"),
        ("otel.kind", "client"),
        ("outcome", "success"),
        ("source", "firefly"),
        ("waiters", "3"),
    ];
    let fields: Vec<_> = flight.fields.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(fields, expected);
    assert!(flight.is_root && flight.closed);
    assert_eq!(flight.follows, ["caller"]);
    assert_eq!(flight.events, ["obtained an access token"]);
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_fails_says_so_in_the_words_of_opentelemetry() {
    let told = flights(async {
        let fetch = || async { Err(TokenError::transient("not now")) };
        let tokens = TokenSource::builder_from_fetcher(fetch).refresh_on_demand().build().unwrap();
        tokens.token().await.unwrap_err();
    })
    .await;

    let [flight] = &told[..] else { panic!("{} flights", told.len()) };
    let field = |name: &str| flight.fields.get(name).map(String::as_str);
    assert_eq!(field("otel.status_code"), Some("ERROR"));
    assert_eq!(field("attempt"), Some("3"));
    assert_eq!(field("waiters"), Some("1"));
    assert_eq!(field("expires_in"), None);
    assert_ne!(field("outcome"), Some("success"));
    assert_eq!(
        flight.events.iter().filter(|event| *event == "could not obtain an access token").count(),
        3
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_process_is_told_as_shared() {
    let store = MemoryStore::default();
    let process = |good: bool| {
        let fetch = move || async move {
            match good {
                true => Ok(TokenResponse::new("a-token", Duration::from_secs(3_600))),
                false => Err(TokenError::permanent("no")),
            }
        };
        let builder = TokenSource::builder_from_fetcher(fetch).refresh_on_demand();
        builder.store(store.clone()).store_name("shared").build().unwrap()
    };
    process(true).token().await.unwrap();

    // Taken before it is due, and after that because there is no other.
    for age in [0, 3_400] {
        tokio::time::advance(Duration::from_secs(age)).await;
        let told = flights(async {
            process(false).token().await.unwrap();
        })
        .await;

        let [flight] = &told[..] else { panic!("{} flights", told.len()) };
        assert_eq!(flight.fields["outcome"], "shared");
        assert!(flight.fields.contains_key("expires_in"));
        assert!(!flight.fields.contains_key("otel.status_code"));
        assert!(!flight.events.iter().any(|event| event.starts_with("obtained")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_panics_ends_its_span_with_an_outcome() {
    let told = flights(async {
        let fetch = || async { panic!("as asked") };
        let tokens = TokenSource::builder_from_fetcher(fetch).refresh_on_demand().build().unwrap();
        tokens.token().await.unwrap_err();
    })
    .await;

    assert_eq!(told.len(), 1);
    assert_eq!(told[0].fields["outcome"], "panicked");
    assert!(told[0].closed);
}

#[tokio::test]
async fn a_flight_that_is_shut_down_ends_its_span_with_an_outcome() {
    let told = flights(async {
        let fetch = || std::future::pending();
        let tokens = TokenSource::builder_from_fetcher(fetch).build().unwrap();
        let _ = tokens.try_token();
        tokens.shutdown().await.unwrap();
    })
    .await;

    let [flight] = &told[..] else { panic!("{} flights", told.len()) };
    assert_eq!(flight.fields["outcome"], "shutdown");
    assert!(flight.closed);
}

#[test]
fn a_flight_whose_runtime_ends_ends_its_span_with_an_outcome() {
    for polled in [false, true] {
        let flights = Flights::default();
        let subscriber = Registry::default().with(flights.clone());
        let _default = tracing::subscriber::set_default(subscriber);
        let fetch = || std::future::pending();
        let tokens = TokenSource::builder_from_fetcher(fetch).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let _ = tokens.try_token();
            if polled {
                yield_now().await;
            }
        });

        drop(runtime);

        let told = flights.told();
        let [flight] = &told[..] else { panic!("{} flights", told.len()) };
        assert_eq!(flight.fields["outcome"], "runtime_lost");
        assert_eq!(flight.fields.contains_key("attempt"), polled);
        assert_eq!(
            flight.events,
            ["a token refresh was lost with its runtime; the next caller starts another one"]
        );
        assert!(flight.closed);
    }
}

#[test]
fn the_docs_name_each_event() {
    let docs = include_str!("../src/telemetry/mod.rs");
    let mut folders = vec![std::path::PathBuf::from("src")];
    let mut events = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let code = std::fs::read_to_string(&path).unwrap();
            for event in
                ["debug!(", "info!(", "warn!("].iter().flat_map(|it| code.split(it).skip(1))
            {
                let message = event.split('"').nth(1).unwrap();
                assert!(docs.contains(&format!("`{message}`")), "{message} in {}", path.display());
                events += 1;
            }
        }
    }
    assert!(events >= 9, "{events}");
}

#[test]
fn the_docs_name_each_field() {
    let docs = include_str!("../src/telemetry/mod.rs");
    for field in
        ["source", "flight", "attempt", "outcome", "duration", "expires_in", "waiters", "otel.kind"]
    {
        assert!(docs.contains(&format!("`{field}`")), "{field}");
    }
}
