//! How requests over HTTP are served.

use anyhow::{Context, Result};
use lighter_test::{Containerd, each_containerd};

use crate::peers::{Served, listeners};

each_containerd!(serving, request_log);

fn serving(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let settings = "http.max_body = 4\nhttp.request_time = '300ms'\nlimits.memory = '16MiB'\n\
                    http.max_headers = '8KiB'";
    let start = |settings: &str, name: &str, value: &str| {
        Served::start(engine, &network, settings, |builder| {
            builder.env(name, value)
        })
    };
    let served = start(settings, "UNUSED", "")?;
    assert!(served.get("hello")?.starts_with("HTTP/1.1 200 "));
    let post = |served: &Served, body: &str| {
        served.send(format!(
            "POST /count HTTP/1.1\r\nhost: tests\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    assert!(post(&served, "four")?.starts_with("HTTP/1.1 200 "));
    assert!(post(&served, "five5")?.starts_with("HTTP/1.1 413 "));
    assert!(served.get("sleep/100000")?.starts_with("HTTP/1.1 504 "));
    assert!(served.get("loop")?.starts_with("HTTP/1.1 504 "));
    assert!(served.get("alloc/4")?.starts_with("HTTP/1.1 200 "));
    assert!(served.get("alloc/32")?.starts_with("HTTP/1.1 507 "));
    let long = format!("hello?{}", "x".repeat(10_000));
    assert!(served.get(&long)?.starts_with("HTTP/1.1 4"), "over 8 KiB");
    drop(served);

    // The environment may ask for less, and not for more.
    let served = start(settings, "LIGHTER_HTTP_MAX_BODY", "3")?;
    assert!(post(&served, "four")?.starts_with("HTTP/1.1 413 "));
    drop(served);
    for (settings, name, value, setting) in [
        (settings, "LIGHTER_HTTP_MAX_BODY", "5", "http.max_body"),
        (
            settings,
            "LIGHTER_HTTP_REQUEST_SECONDS",
            "2",
            "http.request_time",
        ),
        (
            settings,
            "LIGHTER_HTTP_MAX_MEMORY",
            "100000000",
            "limits.memory",
        ),
        (
            "pool.instances = 2",
            "LIGHTER_HTTP_MAX_REQUESTS",
            "3",
            "1 to 2",
        ),
    ] {
        let Err(error) = start(settings, name, value) else {
            anyhow::bail!("{name}={value} was taken");
        };
        let error = format!("{error:#}");
        assert!(error.contains(name) && error.contains(setting), "{error}");
    }
    let served = start(
        "pool.instances = 2048\nhttp.max_requests = 2048",
        "UNUSED",
        "",
    )?;
    assert!(served.get("hello")?.starts_with("HTTP/1.1 200 "));
    Ok(())
}

fn request_log(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let served = Served::start(engine, &network, "http.log = true", |builder| builder)?;
    served.get("nothing?a=b")?;
    served.get("status/418")?;
    served.container.wait_for_output("/status/418")?;
    let log = served.container.stdout();
    let lines: Vec<&str> = log.lines().collect();
    let first = lines.first().context("a line")?;
    assert!(first.starts_with("127.0.0.1 - - ["), "{log}");
    assert!(
        first.contains(" +0000] \"GET /nothing?a=b HTTP/1.1\" 404 13 "),
        "{log}"
    );
    assert!(
        lines[1].contains("] \"GET /status/418 HTTP/1.1\" 418 0 "),
        "{log}"
    );
    assert!(lines.iter().all(|line| line.ends_with("ms")), "{log}");
    assert_eq!(lines.len(), 2, "{log}");
    drop(served);

    let served = Served::start(engine, &network, "", |builder| builder)?;
    served.get("log/text")?;
    served.container.wait_for_output("text")?;
    assert!(!served.container.stdout().contains("GET"));
    Ok(())
}
