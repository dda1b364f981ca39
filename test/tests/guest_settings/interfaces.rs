//! Interfaces beside those that are always the same: what they tell, and who may import them.

use anyhow::Result;
use lighter_test::{Containerd, Rootfs, each_containerd, options::RuntimeOptions};

use crate::{WASI, WASI_P3, guest, run, text_guest};

each_containerd!(
    configuration,
    all_configuration,
    log,
    store,
    what_is_not_there
);

/// A component whose function `first` gives the first byte of what `wasi:config` tells of `a.key`, or 0.
const CONFIGURED: &str = r#"(component
    (import "wasi:config/store@0.2.0-rc.1" (instance $store
        (type $wrong' (variant (case "upstream" string) (case "io" string)))
        (export "error" (type $wrong (eq $wrong')))
        (export "get" (func (param "key" string) (result (result (option string) (error $wrong)))))))
    (core module $memory
        (memory (export "memory") 1)
        (global $next (mut i32) (i32.const 1024))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32)
            (global.get $next)
            (global.set $next (i32.add (global.get $next) (local.get 3))))
        (data (i32.const 16) "a.key"))
    (core instance $m (instantiate $memory))
    (alias core export $m "memory" (core memory $linear))
    (alias core export $m "realloc" (core func $realloc))
    (core func $get (canon lower (func $store "get")
        (memory $linear) (realloc $realloc)))
    (core module $main
        (import "m" "memory" (memory 1))
        (import "m" "get" (func $get (param i32 i32 i32)))
        (func (export "first") (result i32)
            (call $get (i32.const 16) (i32.const 5) (i32.const 64))
            ;; Whether it is an error, whether there is a text, and where that is.
            (if (result i32)
                (i32.or (i32.load8_u (i32.const 64)) (i32.eqz (i32.load8_u (i32.const 68))))
                (then (i32.const 0))
                (else (i32.load8_u (i32.load (i32.const 72)))))))
    (core instance $i (instantiate $main (with "m" (instance
        (export "memory" (memory $linear))
        (export "get" (func $get))))))
    (alias core export $i "first" (core func $first))
    (func (export "first") (result u32) (canon lift (core func $first))))"#;

fn configuration(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?.file("/text.wasm", wat::parse_str(CONFIGURED)?);
    let first = |settings: &str, env: Option<&str>, annotation: Option<&str>| {
        let mut builder = engine
            .container(&rootfs)
            .args(["/text.wasm#first"])
            .options(RuntimeOptions::body(settings));
        if let Some(value) = env {
            builder = builder.env("WASI_CONFIG_a.key", value);
        }
        if let Some(value) = annotation {
            builder = builder.annotation("lighter/config.a.key", value);
        }
        builder.run().map(|output| output.status)
    };
    let set = "annotations = ['config']\n[config]\n'a.key' = 'set'";
    let allowing = "annotations = ['config']";
    assert_eq!(first("", None, None)?, 0);
    assert_eq!(first("", Some("env"), None)?, u32::from(b'e'));
    assert_eq!(first(set, Some("env"), None)?, u32::from(b's'));
    assert_eq!(first(set, None, Some("told"))?, u32::from(b't'));
    assert_eq!(first(allowing, Some("env"), Some("told"))?, u32::from(b't'));
    Ok(())
}

fn store(engine: &Containerd) -> Result<()> {
    // Whether the store with the empty name can be opened.
    let opens = r#"(component
        (import "wasi:keyvalue/store@0.2.0-draft" (instance $store
            (type $wrong' (variant
                (case "no-such-store") (case "access-denied") (case "other" string)))
            (export "error" (type $wrong (eq $wrong')))
            (export "bucket" (type $bucket (sub resource)))
            (export "open" (func (param "identifier" string)
                (result (result (own $bucket) (error $wrong)))))))
        (core module $memory
            (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
        (core instance $m (instantiate $memory))
        (alias core export $m "memory" (core memory $linear))
        (alias core export $m "realloc" (core func $realloc))
        (core func $open (canon lower (func $store "open")
            (memory $linear) (realloc $realloc)))
        (core module $main
            (import "m" "memory" (memory 1))
            (import "m" "open" (func $open (param i32 i32 i32)))
            (func (export "open") (result i32)
                (call $open (i32.const 0) (i32.const 0) (i32.const 64))
                (i32.add (i32.const 7) (i32.load8_u (i32.const 64)))))
        (core instance $i (instantiate $main (with "m" (instance
            (export "memory" (memory $linear))
            (export "open" (func $open))))))
        (alias core export $i "open" (core func $lifted))
        (func (export "open") (result u32) (canon lift (core func $lifted))))"#;
    let rootfs = Rootfs::guests()?.file("/text.wasm", wat::parse_str(opens)?);
    let open = |settings: &str| {
        engine
            .container(&rootfs)
            .args(["/text.wasm#open"])
            .options(RuntimeOptions::body(settings))
    };
    let said = open("").refused()?;
    assert!(said.contains("wasi:keyvalue/store"), "{said}");
    assert!(said.contains("wasi.keyvalue is set"), "{said}");
    assert_eq!(open("wasi.keyvalue = true").run()?.status, 7);
    // Its code is in the cache now.
    let said = open("").refused()?;
    assert!(said.contains("wasi:keyvalue/store"), "{said}");
    Ok(())
}

fn all_configuration(engine: &Containerd) -> Result<()> {
    let settings =
        "wasi.keyvalue = true\nannotations = ['config']\n[config]\none = 'set'\ntwo = 'set'";
    for tool in [WASI, WASI_P3] {
        let output = guest(engine, settings, &[tool, "config"])?
            .env("WASI_CONFIG_one", "env")
            .env("WASI_CONFIG_three", "env")
            .annotation("lighter/config.two", "told")
            .run()?;
        let all = output.success()?;
        assert_eq!(all, "one=set\nthree=env\ntwo=told\n", "{tool}");
    }
    Ok(())
}

/// A component that only imports `wasi:logging`.
const LOGGING: &str = r#"(component
    (import "wasi:logging/logging@0.1.0-draft" (instance
        (type $level' (enum "trace" "debug" "info" "warn" "error" "critical"))
        (export "level" (type $level (eq $level')))
        (export "log" (func
            (param "level" $level) (param "context" string) (param "message" string)))))
    (core module $main (func (export "seven") (result i32) (i32.const 7)))
    (core instance $i (instantiate $main))
    (alias core export $i "seven" (core func $seven))
    (func (export "seven") (result u32) (canon lift (core func $seven))))"#;

fn log(engine: &Containerd) -> Result<()> {
    let rootfs = Rootfs::guests()?.file("/text.wasm", wat::parse_str(LOGGING)?);
    let imported = engine.container(&rootfs).args(["/text.wasm#seven"]).run()?;
    assert_eq!(imported.status, 7, "without a switch");
    let log = |settings: &str, level: &str, context: &str, message: &str| -> Result<String> {
        // The tool imports that, too.
        let settings = format!("wasi.keyvalue = true\n{settings}");
        let log = |tool| {
            let output = run(engine, &settings, &[tool, "log", level, context, message])?;
            assert_eq!(output.text(), "");
            let errors = output.errors();
            output.success()?;
            anyhow::Ok(errors)
        };
        let errors = log(WASI)?;
        assert_eq!(log(WASI_P3)?, errors);
        Ok(errors)
    };
    assert_eq!(
        log("", "trace", "cart", "three items")?,
        "level=trace context=\"cart\" msg=\"three items\"\n"
    );
    // One line, whatever the guest says.
    assert_eq!(
        log("", "critical", "", "one\nlevel=info msg=\"two\"")?,
        "level=critical msg=\"one\\nlevel=info msg=\\\"two\\\"\"\n"
    );
    let warn = "wasi.log_level = 'warn'";
    assert_eq!(log(warn, "info", "c", "m")?, "");
    assert_eq!(
        log(warn, "warn", "c", "m")?,
        "level=warn context=\"c\" msg=\"m\"\n"
    );
    assert_eq!(log("wasi.log_level = 'off'", "critical", "c", "m")?, "");
    let said = guest(engine, "wasi.log_level = 'loud'", &[WASI, "config"])?.refused()?;
    assert!(
        said.contains("wasi.log_level") && said.contains("critical"),
        "{said}"
    );
    let annotated = guest(
        engine,
        "wasi.keyvalue = true\nannotations = ['wasi.log_level']",
        &[WASI, "log", "info", "c", "m"],
    )?
    .annotation("lighter/wasi.log_level", "error")
    .run()?;
    assert_eq!(annotated.errors(), "");
    annotated.success()?;
    Ok(())
}

fn what_is_not_there(engine: &Containerd) -> Result<()> {
    for (text, missing, there) in [
        (
            r#"(module
                (import "wasi" "thread-spawn" (func (param i32) (result i32)))
                (func (export "_start")))"#,
            "thread-spawn",
            "WASI 0.1",
        ),
        (
            r#"(module
                (import "wasi_ephemeral_nn" "load" (func (param i32 i32 i32 i32 i32) (result i32)))
                (func (export "_start")))"#,
            "wasi_ephemeral_nn",
            "WASI 0.1",
        ),
        (
            r#"(module (memory 1 1 shared) (func (export "_start")))"#,
            "shared",
            "",
        ),
        (
            r#"(component
                (import "wasi:nn/errors@0.2.0-rc-2024-10-28" (instance
                    (export "error" (type (sub resource))))))"#,
            "wasi:nn/errors",
            "WASI 0.2 and 0.3",
        ),
    ] {
        let said = text_guest(engine, "", text)?.refused()?;
        assert!(said.contains(missing) && said.contains(there), "{said}");
    }
    Ok(())
}
