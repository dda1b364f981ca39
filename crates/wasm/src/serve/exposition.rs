//! A server's figures as Prometheus reads them: the text format, version 0.0.4
//! (prometheus.io/docs/instrumenting/exposition_formats).

use std::fmt::{Display, Write as _};
use std::fs;
use std::time::UNIX_EPOCH;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::{SysconfVar, sysconf};

use super::figures::{Failure, Figures, Refusal};
use super::shared::Shared;

/// The `content-type` of [`text`].
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The figures now. docs/http.md lists them.
pub(super) fn text(figures: &Figures, shared: &Shared) -> String {
    let mut page = Page::default();
    requests(&mut page, figures, shared);
    instances(&mut page, figures, shared);
    process(&mut page, figures);
    page.0
}

fn requests(page: &mut Page, figures: &Figures, shared: &Shared) {
    page.metric(
        "lighter_http_requests_total",
        "counter",
        "Requests that are over, by the status of their response.",
    );
    for (status, count) in figures.by_status() {
        page.labelled("lighter_http_requests_total", "code", status, count);
    }
    page.single(
        "lighter_http_requests_abandoned_total",
        "counter",
        "Requests whose client left before there was a response.",
        figures.abandoned.get(),
    );
    let name = "lighter_http_request_duration_seconds";
    page.metric(
        name,
        "histogram",
        "Time from a request's headers to the end of its response.",
    );
    let mut count = 0;
    for (bound, number) in figures.durations.buckets() {
        let bound = bound.map_or("+Inf".to_owned(), |bound| bound.to_string());
        page.labelled(&format!("{name}_bucket"), "le", bound, number);
        count = number;
    }
    page.value(&format!("{name}_sum"), figures.durations.sum());
    page.value(&format!("{name}_count"), count);
    page.single(
        "lighter_http_requests_in_flight",
        "gauge",
        "Requests that the guest has.",
        shared.requests.now(),
    );
    page.single(
        "lighter_http_request_body_bytes_total",
        "counter",
        "Bytes of requests' bodies that were read.",
        figures.received.get(),
    );
    page.single(
        "lighter_http_response_body_bytes_total",
        "counter",
        "Bytes of responses' bodies that were sent.",
        figures.sent.get(),
    );
    let name = "lighter_http_refusals_total";
    page.metric(name, "counter", "What was refused, by the limit.");
    for (reason, refusal) in [
        ("requests", Refusal::Requests),
        ("connections", Refusal::Connections),
        ("body", Refusal::Body),
        ("instances", Refusal::Instances),
    ] {
        page.labelled(name, "limit", reason, figures.refusals(refusal).get());
    }
    page.single(
        "lighter_http_connections_total",
        "counter",
        "Connections that were accepted.",
        figures.connections.get(),
    );
    page.single(
        "lighter_http_connections_in_flight",
        "gauge",
        "Connections that are open.",
        shared.connections.now(),
    );
    let name = "lighter_http_outgoing_requests_total";
    page.metric(
        name,
        "counter",
        "Requests that the guest made over HTTP, by their outcome.",
    );
    let outgoing = &figures.outgoing;
    page.labelled(name, "outcome", "response", outgoing.answered());
    page.labelled(name, "outcome", "error", outgoing.failed());
}

fn instances(page: &mut Page, figures: &Figures, shared: &Shared) {
    page.single(
        "lighter_instances_total",
        "counter",
        "Instances of the guest that were given requests.",
        figures.instances.get(),
    );
    page.single(
        "lighter_instances",
        "gauge",
        "Instances of the guest that are at requests, of WASI 0.3 also those that wait for more.",
        shared.instances.now(),
    );
    let name = "lighter_instance_failures_total";
    page.metric(
        name,
        "counter",
        "Instances that were ended for what the guest did.",
    );
    for (reason, failure) in [
        ("trap", Failure::Trap),
        ("exit", Failure::Exit),
        ("time", Failure::Time),
    ] {
        page.labelled(name, "reason", reason, figures.failures(failure).get());
    }
}

/// What Prometheus' own libraries say of a process, under their names. What the kernel does not
/// tell is left out: a container may have no /proc.
fn process(page: &mut Page, figures: &Figures) {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let time = usage.user_time() + usage.system_time();
        page.single(
            "process_cpu_seconds_total",
            "counter",
            "Time on the processors.",
            time.num_microseconds() as f64 / 1e6,
        );
    }
    if let Some(bytes) = resident() {
        page.single(
            "process_resident_memory_bytes",
            "gauge",
            "Memory that is resident.",
            bytes,
        );
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        page.single(
            "process_open_fds",
            "gauge",
            "Open file descriptors.",
            // One of them is this list's.
            files.count().saturating_sub(1),
        );
    }
    if let Ok(since) = figures.since.duration_since(UNIX_EPOCH) {
        page.single(
            "process_start_time_seconds",
            "gauge",
            "When the server was started, since 1970.",
            since.as_secs_f64(),
        );
    }
}

/// The memory of this process that is resident, in bytes (proc(5), `statm`).
fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let size = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * size as u64)
}

/// What is written.
#[derive(Default)]
struct Page(String);

impl Page {
    /// Begins a metric.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a text does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn value(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn labelled(&mut self, name: &str, label: &str, is: impl Display, value: impl Display) {
        let _ = writeln!(self.0, "{name}{{{label}=\"{is}\"}} {value}");
    }

    /// A metric of one value.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.metric(name, kind, help);
        self.value(name, value);
    }
}
