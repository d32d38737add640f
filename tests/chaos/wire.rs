//! As much of HTTP/1.1 as IMS and the API of this test need, with one thread per connection.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
};

pub(crate) struct Request {
    /// By their names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

pub(crate) enum Reply {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// The request is never answered.
    Hang,
    /// The connection is closed without an answer.
    Close,
}

impl Reply {
    pub(crate) fn json(status: u16, body: impl Into<String>) -> Self {
        Self::Answer { status, headers: Vec::new(), body: body.into() }
    }
}

/// Serves until the test process ends. Returns the URL.
///
/// A connection is closed immediately while `accepts` says no.
pub(crate) fn serve(
    accepts: impl Fn() -> bool + Send + 'static,
    answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if accepts() {
                let answer = answer.clone();
                thread::spawn(move || converse(stream, &*answer));
            }
        }
    });
    url
}

fn converse(mut stream: TcpStream, answer: &dyn Fn(&Request) -> Reply) {
    let _ = stream.set_nodelay(true);
    let Ok(reading) = stream.try_clone() else { return };
    let mut reading = BufReader::new(reading);
    while let Some(request) = read(&mut reading) {
        match answer(&request) {
            Reply::Answer { status, headers, body } => {
                let mut head = format!(
                    "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\n\
                     content-length: {}\r\n",
                    body.len()
                );
                for (name, value) in headers {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                if write!(stream, "{head}\r\n{body}").is_err() {
                    return;
                }
            }
            Reply::Hang => {
                // Until the client gives up.
                let _ = reading.read(&mut [0]);
                return;
            }
            Reply::Close => return,
        }
    }
}

/// `None` at the end of the connection.
fn read(stream: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut headers = HashMap::new();
    loop {
        line.clear();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|it| it.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Request { headers, body: String::from_utf8(body).ok()? })
}
