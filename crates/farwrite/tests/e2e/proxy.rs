//! A network between a source and a vault that the test owns: it delays, counts and is cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Pieces on their way in one direction: many, so that it is the delay and not this that limits.
const PIECES: usize = 4096;
const PIECE_BYTES: usize = 64 << 10;

/// What went through.
#[derive(Default)]
pub struct Counts {
    pub connections: AtomicU64,
    /// Reads with bytes from the vault: every answer of it makes at least one, unless several came at once.
    pub down_pieces: AtomicU64,
}

/// See the module.
pub struct Proxy {
    pub address: String,
    pub counts: Arc<Counts>,
    inner: Arc<Inner>,
}

struct Inner {
    to: String,
    delay: Duration,
    open: Mutex<Vec<TcpStream>>,
    stop: AtomicBool,
}

impl Proxy {
    /// Passes on to `to`, with `delay` each way.
    pub fn new(to: &str, delay: Duration) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let counts = Arc::new(Counts::default());
        let inner = Arc::new(Inner {
            to: to.to_owned(),
            delay,
            open: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let (shared, counted) = (inner.clone(), counts.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                // Dropped if the vault is away: the client sees a connection that ends.
                if let Ok(client) = client {
                    shared.join(client, &counted);
                }
            }
        });
        Proxy {
            address,
            counts,
            inner,
        }
    }

    /// Ends every connection, in the middle of whatever was said.
    pub fn cut(&self) {
        for stream in self.inner.open.lock().unwrap().drain(..) {
            // Closed by its end already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the listener.
        let _ = self.address.parse::<SocketAddr>().map(TcpStream::connect);
    }
}

impl Inner {
    fn join(&self, client: TcpStream, counts: &Arc<Counts>) {
        let Ok(server) = TcpStream::connect(&self.to) else {
            return;
        };
        counts.connections.fetch_add(1, Ordering::SeqCst);
        for s in [&client, &server] {
            s.set_nodelay(true).unwrap();
            self.open.lock().unwrap().push(s.try_clone().unwrap());
        }
        let down = counts.clone();
        let clone = |s: &TcpStream| s.try_clone().unwrap();
        pass(clone(&client), clone(&server), self.delay, || ());
        pass(server, client, self.delay, move || {
            down.down_pieces.fetch_add(1, Ordering::SeqCst);
        });
    }
}

/// Two threads: one reads and says when it may be written, one writes then.
fn pass(mut from: TcpStream, to: TcpStream, delay: Duration, count: impl Fn() + Send + 'static) {
    let (sender, pieces) = sync_channel::<(Instant, Vec<u8>)>(PIECES);
    thread::spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            count();
            if sender
                .send((Instant::now() + delay, buffer[..n].to_vec()))
                .is_err()
            {
                break;
            }
        }
        // What was read before is still written; then the other end sees the end.
        drop(sender);
    });
    thread::spawn(move || write_when_due(&to, &pieces));
}

fn write_when_due(mut to: &TcpStream, pieces: &Receiver<(Instant, Vec<u8>)>) {
    for (due, piece) in pieces {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    // Closed already if it was cut.
    let _ = to.shutdown(Shutdown::Both);
}
