//! A line on standard output for each request, in the order of the Common Log Format that
//! httpd's `mod_log_config` documents, and the time that it took at its end.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::{Request, StatusCode};

use crate::stdio::Output;

/// What is known of a request from its beginning.
pub(super) struct Entry {
    stdout: Output,
    client: IpAddr,
    at: SystemTime,
    request: String,
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
            request: format!("{method} {path} {version:?}"),
        }
    }

    /// Writes the line: the response's status if there was one, the bytes of its body, the time.
    pub(super) fn write(&self, status: Option<StatusCode>, sent: u64, time: Duration) {
        let at = date(self.at);
        // What is not known is a dash.
        let status = status.map_or("-".to_owned(), |status| status.as_u16().to_string());
        let (client, request) = (self.client, &self.request);
        let time = took(time);
        let line = format!("{client} - - [{at}] \"{request}\" {status} {sent} {time}\n");
        self.stdout.say(&line);
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
