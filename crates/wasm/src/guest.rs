//! Running a guest.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;

use nix::poll::{PollFd, PollFlags, poll};
use tokio::runtime::{Builder, Runtime};
use wasmtime::component::{self, ComponentExportIndex, Val};
use wasmtime::error::Context as _;
use wasmtime::{Engine, Store, StoreLimits, StoreLimitsBuilder, Trap};
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtxBuilder, p2, p3};

use crate::host::INITIALIZE;
use crate::keyvalue;
use crate::names;
use crate::serve::Server;
use crate::settings::{Limits, Settings, Time};
use crate::signals;
use crate::state::{Common, State};
use crate::stdio::{Output, Stdin};

/// The exit code of a guest that trapped: 128 + SIGABRT, as a native program that aborts.
pub const EXIT_TRAP: i32 = 134;

/// The exit code of a guest whose time was over, as timeout(1) has it.
pub const EXIT_TIME_OVER: i32 = 124;

/// The exit code when the host fails a guest, which then never ran or could not go on.
pub const EXIT_HOST_FAILURE: i32 = 125;

/// How a guest is called.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    /// The arguments, the first being the guest's own name.
    pub args: Vec<String>,
    /// The environment, `NAME=VALUE` each; one without `=` is a name with an empty value.
    pub env: Vec<String>,
    /// The working directory, an absolute path.
    ///
    /// Where it is `/`, a guest is told of none: its paths start there anyway, as with wasmtime. WASI 0.2 and 0.3 tell
    /// any other to the guest (`initial-cwd`). WASI 0.1 has no word for it, and C
    /// libraries there take `/` for granted: they strip the leading slash before they look for a
    /// preopened directory, so that the host cannot tell `/a` from `a`. The variable `PWD` is set
    /// for all versions where `env` has none; Go starts there.
    pub cwd: String,
}

/// A guest that is mapped and linked. It belongs to the process that loaded it.
pub struct Guest {
    pub(crate) engine: Engine,
    pub(crate) work: Work,
    pub(crate) settings: Arc<Settings>,
}

/// What a guest is there for.
pub(crate) enum Work {
    /// One call.
    Once(Entry),
    /// Requests, until the process is told to end.
    Serve(Server),
}

/// What is instantiated and then called.
pub(crate) enum Entry {
    Module {
        pre: wasmtime::InstancePre<State>,
        function: String,
        /// Whether [`INITIALIZE`] comes first.
        initialize: bool,
    },
    Component {
        pre: component::InstancePre<State>,
        entry: ComponentEntry,
        /// Whether it imports sockets.
        sockets: bool,
    },
}

pub(crate) enum ComponentEntry {
    /// `wasi:cli/run` of WASI 0.2.
    Run2(p2::bindings::CommandIndices),
    /// `wasi:cli/run` of WASI 0.3.
    Run3(p3::bindings::CommandIndices),
    /// A function that the user named.
    Function(ComponentExportIndex),
}

impl Guest {
    /// Instantiates the guest, calls it, and returns the exit code for the process.
    ///
    /// `started` is called once: with `Ok` when there is an instance, before its entry function is
    /// called; with `Err` and a sentence when the host could not make one, for want of memory for
    /// example. A trap in the module's start function is the guest's own doing, and `Ok`.
    ///
    /// | end | code |
    /// |---|---|
    /// | return of nothing, or of `ok` | 0 |
    /// | return of an integer | its lowest 8 bits |
    /// | return of `err` | 1 |
    /// | `proc_exit`, `exit-with-code` | the lowest 8 bits |
    /// | trap | [`EXIT_TRAP`]; message and backtrace are on standard error |
    /// | the time limit that is set | [`EXIT_TIME_OVER`]; so says standard error |
    /// | failure of the host | [`EXIT_HOST_FAILURE`]; the reason is on standard error |
    ///
    /// The guest gets the file descriptors 0, 1 and 2, the process's root as `/`, and its network.
    /// Whatever it wrote is out of the process when this returns. Threads may be left; the caller
    /// should end the process now.
    ///
    /// A component that handles requests over HTTP is served instead, until SIGTERM or SIGINT; it
    /// is started as soon as its port is open.
    pub fn run(self, invocation: Invocation, started: &mut dyn FnMut(Result<(), String>)) -> i32 {
        names::use_all_lines();
        match self.work {
            Work::Once(entry) => entry.run(&self.engine, &invocation, self.settings, started),
            Work::Serve(server) => server.run(&self.engine, &invocation, self.settings, started),
        }
    }
}

impl Entry {
    fn run(
        &self,
        engine: &Engine,
        invocation: &Invocation,
        settings: Arc<Settings>,
        started: &mut dyn FnMut(Result<(), String>),
    ) -> i32 {
        let name = invocation.args.first().cloned().unwrap_or_default();
        if let Some(time) = settings.limits.time
            && let Err(error) = end_after(time, &name)
        {
            started(Err(format!("cannot start a thread: {error}")));
            return EXIT_HOST_FAILURE;
        }
        let runtime = match self.runtime() {
            Ok(runtime) => runtime,
            Err(error) => {
                started(Err(format!("cannot start an event loop: {error}")));
                return EXIT_HOST_FAILURE;
            }
        };
        let code = runtime.block_on(async {
            let mut store = match store(engine, invocation, settings) {
                Ok(store) => store,
                Err(error) => {
                    started(Err(format!("cannot set up WASI: {error:#}")));
                    return EXIT_HOST_FAILURE;
                }
            };
            let mut running = false;
            let result = self
                .call(&mut store, &mut || {
                    running = true;
                    started(Ok(()));
                })
                .await;
            let error = match result {
                Ok(code) => return code & 0xff,
                Err(error) => error,
            };
            let end = End::of(&error);
            if !running {
                started(match end {
                    End::Host => Err(format!("cannot instantiate {name}: {error:#}")),
                    End::Exit(_) | End::Trap => Ok(()),
                });
            }
            match end {
                End::Exit(code) => code & 0xff,
                End::Trap => {
                    complain(&name, &error);
                    EXIT_TRAP
                }
                End::Host => {
                    complain(&format!("{name}: the host failed"), &error);
                    EXIT_HOST_FAILURE
                }
            }
        });
        // Not waiting for threads that are in a name look-up, say.
        runtime.shutdown_background();
        code
    }

    /// An event loop. Guests that can have sockets get a second thread that watches them, if there is one to be had: one that
    /// polls without ever waiting would never see an event otherwise.
    fn runtime(&self) -> io::Result<Runtime> {
        // Without a thread tokio would panic.
        let is_free = || {
            thread::Builder::new()
                .spawn(|| ())
                .map(thread::JoinHandle::join)
        };
        let mut builder = match self {
            Self::Component { sockets: true, .. } if is_free().is_ok() => {
                let mut builder = Builder::new_multi_thread();
                builder.worker_threads(1);
                builder
            }
            _ => Builder::new_current_thread(),
        };
        builder.enable_all().build()
    }
}

/// How a guest ended that did not return.
enum End {
    Exit(i32),
    Trap,
    Host,
}

impl End {
    fn of(error: &wasmtime::Error) -> Self {
        if let Some(I32Exit(code)) = error.downcast_ref() {
            Self::Exit(*code)
        } else if error.is::<Trap>() || error.is::<wasmtime::WasmBacktrace>() {
            Self::Trap
        } else {
            Self::Host
        }
    }
}

/// Writes `error` and its causes to standard error: a trap's are the wasm backtrace and the reason.
/// wasmtime's own form would append this process's frames where the daemon's environment asks.
pub(crate) fn complain(subject: &str, error: &wasmtime::Error) {
    let mut text = format!("{subject}: {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("Caused by: {cause}\n"));
    }
    tell(&text);
}

/// Writes `text` to standard error. Nobody may be listening, which changes nothing for the guest.
pub(crate) fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// How long the end of a guest's time waits for room to say so, in milliseconds.
const LAST_WORDS: u8 = 100;

/// Ends the process in so much time, whatever the guest is at.
fn end_after(time: Time, name: &str) -> io::Result<()> {
    let words = format!("{name}: ended after {time}, the limit that is set (limits.time)\n");
    let timer = move || {
        thread::sleep(time.0);
        // The guest may be writing, and nobody reading: that does not hold this up. So much is written at once or not at all
        // (pipe(7), PIPE_BUF).
        let stderr = io::stderr();
        let mut stderr = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut stderr, LAST_WORDS).is_ok_and(|ready| ready > 0) {
            let length = words.len().min(libc::PIPE_BUF);
            let _ = nix::unistd::write(io::stderr(), &words.as_bytes()[..length]);
        }
        signals::exit_now(EXIT_TIME_OVER);
    };
    thread::Builder::new()
        .name("time limit".into())
        .spawn(timer)
        .map(drop)
}

/// The guest's memory and its view of the world.
fn store(
    engine: &Engine,
    invocation: &Invocation,
    settings: Arc<Settings>,
) -> wasmtime::Result<Store<State>> {
    let mut wasi = world(invocation, &settings, Blocking::Allowed)?;
    wasi.stdin(Stdin::new()?).stdout(Output::stdout()?);
    let common = Common {
        stderr: Output::stderr()?,
        store: keyvalue::stores(&settings.keyvalue, &invocation.env)(),
        settings,
    };
    let mut store = limited_store(engine, wasi, &common, &invocation.env, None)?;
    // For a server's engine, one of whose other functions was named.
    store.set_epoch_deadline(u64::MAX / 2);
    Ok(store)
}

/// A store in the environment `env` that keeps to the limits that are set; instead of a limit on
/// memory there, to `memory` if that is one.
pub(crate) fn limited_store(
    engine: &Engine,
    mut wasi: WasiCtxBuilder,
    common: &Common,
    env: &[String],
    memory: Option<usize>,
) -> wasmtime::Result<Store<State>> {
    let set = &common.settings.limits;
    let limits = limits(set, memory);
    let is_limited = limits.is_some();
    wasi.stderr(common.stderr.clone());
    let state = State::new(wasi.build_p1(), limits.unwrap_or_default(), common, env);
    let mut store = Store::new(engine, state);
    if is_limited {
        store.limiter(|state| &mut state.limits);
    }
    if let Some(fuel) = set.fuel {
        store.set_fuel(fuel)?;
    }
    Ok(store)
}

fn limits(set: &Limits, memory: Option<usize>) -> Option<StoreLimits> {
    let Limits {
        memory: set_memory,
        memories,
        table_elements,
        tables,
        // Others see to these.
        time: _,
        fuel: _,
    } = set;
    let memory = memory.or(set_memory.map(|size| size.0 as usize));
    if memory.is_none() && memories.is_none() && table_elements.is_none() && tables.is_none() {
        return None;
    }
    let mut limits = StoreLimitsBuilder::new();
    if let Some(bytes) = memory {
        limits = limits.memory_size(bytes);
    }
    if let Some(count) = memories {
        limits = limits.memories(count.0 as usize);
    }
    if let Some(count) = table_elements {
        limits = limits.table_elements(count.0 as usize);
    }
    if let Some(count) = tables {
        limits = limits.tables(count.0 as usize);
    }
    Some(limits.build())
}

/// Whether what a guest does with files may block the thread that it runs on. Else each such call is
/// another thread's, which takes several times as long.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocking {
    /// There is one guest in this process.
    Allowed,
    /// Others run on the same thread.
    Forbidden,
}

/// All that a guest gets but its standard streams.
pub(crate) fn world(
    invocation: &Invocation,
    settings: &Arc<Settings>,
    blocking: Blocking,
) -> wasmtime::Result<WasiCtxBuilder> {
    let mut wasi = WasiCtxBuilder::new();
    // Folders take this over as they are added.
    wasi.allow_blocking_current_thread(blocking == Blocking::Allowed);
    wasi.args(&invocation.args);
    give_files(&mut wasi, settings)?;
    give_network(&mut wasi, settings);
    let variables = invocation
        .env
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    let mut has_pwd = false;
    for (name, value) in variables {
        has_pwd |= name == "PWD";
        wasi.env(name, value);
    }
    if invocation.cwd != "/" {
        wasi.initial_cwd(&invocation.cwd);
        if !has_pwd {
            wasi.env("PWD", &invocation.cwd);
        }
    }
    Ok(wasi)
}

fn give_files(wasi: &mut WasiCtxBuilder, settings: &Settings) -> wasmtime::Result<()> {
    let files = &settings.files;
    let rights = |writable| match writable {
        true => FsPerms::ReadWrite,
        false => FsPerms::ReadOnly,
    };
    if files.root {
        wasi.preopened_dir("/", "/", rights(!files.read_only))?;
    }
    for preopen in &files.preopens {
        wasi.preopened_dir(&preopen.folder, &preopen.name, rights(preopen.writable))
            .with_context(|| {
                format!("the folder {} that is set (files.preopens)", preopen.folder)
            })?;
    }
    Ok(())
}

fn give_network(wasi: &mut WasiCtxBuilder, settings: &Arc<Settings>) {
    let network = &settings.network;
    wasi.allow_ip_name_lookup(network.enabled && network.names)
        .allow_tcp(network.enabled)
        .allow_udp(network.enabled);
    if !network.enabled {
        return;
    }
    if network.allow.is_none() {
        wasi.inherit_network();
        return;
    }
    let settings = settings.clone();
    wasi.socket_addr_check(move |address: SocketAddr, what: SocketAddrUse| {
        let allowed = match what {
            // Its own addresses are up to the kernel.
            SocketAddrUse::TcpBind | SocketAddrUse::TcpListen | SocketAddrUse::UdpBind => true,
            SocketAddrUse::TcpAccept
            | SocketAddrUse::TcpConnect
            | SocketAddrUse::UdpSend
            | SocketAddrUse::UdpReceive => settings.network.allows(address),
        };
        Box::pin(async move { allowed }) as Pin<Box<dyn Future<Output = bool> + Send + Sync>>
    });
}

impl Entry {
    /// Instantiates, calls `started`, and calls the entry function. Returns the exit code.
    async fn call(
        &self,
        store: &mut Store<State>,
        started: &mut dyn FnMut(),
    ) -> wasmtime::Result<i32> {
        match self {
            Self::Module {
                pre,
                function,
                initialize,
            } => {
                let instance = pre.instantiate_async(&mut *store).await?;
                started();
                if *initialize {
                    instance
                        .get_typed_func::<(), ()>(&mut *store, INITIALIZE)?
                        .call_async(&mut *store, ())
                        .await?;
                }
                if let Ok(function) = instance.get_typed_func::<(), i32>(&mut *store, function) {
                    return function.call_async(store, ()).await;
                }
                instance
                    .get_typed_func::<(), ()>(&mut *store, function)?
                    .call_async(store, ())
                    .await?;
                Ok(0)
            }
            Self::Component { pre, entry, .. } => {
                let instance = pre.instantiate_async(&mut *store).await?;
                started();
                entry.call(store, &instance).await
            }
        }
    }
}

impl ComponentEntry {
    async fn call(
        &self,
        store: &mut Store<State>,
        instance: &component::Instance,
    ) -> wasmtime::Result<i32> {
        let code = |result: Result<(), ()>| if result.is_ok() { 0 } else { 1 };
        match self {
            Self::Run2(indices) => {
                let command = indices.load(&mut *store, instance)?;
                Ok(code(command.wasi_cli_run().call_run(store).await?))
            }
            Self::Run3(indices) => {
                let command = indices.load(&mut *store, instance)?;
                let result = store
                    .run_concurrent(async |store| command.wasi_cli_run().call_run(store).await)
                    .await??;
                Ok(code(result))
            }
            Self::Function(index) => {
                let function = instance
                    .get_func(&mut *store, index)
                    .ok_or_else(|| wasmtime::format_err!("the entry function is gone"))?;
                let count = function.ty(&*store).results().len();
                let mut results = vec![Val::Bool(false); count];
                function.call_async(&mut *store, &[], &mut results).await?;
                Ok(match results.first() {
                    None => 0,
                    Some(Val::Result(result)) => i32::from(result.is_err()),
                    Some(Val::S8(code)) => (*code).into(),
                    Some(Val::U8(code)) => (*code).into(),
                    Some(Val::S16(code)) => (*code).into(),
                    Some(Val::U16(code)) => (*code).into(),
                    Some(Val::S32(code)) => *code,
                    Some(Val::U32(code)) => *code as i32,
                    Some(_) => unreachable!("checked when the guest was loaded"),
                })
            }
        }
    }
}
