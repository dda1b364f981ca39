//! How a guest is compiled.

use anyhow::Result;
use lighter_test::{Containerd, each_containerd};

use crate::{COMPONENT, run, run_text, text_guest};

each_containerd!(stack, proposals);

fn stack(engine: &Containerd) -> Result<()> {
    // Calls itself so often that it needs some megabytes.
    let deep = r#"(module
        (func $down (param i64) (result i64)
            (if (result i64) (i64.eqz (local.get 0))
                (then (i64.const 0))
                (else (i64.add (i64.const 1)
                    (call $down (i64.sub (local.get 0) (i64.const 1)))))))
        (func (export "_start") (drop (call $down (i64.const 100000)))))"#;
    let overflown = run_text(engine, "", deep)?;
    assert_eq!(overflown.status, 134, "{}", overflown.errors());
    assert!(
        overflown.errors().contains("call stack exhausted"),
        "{}",
        overflown.errors()
    );
    run_text(engine, "engine.stack_size = '64MiB'", deep)?.success()?;
    let smaller = r#"(module
        (func $down (param i64) (result i64)
            (if (result i64) (i64.eqz (local.get 0))
                (then (i64.const 0))
                (else (i64.add (i64.const 1)
                    (call $down (i64.sub (local.get 0) (i64.const 1)))))))
        (func (export "_start") (drop (call $down (i64.const 5000)))))"#;
    run_text(engine, "", smaller)?.success()?;
    let overflown = run_text(engine, "engine.stack_size = '32KiB'", smaller)?;
    assert_eq!(overflown.status, 134, "{}", overflown.errors());
    Ok(())
}

fn proposals(engine: &Containerd) -> Result<()> {
    let wide = r#"(module (func (export "_start")
        (i64.add128 (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4))
        drop drop))"#;
    let said = text_guest(engine, "", wide)?.refused()?;
    assert!(said.contains("wide arithmetic"), "{said}");
    let on = "engine.proposals.wide_arithmetic = true";
    run_text(engine, on, wide)?.success()?;
    // Twice: compiled, and from the cache.
    run_text(engine, on, wide)?.success()?;
    let said = text_guest(engine, "", wide)?.refused()?;
    assert!(said.contains("wide arithmetic"), "still: {said}");

    let vector = r#"(module (func (export "_start") (drop (v128.const i64x2 0 0))))"#;
    run_text(engine, "", vector)?.success()?;
    let off = "[engine.proposals]\nsimd = false\nrelaxed_simd = false";
    let said = text_guest(engine, off, vector)?.refused()?;
    assert!(said.contains("SIMD"), "{said}");
    // Everything else runs as it does.
    run(engine, off, &[COMPONENT, "args"])?.success()?;
    Ok(())
}
