//! A running container to images.

use std::fs::{self, File};
use std::os::linux::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::Spec;

use super::criu::{Criu, make_folder};
use super::{Checkpoint, External, MountLine, Notes, cgroups_of, owner, shared_namespaces};
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::mounts::is_bind;

/// Makes the images of the container whose init is `init`, a pid here. Where that fails the
/// container goes on as before.
///
/// # Errors
/// What was tried, and criu's reason.
pub(crate) fn dump(request: &Checkpoint, init: i32) -> Result<(), String> {
    let bundle = Bundle::load(&request.bundle).map_err(|error| error.to_string())?;
    make_folder(&request.images)?;
    let mut criu = Criu::new(
        "dump",
        &request.images,
        request.work.as_deref(),
        &request.bundle,
    )?;
    criu.value("--tree", init.to_string())
        .value("--root", &bundle.rootfs)
        .option("--manage-cgroups=soft");
    for (option, wanted) in [
        ("--leave-running", request.leave_running),
        ("--tcp-established", request.open_tcp),
        ("--ext-unix-sk", request.external_unix_sockets),
        ("--file-locks", request.file_locks),
    ] {
        if wanted {
            criu.option(option);
        }
    }
    for namespace in &request.empty_namespaces {
        match namespace.as_str() {
            "network" => criu.value("--empty-ns", "net"),
            other => return Err(format!("criu knows no empty namespace of the kind {other}")),
        };
    }
    let cgroup = Cgroup::of(init as u32).map_err(|error| error.to_string())?;
    // Not the hierarchies of which the container has no part of its own: criu would save, and then
    // make anew, everybody's cgroups there.
    for (controllers, _) in cgroups_of(&init.to_string())? {
        let own = cgroup.controllers();
        if controllers.iter().any(|name| own.contains(&name.as_str())) {
            criu.value("--cgroup-dump-controller", controllers.join(","));
        }
    }
    if let Some(folder) = cgroup.freezer() {
        criu.value("--freeze-cgroup", folder);
    }
    for (kind, name, path) in shared_namespaces(&bundle.spec) {
        let namespace = File::open(&path).and_then(|file| file.metadata());
        let inode = namespace
            .map_err(|error| format!("looking at {}: {error}", path.display()))?
            .st_ino();
        criu.external(&format!("{kind}[{inode}]"), Path::new(name));
    }
    let notes = notes(&bundle.spec, init)?;
    for mount in &notes.mounts {
        // Its name among the images is its place.
        criu.external(&format!("mnt[{}]", mount.point.display()), &mount.point);
    }
    notes
        .write(&request.images)
        .map_err(|error| format!("writing into {}: {error}", request.images.display()))?;
    let status = criu.command().status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(format!(
            "criu failed to checkpoint the container: {}",
            criu.failure(&request.bundle)
        )),
        Err(error) => Err(format!("criu cannot be run: {error}")),
    }
}

fn notes(spec: &Spec, init: i32) -> Result<Notes, String> {
    let process = Path::new("/proc").join(init.to_string());
    let stream = |number: u32| {
        let link = fs::read_link(process.join("fd").join(number.to_string()));
        link.map_or_else(|_| String::new(), |target| target.display().to_string())
    };
    let file = process.join("mountinfo");
    let mounts = fs::read_to_string(&file)
        .map_err(|error| format!("reading {}: {error}", file.display()))?;
    Ok(Notes {
        streams: (0..3).map(stream).collect(),
        mounts: mounts
            .lines()
            .filter_map(MountLine::parse)
            .filter_map(|mount| external(spec, mount))
            .collect(),
    })
}

/// What `mount` is if it comes from outside: a part of the host's files that was bound, or of v1's
/// cgroups.
fn external(spec: &Spec, mount: MountLine<'_>) -> Option<External> {
    let owner = owner(spec, &mount.point)?;
    let hierarchy = (mount.kind == "cgroup").then(|| mount.options.to_owned());
    (hierarchy.is_some() || is_bind(owner)).then_some(External {
        point: mount.point,
        hierarchy,
    })
}
