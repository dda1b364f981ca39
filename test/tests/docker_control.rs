//! What `docker` does with containers that run: pause and unpause.

use anyhow::{Result, ensure};
use lighter_test::{
    dockerd::{Container, Dockerd, Image},
    each_store, eventually,
};

each_store!(pause);

/// A guest that computes, and a Linux container that does.
fn busy(engine: &Dockerd) -> Result<[Container<'_>; 2]> {
    let guest = engine.launch(Image::Guests, &[], &["/tool.wasm", "loop"])?;
    let script = "echo looping; while :; do :; done";
    let linux = engine.launch(Image::Linux, &[], &["sh", "-c", script])?;
    for container in [&guest, &linux] {
        container.wait_for_log("looping")?;
    }
    Ok([guest, linux])
}

const STATE: &str = "{{.State.Status}} {{.State.Paused}}";

fn pause(engine: &Dockerd) -> Result<()> {
    for container in busy(engine)? {
        let time = || container.cgroup_file("cpuacct", "cpuacct.usage");
        engine.docker(&["pause", container.id()])?.success()?;
        container.wait_for(STATE, "paused true")?;
        let before = time()?;
        let again = engine.docker(&["pause", container.id()])?;
        ensure!(
            again.code != 0 && again.errors.contains("already paused"),
            "{again:?}"
        );
        engine
            .run(Image::Guests, &["--rm"], &["/hello.wasm"])?
            .success()?;
        assert_eq!(time()?, before, "time used while paused");
        engine.docker(&["unpause", container.id()])?.success()?;
        container.wait_for(STATE, "running false")?;
        eventually("it goes on", || (time().ok()? != before).then_some(()))?;
        // A paused container is removed as any other.
        engine.docker(&["pause", container.id()])?.success()?;
        engine
            .docker(&["rm", "--force", container.id()])?
            .success()?;
        ensure!(container.inspect(STATE).is_err());
    }
    Ok(())
}
