//! The two servers: their sockets, their thread, and how they are cut off.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{self, Handle};
use tokio::sync::{oneshot, watch};

use super::reply::Cut;
use super::state::Shared;
use super::{api, endpoints};

/// Enough for a thousand callers that connect at once.
const BACKLOG: u32 = 1_024;

/// Both servers, on a thread and a runtime of their own, so that no test's runtime, paused clock or
/// end has a say over them. Dropping it ends them and frees their ports.
pub(super) struct Server {
    pub(super) ims: SocketAddr,
    pub(super) api: SocketAddr,
    /// The runtime of the servers: its clock runs whatever the test does to its own.
    pub(super) runtime: Handle,
    link: watch::Sender<Link>,
    // Held, not used: that it is dropped is the signal to stop.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The line to IMS.
#[derive(Clone, Copy, Default)]
struct Link {
    down: bool,
    // Connections live as long as this is what it was when they were accepted.
    cuts: u64,
}

impl Server {
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (link, watched) = watch::channel(Link::default());
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("mock-ims".to_owned())
            .spawn(move || run(shared, watched, stopped, &ready))?;
        let (ims, api, runtime) = started.recv().map_err(io::Error::other)??;
        Ok(Self { ims, api, runtime, link, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn go_down(&self) {
        self.link.send_modify(|link| {
            link.down = true;
            link.cuts += 1;
        });
    }

    pub(super) fn come_back(&self) {
        self.link.send_modify(|link| link.down = false);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there, and this may be the end of a failing test.
            let _ = thread.join();
        }
    }
}

/// The addresses of IMS and of the API, and the runtime that serves them.
type Started = (SocketAddr, SocketAddr, Handle);

fn run(
    shared: Arc<Shared>,
    link: watch::Receiver<Link>,
    stopped: oneshot::Receiver<()>,
    ready: &mpsc::Sender<io::Result<Started>>,
) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async move {
        let (ims, api) = match listen().and_then(|ims| Ok((ims, listen()?))) {
            Ok(listeners) => listeners,
            Err(error) => return drop(ready.send(Err(error))),
        };
        let started =
            ims.local_addr().and_then(|ims| Ok((ims, api.local_addr()?, Handle::current())));
        if ready.send(started).is_err() {
            return;
        }
        tokio::select! {
            _ = stopped => {}
            () = serve_ims(ims, shared.clone(), link) => {}
            () = serve_api(api, shared) => {}
        }
    });
}

fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    socket.listen(BACKLOG)
}

async fn serve_ims(listener: TcpListener, shared: Arc<Shared>, link: watch::Receiver<Link>) {
    loop {
        let stream = accept(&listener).await;
        let now = *link.borrow();
        if now.down {
            shared.lock().counts.refused_connections += 1;
            continue;
        }
        tokio::spawn(ims_connection(stream, shared.clone(), link.clone(), now.cuts));
    }
}

async fn ims_connection(
    stream: TcpStream,
    shared: Arc<Shared>,
    mut link: watch::Receiver<Link>,
    cuts: u64,
) {
    let watched = link.clone();
    let service = service_fn(|request| {
        // A request can arrive between the cut and its being noticed below.
        let cut = watched.borrow().cuts != cuts;
        let shared = &shared;
        async move { if cut { Err(Cut) } else { endpoints::answer(shared, request).await } }
    });
    tokio::select! {
        biased;
        _ = link.wait_for(|link| link.cuts != cuts) => {}
        // A client that goes away in the middle is no concern of ours.
        _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service) => {}
    }
}

async fn serve_api(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let stream = accept(&listener).await;
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| api::answer(&shared, request));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                return stream;
            }
            // Such as too many open files, which passes when connections end.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
