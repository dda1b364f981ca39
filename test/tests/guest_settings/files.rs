//! What a guest sees of the container's files.

use anyhow::Result;
use lighter_test::{Containerd, each_containerd};

use crate::{COMPONENT, TOOL, guest, run};

each_containerd!(files, folders);

fn files(engine: &Containerd) -> Result<()> {
    for tool in [TOOL, COMPONENT] {
        let read_only = "files.read_only = true";
        for args in [
            &[tool, "write", "/tmp/new", "text"][..],
            &[tool, "mkdir", "/tmp/new"],
            &[tool, "unlink", "/tool.wasm"],
        ] {
            let refused = run(engine, read_only, args)?;
            assert_eq!(refused.status, 1, "{args:?}: {}", refused.errors());
            run(engine, "", args)?.success()?;
        }
        let read = run(engine, read_only, &[tool, "stat", "/tool.wasm"])?;
        assert!(read.success()?.starts_with("file "));
        let none = run(engine, "files.root = false", &[tool, "stat", "/tool.wasm"])?;
        assert_eq!(none.status, 1, "{}", none.text());
    }
    // Linux programs are the kernel's business.
    run(
        engine,
        "files.read_only = true",
        &["/bin/sh", "-c", "echo > /tmp/new"],
    )?
    .success()?;
    Ok(())
}

fn folders(engine: &Containerd) -> Result<()> {
    for tool in [TOOL, COMPONENT] {
        let settings = "files.root = false\nfiles.preopens = ['/tmp:/out', '/etc:/in:ro']";
        run(engine, settings, &[tool, "write", "/out/new", "text"])?.success()?;
        let refused = run(engine, settings, &[tool, "write", "/in/new", "text"])?;
        assert_eq!(refused.status, 1, "{}", refused.errors());
        run(engine, settings, &[tool, "ls", "/in"])?.success()?;
        // Nothing leads out of a folder.
        let refused = run(engine, settings, &[tool, "stat", "/in/../tool.wasm"])?;
        assert_eq!(refused.status, 1, "{}", refused.text());
        let within = "files.read_only = true\nfiles.preopens = ['/tmp']";
        run(engine, within, &[tool, "write", "/tmp/new", "text"])?.success()?;
    }
    let missing = "files.preopens = ['/missing']";
    let said = guest(engine, missing, &[TOOL, "args"])?.refused()?;
    assert!(
        said.contains("/missing") && said.contains("files.preopens"),
        "{said}"
    );
    Ok(())
}
