//! What a guest may import beside what every guest may.

use anyhow::Result;
use lighter_test::{Containerd, Rootfs, each_containerd, options::RuntimeOptions};

each_containerd!(configuration, store);

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
