//! Bodies on their way through: of requests, kept for a second try where that is allowed, and of
//! answers, which hold their connection until they are through and then give it back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::limits::Limits;
use super::listen::Busy;
use super::upstream::{Channel, Open, lock};

/// Body of a request to an instance.
pub(super) enum RequestBody {
    Empty,
    /// Passes once.
    Once(Incoming, Progress),
    /// Can be sent again from the beginning.
    Again(Arc<Replay>, usize),
}

/// Rises with every piece of a body that passed.
#[derive(Clone, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn rise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A body whose beginning is kept.
pub(super) struct Replay {
    state: Mutex<ReplayState>,
    progress: Progress,
}

struct ReplayState {
    incoming: Incoming,
    kept: VecDeque<Bytes>,
    /// Bytes that may still be kept.
    room: usize,
    /// All that passed is in `kept`.
    whole: bool,
    ended: bool,
}

impl Replay {
    pub fn new(incoming: Incoming, progress: Progress, limits: &Limits) -> Arc<Self> {
        let state = ReplayState {
            ended: incoming.is_end_stream(),
            incoming,
            kept: VecDeque::new(),
            room: limits.replay_bytes,
            whole: true,
        };
        Arc::new(Self { state: Mutex::new(state), progress })
    }

    /// The body from its beginning, if that is still there.
    pub fn again(self: &Arc<Self>) -> Option<RequestBody> {
        lock(&self.state).whole.then(|| RequestBody::Again(Arc::clone(self), 0))
    }

    fn poll_frame(&self, next: &mut usize, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let mut state = lock(&self.state);
        if let Some(kept) = state.kept.get(*next) {
            *next += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut state.incoming).poll_frame(cx);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => state.ended = true,
            Poll::Ready(Some(Ok(frame))) => {
                self.progress.rise();
                match frame.data_ref() {
                    Some(data) if state.whole && data.len() <= state.room => {
                        state.room -= data.len();
                        state.kept.push_back(data.clone());
                        *next += 1;
                    }
                    // Too much, or trailers.
                    _ => {
                        state.whole = false;
                        state.kept.clear();
                        *next = 0;
                    }
                }
            }
            Poll::Ready(Some(Err(_))) => state.whole = false,
        }
        polled
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Once(incoming, progress) => {
                let polled = Pin::new(incoming).poll_frame(cx);
                if polled.is_ready() {
                    progress.rise();
                }
                polled
            }
            Self::Again(replay, next) => replay.poll_frame(next, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(incoming, _) => incoming.is_end_stream(),
            Self::Again(replay, next) => {
                let state = lock(&replay.state);
                (state.ended || state.incoming.is_end_stream()) && *next >= state.kept.len()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Once(incoming, _) => incoming.size_hint(),
            // The head says how long it is, or it goes in chunks.
            Self::Again(..) => SizeHint::default(),
        }
    }
}

/// Body of an answer to a client.
pub(super) struct AnswerBody {
    kind: Kind,
    /// The client's connection rests once this is gone.
    _busy: Busy,
}

enum Kind {
    Text(Option<Bytes>),
    Streamed(Streamed),
}

struct Streamed {
    incoming: Incoming,
    /// Gone once the connection is given back.
    lent: Option<(Channel, Open)>,
    limits: Arc<Limits>,
}

impl AnswerBody {
    pub fn text(text: impl Into<Bytes>, busy: Busy) -> Self {
        Self { kind: Kind::Text(Some(text.into()).filter(|text: &Bytes| !text.is_empty())), _busy: busy }
    }

    pub fn streamed(incoming: Incoming, channel: Channel, open: Open, limits: Arc<Limits>, busy: Busy) -> Self {
        let mut streamed = Streamed { incoming, lent: Some((channel, open)), limits };
        streamed.give_back_if_through();
        Self { kind: Kind::Streamed(streamed), _busy: busy }
    }
}

impl Streamed {
    fn give_back_if_through(&mut self) {
        if self.incoming.is_end_stream() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        if let Some((channel, open)) = self.lent.take() {
            open.upstream().give_back(channel, &self.limits);
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let mut polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if polled.is_pending()
            && let Some((channel, _)) = &mut self.lent
        {
            channel.drive(cx);
            polled = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(Ok(_))) => self.give_back_if_through(),
            Poll::Ready(Some(Err(_))) => self.lent = None,
        }
        polled
    }
}

impl Drop for Streamed {
    /// Whoever reads the body may stop as soon as its length is reached.
    fn drop(&mut self) {
        self.give_back_if_through();
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match &mut self.get_mut().kind {
            Kind::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::Streamed(streamed) => streamed.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Text(text) => text.is_none(),
            Kind::Streamed(streamed) => streamed.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Kind::Streamed(streamed) => streamed.incoming.size_hint(),
        }
    }
}
