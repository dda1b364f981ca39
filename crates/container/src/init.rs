//! The container's init: what libcontainer calls from its last step before "created" on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::PipeWriter;
use std::path::PathBuf;
use std::rc::Rc;

use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::{Hook, PosixRlimit, Process, Spec};

use crate::confinement::Confinement;
use crate::cwd;
use crate::hooks::run_start_hooks;
use crate::program::{Launcher, Program, invocation};
use crate::zygote::Create;

/// Runs a container's entrypoint for libcontainer.
#[derive(Clone)]
pub(crate) struct Init {
    launcher: Launcher,
    start: Rc<StartHooks>,
    program: Rc<RefCell<Option<Program>>>,
    outside: Rc<RefCell<Option<PipeWriter>>>,
    confinement: Option<Rc<Confinement>>,
    cwd: Option<PathBuf>,
    has_home: bool,
    limit: Option<PosixRlimit>,
}

/// What the `startContainer` hooks are and read.
struct StartHooks {
    hooks: Vec<Hook>,
    id: String,
    bundle: PathBuf,
}

impl Init {
    /// The init that `request` asks for; it runs `start_hooks` before its entrypoint, whose user `has_home` or
    /// not, and which gets `limit` (see [`Launcher::run`]).
    pub(crate) fn new(
        launcher: Launcher,
        request: &Create,
        start_hooks: Vec<Hook>,
        has_home: bool,
        limit: Option<PosixRlimit>,
    ) -> Self {
        Self {
            launcher,
            start: Rc::new(StartHooks {
                hooks: start_hooks,
                id: request.target.id.clone(),
                bundle: request.bundle.clone(),
            }),
            program: Rc::default(),
            outside: Rc::default(),
            confinement: None,
            cwd: None,
            has_home,
            limit,
        }
    }

    /// The same init, which enters the working directory and puts on the confinement of `spec` itself; libcontainer's,
    /// for which `spec` then is, does neither.
    pub(crate) fn take_over(mut self, spec: &mut Spec) -> Self {
        self.confinement = Confinement::take_over(spec).map(Rc::new);
        if let Some(process) = spec.process_mut() {
            self.cwd = Some(process.cwd().clone());
            process.set_cwd("/".into());
        }
        self
    }

    /// Has `pipe` closed by the init once it is inside its own root file system, and by any other process that calls
    /// [`Init::leave`].
    pub(crate) fn until_inside(&self, pipe: PipeWriter) {
        self.outside.replace(Some(pipe));
    }

    /// Closes the pipe of [`Init::until_inside`] in this process.
    pub(crate) fn leave(&self) {
        self.outside.take();
    }
}

fn process(spec: &Spec) -> Result<&Process, String> {
    let process = spec.process().as_ref();
    process.ok_or_else(|| "the spec has no process".to_owned())
}

impl Executor for Init {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.leave();
        let entered = self.cwd.as_deref().map_or(Ok(()), cwd::enter);
        let confined = entered.and_then(|()| match &self.confinement {
            Some(confinement) => confinement.put_on(create_syscall().as_ref()),
            None => Ok(()),
        });
        let resolved = confined
            .and_then(|()| process(spec))
            .and_then(|process| self.launcher.resolve(process));
        let program = resolved.map_err(|reason| {
            // libcontainer would wrap the reason in two sentences of its own.
            ExecutorValidationError::ArgValidationError(self.launcher.fail(reason))
        })?;
        self.program.replace(Some(program));
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The entrypoint gets its environment as an argument; this process's own stays as it is.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let mut invocation = process(spec)
            .and_then(invocation)
            .map_err(ExecutorError::Other)?;
        if let Some(cwd) = &self.cwd {
            invocation.cwd = cwd.display().to_string();
        }
        let program = self.program.take();
        let program = program.ok_or_else(|| ExecutorError::Other("nothing to run".to_owned()))?;
        let StartHooks { hooks, id, bundle } = &*self.start;
        if let Err(error) = run_start_hooks(hooks, id, bundle.clone(), spec, &invocation.env) {
            let reason = format!("a startContainer hook failed: {error}");
            return Err(ExecutorError::Other(self.launcher.fail(reason)));
        }
        Err(ExecutorError::Other(self.launcher.run(
            program,
            invocation,
            self.has_home,
            self.limit.as_ref(),
        )))
    }
}
