//! What a helper of the zygote does for one request.

use std::env;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;

use libcontainer::container::Container;
use libcontainer::error::LibcontainerError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::delete::delete;
use crate::explain::explain;
use crate::guest::Guests;
use crate::orphan::delete_orphan;
use crate::zygote::{Ended, Reply, Request, Target};
use crate::{checkpoint, create, exec, pod};

/// Carries out `request`, whose descriptors are `fds`. Returns the answer with its descriptors, for
/// `reply_to`, which none of the processes that this one clones keeps open.
pub(crate) fn run(
    request: Request,
    fds: Vec<OwnedFd>,
    guests: &Result<Rc<dyn Guests>, String>,
    reply_to: RawFd,
) -> (Reply, Vec<OwnedFd>) {
    // As with runc, hooks run in the bundle, and relative sources of mounts are below it.
    let bundle = match &request {
        Request::Create(create) => Some(create.bundle.clone()),
        Request::Start(target) | Request::Delete(Ended { target, .. }) => bundle_of(target),
        _ => None,
    };
    if let Some(Err(error)) = bundle.map(env::set_current_dir) {
        log::debug!("entering the bundle: {error}");
    }
    let done = match request {
        Request::Create(request) => match &request.restore {
            None => create::create(&request, fds, guests, reply_to),
            Some(from) => create::restore(&request, from, &fds).map(|created| (created, None)),
        }
        .map(|(created, master)| (Reply::Created(created), Vec::from_iter(master))),
        Request::Exec {
            exec: request,
            init,
        } => guests
            .clone()
            .and_then(|guests| exec::exec(*request, init, fds, guests, reply_to))
            .map(|added| {
                let fds = [Some(added.handle), added.master];
                (Reply::Added(added.pid), fds.into_iter().flatten().collect())
            }),
        Request::Checkpoint { checkpoint, init } => {
            checkpoint::dump(&checkpoint, init).map(|()| (Reply::Done, Vec::new()))
        }
        Request::Start(target) => start(&target).map(|()| (Reply::Done, Vec::new())),
        Request::Delete(ended) => {
            delete(&ended.target, ended.owned_pid_namespace).map(|()| (Reply::Done, Vec::new()))
        }
        Request::Clear(orphan) => delete_orphan(&orphan).map(|()| (Reply::Done, Vec::new())),
        Request::Pod(pod) => pod::make(&pod).map(|()| (Reply::Done, Vec::new())),
        Request::PodInit(pod) => {
            pod::make_pid_namespace(&pod).map(|(pid, handle)| (Reply::Added(pid), vec![handle]))
        }
    };
    done.unwrap_or_else(|reason| (Reply::Failed(reason), Vec::new()))
}

/// The bundle of a container that has been created.
fn bundle_of(target: &Target) -> Option<PathBuf> {
    let container = Container::load(target.root.join(&target.id)).ok()?;
    Some(container.bundle().clone())
}

fn start(target: &Target) -> Result<(), String> {
    let mut container =
        Container::load(target.root.join(&target.id)).map_err(|error| explain(&error, None))?;
    container.start().map_err(|error| {
        if let (LibcontainerError::Hook(_), Some(pid)) = (&error, container.pid()) {
            // A poststart hook that fails ends its container, as in runc.
            let _ = kill(Pid::from_raw(pid.as_raw()), Signal::SIGKILL);
        }
        explain(&error, None)
    })
}
