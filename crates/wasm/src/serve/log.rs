//! A line on standard output for each request, in the order of the Common Log Format that
//! httpd's `mod_log_config` documents, and the time that it took at its end.

use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use hyper::{Request, Response, StatusCode};
use wasmtime_wasi_http::{Error, WasiBody};

use crate::stdio::Output;

/// What is known of a request. The line is written when this is dropped: its response has been
/// sent, or its client has gone.
pub(super) struct Entry {
    stdout: Output,
    client: IpAddr,
    at: SystemTime,
    begun: Instant,
    request: String,
    status: Option<StatusCode>,
    sent: u64,
}

impl Entry {
    /// That of a request that has come from `client` now.
    pub(super) fn new<B>(stdout: &Output, client: IpAddr, request: &Request<B>) -> Self {
        let (method, version) = (request.method(), request.version());
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        Self {
            stdout: stdout.clone(),
            client: client.to_canonical(),
            at: SystemTime::now(),
            begun: Instant::now(),
            request: format!("{method} {path} {version:?}"),
            status: None,
            sent: 0,
        }
    }

    /// The response to the request, which ends with its body.
    pub(super) fn of(mut self, response: Response<WasiBody>) -> Response<WasiBody> {
        self.status = Some(response.status());
        response.map(|body| Logged { body, entry: self }.boxed_unsync())
    }

    fn line(&self) -> String {
        let time = date(self.at);
        // What is not known is a dash.
        let status = self
            .status
            .map_or("-".to_owned(), |status| status.as_u16().to_string());
        format!(
            "{} - - [{time}] \"{}\" {status} {} {}\n",
            self.client,
            self.request,
            self.sent,
            took(self.begun.elapsed())
        )
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.stdout.say(&self.line());
    }
}

fn took(time: Duration) -> String {
    format!("{:.1}ms", time.as_secs_f64() * 1000.0)
}

const MONTHS: [(&str, u64); 12] = [
    ("Jan", 31),
    ("Feb", 28),
    ("Mar", 31),
    ("Apr", 30),
    ("May", 31),
    ("Jun", 30),
    ("Jul", 31),
    ("Aug", 31),
    ("Sep", 30),
    ("Oct", 31),
    ("Nov", 30),
    ("Dec", 31),
];

/// A time in UTC, as `25/Nov/2026:07:31:12 +0000`.
fn date(at: SystemTime) -> String {
    let seconds = at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970_u64;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let length = |year| 365 + u64::from(is_leap(year));
    while days >= length(year) {
        days -= length(year);
        year += 1;
    }
    let mut name = "";
    for (month, mut length) in MONTHS {
        length += u64::from(month == "Feb" && is_leap(year));
        name = month;
        if days < length {
            break;
        }
        days -= length;
    }
    format!(
        "{:02}/{name}/{year}:{:02}:{:02}:{:02} +0000",
        days + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// A response's body that is counted.
struct Logged {
    body: WasiBody,
    entry: Entry,
}

impl Body for Logged {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.entry.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        let date = |seconds| date(UNIX_EPOCH + Duration::from_secs(seconds));
        // By date -u -d @SECONDS.
        assert_eq!(date(0), "01/Jan/1970:00:00:00 +0000");
        assert_eq!(date(951_782_400), "29/Feb/2000:00:00:00 +0000");
        assert_eq!(date(1_735_689_599), "31/Dec/2024:23:59:59 +0000");
        assert_eq!(date(1_795_591_872), "25/Nov/2026:07:31:12 +0000");
    }
}
