//! Where the store of `wasi:keyvalue` is: in memory, or in Redis.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
};

use anyhow::Result;
use lighter_test::{
    Authority, Builder, Containerd, Input, Network, Output, Redis, Rootfs, each_containerd,
    eventually, options::RuntimeOptions,
};

use crate::{
    COUNTER, COUNTER_P3, WASI, WASI_P3, guest,
    peers::{Served, listeners},
    run,
};

each_containerd!(
    in_memory,
    in_memory_of_a_server,
    in_redis,
    in_redis_of_a_server,
    passwords,
    over_tls,
    annotations,
    out_of_reach,
    server_starts_anew
);

const ON: &str = "wasi.keyvalue = true\n";

/// Settings with a Redis server at this port of 127.0.0.1, and more of its table.
fn at(port: u16, more: &str) -> String {
    format!("{ON}[keyvalue.redis]\nhost = '127.0.0.1'\nport = {port}\n{more}")
}

/// A guest in a network that works on its store.
fn client<'a>(
    engine: &'a Containerd,
    network: &Network,
    settings: &str,
    commands: &[&str],
) -> Result<Builder<'a>> {
    let args = [&[WASI, "store", ""], commands].concat();
    Ok(guest(engine, settings, &args)?.network(&network.path()))
}

fn ask(
    engine: &Containerd,
    network: &Network,
    settings: &str,
    commands: &[&str],
) -> Result<Output> {
    client(engine, network, settings, commands)?.run()
}

#[rustfmt::skip]
const EVERYTHING: &[&str] = &[
    "get", "a", "exists", "a", "set", "a", "one", "get", "a", "exists", "a",
    "set", "a", "", "get", "a", "delete", "a", "delete", "a", "get", "a",
    "increment", "n", "40", "increment", "n", "2", "get", "n",
    "set-many", "b", "two", "c", "three", ".",
    "get-many", "b", "x", "c", ".", "keys",
    "delete-many", "b", "x", ".", "set-many", ".", "get-many", ".", "delete-many", ".",
    "keys", "fill", "2500", "keys",
];

const ANSWERS: &str = "none\nfalse\none\ntrue\n\nnone\n40\n42\n42\nb=two\nnone\nc=three\n\
    3 keys: b c n\n2 keys: c n\n\
    2502 keys: c key0 key1 key10 key100 key1000 key1001 key1002 key1003 key1004\n";

fn in_memory(engine: &Containerd) -> Result<()> {
    for (tool, name) in [(WASI, ""), (WASI, "default"), (WASI_P3, "")] {
        let args = [&[tool, "store", name], EVERYTHING].concat();
        assert_eq!(
            run(engine, ON, &args)?.success()?,
            ANSWERS,
            "{tool} {name:?}"
        );
    }
    let other = run(engine, ON, &[WASI, "store", "other"])?;
    assert_eq!(
        (other.status, other.errors().as_str()),
        (1, "tool: no such store\n")
    );
    let wrong = run(
        engine,
        ON,
        &[WASI, "store", "", "set", "a", "b", "increment", "a", "1"],
    )?;
    assert!(wrong.errors().contains("no number"), "{}", wrong.errors());
    let little = format!("{ON}keyvalue.memory = '1KiB'");
    run(engine, &little, &[WASI, "store", "", "fill", "10"])?.success()?;
    let full = run(engine, &little, &[WASI, "store", "", "fill", "100"])?;
    assert_eq!(full.status, 1);
    assert!(
        full.errors().contains("1KiB (keyvalue.memory)"),
        "{}",
        full.errors()
    );
    Ok(())
}

/// Whether `count` is a line of an answer, as its body or as a chunk of it.
fn has_line(answer: &str, count: u64) -> bool {
    let count = count.to_string();
    answer.split("\r\n").any(|line| line == count)
}

/// Every request has an instance of its own, and all have one store.
fn in_memory_of_a_server(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let settings = format!("http.reuse = 1\n{ON}");
    for counter in [COUNTER, COUNTER_P3] {
        let served = Served::start(engine, &network, &settings, |builder| {
            builder.args([counter])
        })?;
        for count in 1..=20 {
            let answer = served.get("")?;
            assert!(has_line(&answer, count), "{counter}, {count}: {answer}");
        }
        let line = "level=info context=\"counter\" msg=\"20\"\n";
        eventually("the last line of the log", || {
            served.container.stderr().ends_with(line).then_some(())
        })?;
    }
    Ok(())
}

fn in_redis(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let redis = Redis::start(&network, 7003, &[])?;
    let settings = at(7003, "");
    assert_eq!(
        ask(engine, &network, &settings, EVERYTHING)?.success()?,
        ANSWERS
    );
    // Another container sees it, in the same database; and so does everybody.
    ask(
        engine,
        &network,
        &settings,
        &["set", "shared", "text", "increment", "n", "1"],
    )?
    .success()?;
    let other = ask(
        engine,
        &network,
        &settings,
        &["get", "shared", "increment", "n", "1"],
    )?;
    assert_eq!(other.success()?, "text\n44\n");
    assert!(redis.ask(&["GET shared"])?.contains("text"));
    let third = at(7003, "database = 3");
    let other = ask(
        engine,
        &network,
        &third,
        &["get", "shared", "set", "shared", "three"],
    )?;
    assert_eq!(other.success()?, "none\n");
    assert!(redis.ask(&["SELECT 3", "GET shared"])?.contains("three"));
    // It is the host that talks to Redis, so a guest without a network has it too.
    let off = format!("network.enabled = false\n{settings}");
    assert_eq!(
        ask(engine, &network, &off, &["get", "shared"])?.success()?,
        "text\n"
    );
    // What is no text, no number or too much.
    redis.ask(&["RPUSH list one", "SET minus -5"])?;
    for (commands, reason) in [
        (
            ["set", "list", "x", "increment", "list", "1"],
            "not an integer",
        ),
        (["get", "x", ".", "increment", "minus", "1"], "less than 0"),
        (
            ["get", "x", ".", "increment", "n", "18446744073709551615"],
            "more than it can add",
        ),
    ] {
        let commands: Vec<&str> = commands.into_iter().filter(|word| *word != ".").collect();
        let refused = ask(engine, &network, &settings, &commands)?;
        assert_eq!(refused.status, 1, "{commands:?}");
        assert!(refused.errors().contains(reason), "{}", refused.errors());
    }
    Ok(())
}

fn in_redis_of_a_server(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let redis = Redis::start(&network, 7003, &[])?;
    for (counter, rounds) in [(COUNTER, [1, 2]), (COUNTER_P3, [3, 4])] {
        let settings = at(7003, "");
        let served = Served::start(engine, &network, &settings, |builder| {
            builder.args([counter])
        })?;
        for count in rounds {
            let answer = served.get("")?;
            assert!(has_line(&answer, count), "{answer}");
        }
    }
    assert!(redis.ask(&["GET count"])?.contains('4'));
    Ok(())
}

fn passwords(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let acl = [
        "--requirepass",
        "sesame",
        "--user",
        "ann",
        "on",
        ">open",
        "~*",
        "+@all",
    ];
    let _redis = Redis::start(&network, 7003, &acl)?;
    let with_file = |settings: &str| -> Result<Output> {
        let rootfs = Rootfs::guests()?.file_of("/etc/secret", "sesame\n", 0o400, 1000);
        engine
            .container(&rootfs)
            .args([WASI, "store", "", "exists", "a"])
            .user(1000, 1000)
            .options(RuntimeOptions::body(settings))
            .network(&network.path())
            .run()
    };
    for right in [
        "password = 'sesame'",
        "password_file = '/etc/secret'",
        "password = 'other'\npassword_file = '/etc/secret'",
        "user = 'ann'\npassword = 'open'",
    ] {
        assert_eq!(
            with_file(&at(7003, right))?.success()?,
            "false\n",
            "{right}"
        );
    }
    for (wrong, reason) in [
        ("", "Authentication required"),
        ("password = 'open'", "authentication failed"),
        ("user = 'ann'\npassword = 'sesame'", "authentication failed"),
        (
            "password_file = '/missing'",
            "/missing (keyvalue.redis.password_file)",
        ),
        (
            "password_file = '/etc'",
            "/etc (keyvalue.redis.password_file)",
        ),
    ] {
        let refused = with_file(&at(7003, wrong))?;
        assert_eq!(refused.status, 1, "{wrong}");
        let errors = refused.errors();
        assert!(
            errors.starts_with("tool: redis at 127.0.0.1:7003: "),
            "{errors}"
        );
        assert!(errors.contains(reason), "{wrong}: {errors}");
        assert!(!errors.contains("sesame"), "{errors}");
    }
    let said = guest(engine, &at(7003, "password = 12345"), &[WASI, "config"])?.refused()?;
    assert!(
        said.contains("keyvalue.redis.password") && !said.contains("12345"),
        "{said}"
    );
    Ok(())
}

/// Of a server that is spoken to over TLS, the certificate must be one that the container trusts.
fn over_tls(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let (authority, other) = (Authority::new("one")?, Authority::new("other")?);
    let identity = authority.identify("peer", 2200)?;
    let folder = tempfile::tempdir()?;
    let write = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let certificate = write("certificate.pem", &identity.certificate)?;
    let key = write("key.pem", &identity.key)?;
    #[rustfmt::skip]
    let redis = Redis::start(&network, 7003, &[
        "--requirepass", "sesame", "--tls-port", "7004", "--tls-auth-clients", "no",
        "--tls-cert-file", &certificate, "--tls-key-file", &key,
    ])?;
    let bundle = "/etc/ssl/certs/ca-certificates.crt";
    let ask = |host: &str, port: u16, trusted: &Authority, named: &str| -> Result<Output> {
        let rootfs = ["/etc/ssl", "/etc/ssl/certs"]
            .iter()
            .fold(Rootfs::guests()?, |rootfs, path| rootfs.folder(path, 0o755))
            .file("/etc/hosts", "127.0.0.1 peer stranger\n")
            .file(bundle, trusted.pem())
            .file("/one.pem", authority.pem());
        let settings = format!(
            "{ON}[keyvalue.redis]\nhost = '{host}'\nport = {port}\ntls = true\npassword = 'sesame'"
        );
        engine
            .container(&rootfs)
            .args([WASI, "store", "", "increment", "n", "1"])
            .options(RuntimeOptions::body(&settings))
            .env("SSL_CERT_FILE", named)
            .network(&network.path())
            .run()
    };
    assert_eq!(ask("peer", 7004, &authority, "")?.success()?, "1\n");
    assert_eq!(ask("peer", 7004, &other, "/one.pem")?.success()?, "2\n");
    for (host, port, trusted, reason) in [
        ("peer", 7004, &other, "UnknownIssuer"),
        ("stranger", 7004, &authority, "not valid for name"),
        // There it is in clear text, of which the server does not see the end.
        ("peer", 7003, &authority, "keyvalue.redis.time"),
    ] {
        let refused = ask(host, port, trusted, "")?;
        let errors = refused.errors();
        assert_eq!(refused.status, 1, "{errors}");
        let beginning = format!("tool: redis at {host}:{port}: cannot connect: ");
        assert!(
            errors.starts_with(&beginning) && errors.contains(reason),
            "{errors}"
        );
    }
    assert!(redis.ask(&["AUTH sesame", "GET n"])?.contains('2'));
    Ok(())
}

fn annotations(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let redis = Redis::start(&network, 7003, &["--requirepass", "sesame"])?;
    let settings = format!(
        "annotations = ['keyvalue']\n{}",
        at(7003, "password = 'sesame'")
    );
    let ask = |annotations: &[(&str, &str)]| {
        let client = client(engine, &network, &settings, &["set", "a", "b"])?;
        let client = annotations.iter().fold(client, |client, (name, value)| {
            client.annotation(&format!("lighter/keyvalue.redis.{name}"), value)
        });
        client.run()
    };
    ask(&[("database", "2")])?.success()?;
    assert!(
        redis
            .ask(&["AUTH sesame", "SELECT 2", "GET a"])?
            .contains('b')
    );
    // The password is for whom the file names, not for whom an annotation does.
    let other = ask(&[("host", "127.0.0.1")])?;
    assert!(
        other.errors().contains("Authentication required"),
        "{}",
        other.errors()
    );
    let said = client(engine, &network, &settings, &["keys"])?
        .annotation("lighter/keyvalue.redis.password", "sesame")
        .refused()?;
    assert!(said.contains("not for annotations"), "{said}");
    Ok(())
}

fn out_of_reach(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    // It accepts, by the kernel, and never says anything.
    let silent = network.spawn(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 7004))?));
    let _silent = silent.join().expect("binding does not panic")?;
    for (settings, server, reason) in [
        (at(7003, ""), "127.0.0.1:7003", "onnection refused"),
        (
            at(7004, "time = '300ms'"),
            "127.0.0.1:7004",
            "(keyvalue.redis.time)",
        ),
        (
            format!("{ON}keyvalue.redis.host = 'nobody.invalid'"),
            "nobody.invalid:6379",
            "cannot connect",
        ),
    ] {
        let nobody = ask(engine, &network, &settings, &["get", "a"])?;
        let errors = nobody.errors();
        assert_eq!((nobody.status, nobody.text().as_str()), (1, ""), "{errors}");
        assert!(
            errors.starts_with(&format!("tool: redis at {server}: ")),
            "{errors}"
        );
        assert!(errors.contains(reason), "{errors}");
    }
    let said = guest(
        engine,
        &format!("{ON}keyvalue.redis.host = ''"),
        &[WASI, "config"],
    )?
    .refused()?;
    assert!(said.contains("keyvalue.redis.host"), "{said}");
    Ok(())
}

fn server_starts_anew(engine: &Containerd) -> Result<()> {
    let network = listeners(engine, &[])?;
    let redis = Redis::start(&network, 7003, &[])?;
    let commands = ["set", "a", "before", "get", "a", "wait", "get", "a"];
    let container = client(engine, &network, &at(7003, ""), &commands)?
        .stdin(Input::Fed)
        .create()?;
    container.start()?;
    container.wait_for_output("waiting")?;
    drop(redis);
    let redis = Redis::start(&network, 7003, &[])?;
    redis.ask(&["SET a after"])?;
    container.feed(b"\n");
    assert_eq!(container.finish()?.success()?, "before\nwaiting\nafter\n");
    Ok(())
}
