//! How a guest is compiled.

use anyhow::Result;
use lighter_test::{Containerd, each_containerd};

use crate::{COMPONENT, guest, run, run_text, text_guest};

each_containerd!(stack, proposals, unknown_imports);

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

/// What nothing provides is an error when it is called, if that is set, and else of the create; whether
/// the native code is there already or not.
fn unknown_imports(engine: &Containerd) -> Result<()> {
    const ON: &str = "engine.unknown_imports_trap = true";
    let module = |start: &str| {
        format!(
            r#"(module
                (import "harbour" "lift" (func $lift (param i32) (result i32)))
                (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
                (memory (export "memory") 0)
                (func (export "_start") {start}))"#
        )
    };
    let component = |start: &str| {
        format!(
            r#"(component
                (import "dock:yard/crane@1.0.0" (instance $crane
                    (export "box" (type (sub resource)))
                    (export "lift" (func (param "height" u32) (result u32)))))
                (core func $lift (canon lower (func $crane "lift")))
                (core module $code
                    (import "crane" "lift" (func $lift (param i32) (result i32)))
                    (func (export "run") (result i32) {start} i32.const 0))
                (core instance $instance (instantiate $code
                    (with "crane" (instance (export "lift" (func $lift))))))
                (func $run (result (result)) (canon lift (core func $instance "run")))
                (instance $interface (export "run" (func $run)))
                (export "wasi:cli/run@0.2.0" (instance $interface)))"#
        )
    };
    let lift = "(drop (call $lift (i32.const 1)))";
    let yields = "(drop (call $yield))";
    for (unused, used, named) in [
        (module(yields), module(lift), &["harbour", "lift"][..]),
        (
            component(""),
            component(lift),
            &["dock:yard/crane@1.0.0", "lift"],
        ),
    ] {
        run_text(engine, ON, &unused)?.success()?;
        let said = text_guest(engine, "", &unused)?.refused()?;
        assert!(said.contains("engine.unknown_imports_trap"), "{said}");
        let said = text_guest(engine, "", &used)?.refused()?;
        for part in [named[0], "engine.unknown_imports_trap"] {
            assert!(said.contains(part), "{part} in: {said}");
        }
        let output = run_text(engine, ON, &used)?;
        assert_eq!(output.status, 134, "{}", output.errors());
        for part in named {
            assert!(output.errors().contains(part), "{}", output.errors());
        }
    }
    let memory = r#"(module (import "harbour" "hold" (memory 1)) (func (export "_start")))"#;
    let said = text_guest(engine, ON, memory)?.refused()?;
    assert!(said.contains("harbour"), "{said}");
    // Older versions of what is provided are not unknown.
    run(engine, ON, &[COMPONENT, "args"])?.success()?;
    let said = guest(engine, "engine.unknown_import_trap = true", &[COMPONENT])?.refused()?;
    assert!(said.contains("engine.unknown_imports_trap"), "{said}");
    Ok(())
}
