//! [`Proxy`]: the network between the workers and Redis, which delays, holds back and cuts.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

pub(crate) struct Proxy {
    /// By seat.
    urls: Vec<String>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Added to each round trip, in milliseconds.
    delay: AtomicU64,
    /// `true` while nothing passes. TCP loses nothing: the bytes pass later, or the connection ends.
    is_black_hole: AtomicBool,
    open: Mutex<Vec<(TcpStream, UnixStream)>>,
    /// Waits for the next seat whose process is granted a lease.
    trap: Mutex<Option<Sender<usize>>>,
}

/// How long the grant of a lease is held back for a process that is about to be stopped.
const HELD: Duration = Duration::from_millis(300);

impl Proxy {
    /// Starts with one address for each seat.
    pub(crate) fn start(socket: &Path, seats: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let listen = |seat| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("redis://{}", listener.local_addr().unwrap());
            let (socket, shared) = (socket.to_owned(), shared.clone());
            thread::spawn(move || accept(&listener, &socket, seat, &shared));
            url
        };
        Self { urls: (0..seats).map(listen).collect(), shared }
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.urls.clone()
    }

    /// Holds the next grant of a lease for a moment, and tells the seat of its process.
    pub(crate) fn trap(&self) -> Receiver<usize> {
        let (sender, receiver) = channel();
        *self.shared.trap.lock().unwrap() = Some(sender);
        receiver
    }

    /// Adds this to each round trip from now on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap();
        self.shared.delay.store(delay, Ordering::Relaxed);
    }

    pub(crate) fn set_black_hole(&self, is_black_hole: bool) {
        self.shared.is_black_hole.store(is_black_hole, Ordering::Relaxed);
    }

    /// Closes every open connection.
    pub(crate) fn cut(&self) {
        for (client, server) in self.shared.open.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, socket: &Path, seat: usize, shared: &Arc<Shared>) {
    for client in listener.incoming().map_while(Result::ok) {
        // A server that is down closes the connection of the client.
        let Ok(server) = UnixStream::connect(socket) else { continue };
        let _ = client.set_nodelay(true);
        let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else {
            continue;
        };
        let (Ok(client_kept), Ok(server_kept)) = (client.try_clone(), server.try_clone()) else {
            continue;
        };
        shared.open.lock().unwrap().push((client_kept, server_kept));
        let (there, back) = (shared.clone(), shared.clone());
        thread::spawn(move || {
            pump(&client, &server, &there, |_| {});
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        });
        thread::spawn(move || {
            pump(&server_too, &client_too, &back, |bytes| {
                let trap = is_grant(bytes).then(|| back.trap.lock().unwrap().take()).flatten();
                if trap.is_some_and(|trap| trap.send(seat).is_ok()) {
                    thread::sleep(HELD);
                }
            });
            let _ = (client_too.shutdown(Shutdown::Both), server_too.shutdown(Shutdown::Both));
        });
    }
}

/// Returns whether this response grants a lease: of all integers in responses, only fencing tokens are
/// milliseconds since 1970.
fn is_grant(bytes: &[u8]) -> bool {
    let is_long_integer = |line: &[u8]| line.first() == Some(&b':') && line.len() > 13;
    bytes.split(|byte| *byte == b'\n').any(is_long_integer)
}

fn pump<From, To>(mut from: &From, mut to: &To, shared: &Shared, inspect: impl Fn(&[u8]))
where
    for<'a> &'a From: Read,
    for<'a> &'a To: Write,
{
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        inspect(&buffer[..length]);
        thread::sleep(Duration::from_millis(shared.delay.load(Ordering::Relaxed) / 2));
        while shared.is_black_hole.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        if to.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}
