//! A thread that looks for the next request for a moment before it goes to sleep: to be woken takes
//! longer than many an answer. One with several clients is woken for the one or the other anyway.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::shared::Count;

/// How long it looks, and how soon after the last answer the request before must have come for it
/// to look at all. Whoever asks in turns from the same machine or from the next one is as quick.
const MOMENT: Duration = Duration::from_micros(100);

/// How often it looks before it lets others have the processor, which takes longer than a look.
const LOOKS: u8 = 4;

/// How late a thread that looks notices that its time is over when it has not had the processor
/// meanwhile: others need it, or the container has used up what it may (cpu.max, cpu.cfs_quota_us).
const AWAY: Duration = Duration::from_millis(1);

/// How long it does not look then, so that what it may use is left for answers: the first time, and at most. Each time
/// that follows soon takes twice as long as the one before. Somebody needs the processor for a moment now and then on
/// every machine; who may not use more of it is kept from it again and again.
const REST: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// How many turns others get first: for what the guest still does after its answer, and for what is then made for the
/// next request.
const TURNS: u8 = 3;

/// What one thread knows of its last requests.
pub(super) struct Awake {
    /// The thread's connections.
    pub(super) connections: Arc<Count>,
    since: Instant,
    /// When the last answer was there, in nanoseconds after `since`.
    answered: AtomicU64,
    /// Whether the last request came within a [`MOMENT`].
    was_soon: AtomicBool,
    /// Whether the next one is looked for.
    is_looking: AtomicBool,
    /// Until when it does not look, in nanoseconds after `since`.
    resting: AtomicU64,
    /// How long that was in all, in nanoseconds.
    rest: AtomicU64,
}

impl Awake {
    pub(super) fn new() -> Self {
        Self {
            connections: Arc::default(),
            since: Instant::now(),
            answered: AtomicU64::new(0),
            was_soon: AtomicBool::new(false),
            is_looking: AtomicBool::new(false),
            resting: AtomicU64::new(0),
            rest: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Duration {
        self.since.elapsed()
    }

    /// How long ago the last answer was there.
    fn pause(&self) -> Duration {
        let answered = Duration::from_nanos(self.answered.load(Ordering::Relaxed));
        self.now().saturating_sub(answered)
    }

    /// Looks no more, for a longer time if it has been `away` meanwhile.
    fn end(&self, away: bool) {
        if self.is_looking.swap(false, Ordering::Relaxed) && away {
            self.rest_from(self.now());
        }
    }

    fn rest_from(&self, now: Duration) {
        let [shortest, longest] = REST;
        let before = Duration::from_nanos(self.rest.load(Ordering::Relaxed));
        let ended = Duration::from_nanos(self.resting.load(Ordering::Relaxed));
        let rest = match now.saturating_sub(ended) < longest {
            true => (2 * before).clamp(shortest, longest),
            false => shortest,
        };
        let store =
            |to: &AtomicU64, time: Duration| to.store(time.as_nanos() as u64, Ordering::Relaxed);
        store(&self.rest, rest);
        store(&self.resting, now + rest);
    }

    fn is_resting(&self) -> bool {
        self.now() < Duration::from_nanos(self.resting.load(Ordering::Relaxed))
    }

    /// A request has come.
    pub(super) fn asked(&self) {
        let pause = self.pause();
        self.end(pause > AWAY);
        self.was_soon.store(pause < MOMENT, Ordering::Relaxed);
    }

    /// An answer has been given.
    pub(super) fn answered(&self) {
        let now = self.now().as_nanos() as u64;
        self.answered.store(now, Ordering::Relaxed);
        let was_soon = self.was_soon.load(Ordering::Relaxed);
        let looks = was_soon && self.connections.now() == 1 && !self.is_resting();
        self.is_looking.store(looks, Ordering::Relaxed);
    }

    fn is_looking(&self) -> bool {
        self.is_looking.load(Ordering::Relaxed)
    }

    /// Asks again and again until something comes or the moment is over. Whoever else wants the processor
    /// gets it.
    fn look<T>(&self, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = (0..LOOKS).find_map(|_| ask()) {
                return Some(found);
            }
            let pause = self.pause();
            if pause >= MOMENT {
                self.end(pause > AWAY);
                return None;
            }
            thread::yield_now();
        }
    }
}

/// A connection whose next request its thread looks for.
pub(super) struct Watched {
    stream: TcpStream,
    awake: Arc<Awake>,
    /// How many turns the thread's other tasks have had since the last answer.
    turns: u8,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, awake: Arc<Awake>) -> Self {
        Self {
            stream,
            awake,
            turns: 0,
        }
    }

    pub(super) fn into_inner(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if read.is_ready() || !this.awake.is_looking() {
            this.turns = 0;
            return read;
        }
        if this.turns < TURNS {
            this.turns += 1;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.turns = 0;
        // Not through the event loop, which would be asked each time. It tells of what comes once more, when there
        // is nothing left of it.
        let stream = &this.stream;
        let room = buffer.initialize_unfilled();
        let found = this.awake.look(|| {
            // Whoever brings it would have to wait for one who receives in vain, but not for this.
            let mut coming = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
            if poll(&mut coming, PollTimeout::ZERO) == Ok(0) {
                return None;
            }
            match recv(stream.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN | Errno::EINTR) => None,
                received => Some(received),
            }
        });
        match found {
            Some(Ok(length)) => {
                buffer.advance(length);
                Poll::Ready(Ok(()))
            }
            Some(Err(error)) => Poll::Ready(Err(error.into())),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::task::Waker;

    use super::*;

    /// Whether it looks after a request that came soon. As slow as this thread may be, one does.
    fn looks_at_all(awake: &Awake) -> bool {
        (0..1000).any(|_| {
            awake.answered();
            awake.asked();
            awake.answered();
            awake.is_looking()
        })
    }

    #[test]
    fn only_after_a_request_that_came_soon() {
        let awake = Awake::new();
        let _one = awake.connections.take(usize::MAX);
        thread::sleep(2 * MOMENT);
        awake.asked();
        awake.answered();
        assert!(!awake.is_looking());
        assert!(looks_at_all(&awake));
        awake.asked();
        assert!(!awake.is_looking());
    }

    #[test]
    fn only_with_one_connection() {
        let awake = Awake::new();
        let _one = awake.connections.take(usize::MAX);
        let another = awake.connections.take(usize::MAX);
        assert!(!looks_at_all(&awake));
        drop(another);
        assert!(looks_at_all(&awake));
    }

    /// How long it rests when it has been kept from looking now.
    fn rest(awake: &Awake) -> Duration {
        while !looks_at_all(awake) {}
        thread::sleep(2 * AWAY);
        awake.asked();
        Duration::from_nanos(awake.rest.load(Ordering::Relaxed))
    }

    #[test]
    fn not_after_it_was_kept_from_it() {
        let awake = Awake::new();
        let _one = awake.connections.take(usize::MAX);
        // It may have been kept from it before, by whoever else runs here.
        assert!(rest(&awake) >= REST[0]);
        awake.resting.store(u64::MAX, Ordering::Relaxed);
        assert!(!looks_at_all(&awake));
    }

    #[test]
    fn longer_where_it_is_kept_from_it_again() {
        let awake = Awake::new();
        let mut now = 2 * REST[1];
        let mut rest = |pause| {
            now += pause;
            awake.rest_from(now);
            let rest = Duration::from_nanos(awake.rest.load(Ordering::Relaxed));
            now += rest;
            assert_eq!(awake.resting.load(Ordering::Relaxed), now.as_nanos() as u64);
            rest
        };
        assert_eq!(rest(AWAY), REST[0]);
        assert_eq!(rest(AWAY), 2 * REST[0]);
        assert_eq!(rest(AWAY), 4 * REST[0]);
        assert!((0..10).map(|_| rest(AWAY)).all(|rest| rest <= REST[1]));
        assert_eq!(rest(AWAY), REST[1]);
        assert_eq!(rest(REST[1]), REST[0]);
    }

    #[test]
    fn what_has_come_is_read_without_the_event_loop() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            let awake = Arc::new(Awake::new());
            let _one = awake.connections.take(usize::MAX);
            let stream = TcpStream::from_std(stream).unwrap();
            let mut watched = Watched::new(stream, awake.clone());
            let mut read = |room: &mut [u8]| {
                let mut buffer = ReadBuf::new(room);
                let mut context = Context::from_waker(Waker::noop());
                let polled = Pin::new(&mut watched).poll_read(&mut context, &mut buffer);
                polled.map(|read| read.map(|()| buffer.filled().len()).unwrap())
            };
            client.write_all(b"abc").unwrap();
            assert_eq!(read(&mut [0; 8]), Poll::Pending, "it does not look");
            assert!(looks_at_all(&awake));
            for (room, length) in [(2, 2), (8, 1)] {
                for _ in 0..TURNS {
                    assert_eq!(read(&mut [0; 8]), Poll::Pending, "others come first");
                }
                assert_eq!(read(&mut vec![0; room]), Poll::Ready(length));
            }
        });
    }
}
