//! A TCP proxy before a PostgreSQL server that breaks a connection at a COMMIT: the client has sent
//! it and never hears what became of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What becomes of the COMMIT that is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The server never gets it, and rolls back.
    Lost,
    /// The server makes it; its answer is lost.
    Made,
}

#[derive(Debug)]
struct State {
    fate: Mutex<Fate>,
    /// COMMITs that pass before one is cut; negative: none is.
    left: AtomicI64,
    cuts: AtomicUsize,
}

/// See the module. Ends when dropped.
#[derive(Debug)]
pub struct Cut {
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cut {
    /// Passes everything on to the server, until told otherwise.
    pub async fn before(server: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state =
            Arc::new(State { fate: Mutex::new(Fate::Lost), left: AtomicI64::new(-1), cuts: AtomicUsize::new(0) });
        let task = tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((client, _)) = listener.accept().await {
                    let (server, state) = (server.clone(), Arc::clone(&state));
                    connections.spawn(async move { pass(client, &server, &state).await });
                }
            }
        });
        Ok(Self { address, state, task })
    }

    /// Cuts one COMMIT, after letting so many pass.
    pub fn after(&self, commits: i64, fate: Fate) {
        *self.state.fate.lock().unwrap_or_else(PoisonError::into_inner) = fate;
        self.state.left.store(commits, Ordering::SeqCst);
    }

    /// How many have been cut.
    pub fn cuts(&self) -> usize {
        self.state.cuts.load(Ordering::SeqCst)
    }
}

/// Until either side ends or the connection is cut; both ends are closed then.
async fn pass(mut client: TcpStream, server: &str, state: &State) -> std::io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let sent = &up[..read?];
                if sent.is_empty() {
                    return Ok(());
                }
                if is_commit(sent) && state.left.fetch_sub(1, Ordering::SeqCst) == 0 {
                    let fate = *state.fate.lock().unwrap_or_else(PoisonError::into_inner);
                    if fate == Fate::Made {
                        server.write_all(sent).await?;
                        // The answer is there: it has been made.
                        let _ = server.read(&mut down).await?;
                    }
                    state.cuts.fetch_add(1, Ordering::SeqCst);
                    return Ok(());
                }
                server.write_all(sent).await?;
            }
            read = server.read(&mut down) => {
                let answered = &down[..read?];
                if answered.is_empty() {
                    return Ok(());
                }
                client.write_all(answered).await?;
            }
        }
    }
}

/// Whether a client's bytes hold the statement, as a simple query or prepared.
fn is_commit(sent: &[u8]) -> bool {
    sent.windows(7).any(|part| part == b"COMMIT\0" || part == b"COMMIT;")
}
