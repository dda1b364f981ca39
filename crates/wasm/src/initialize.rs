//! Running a module's initialisation, in the compile worker, and making a module of what it left.
//!
//! What it leaves depends on the module and the files that it is given alone. It has no arguments,
//! no environment and no network; its clocks begin at the epoch and go on by a microsecond a look; what
//! it takes for random is a row of numbers that are always the same.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWrite;
use tokio::runtime::Builder;
use wasmparser::ValType;
use wasmtime::{ExternType, Instance, Module, Store, Val};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};
use wasmtime_wasi::random::Deterministic;
use wasmtime_wasi::{FsPerms, HostMonotonicClock, HostWallClock, I32Exit, WasiCtxBuilder};
use wasmtime_wizer::{InstanceState, SnapshotVal, Wizer};

use crate::host::INITIALIZE;
use crate::package::Job;
use crate::settings::{Flags, Settings, Time};
use crate::state::{Common, State};
use crate::stdio::Output;
use crate::{engine, keyvalue, unknown};

/// How many times as long as its processor time an initialisation may take by the clock on the wall.
const PATIENCE: u32 = 10;

/// How much is kept of what it writes, in bytes.
const MOST_WORDS: usize = 8 << 10;

/// Runs what `job` says of the core module `wasm`, and gives the module that goes on from there.
/// `over` is called, on another thread, when its time is over; it must end the process.
///
/// # Errors
/// A sentence about the module that leaves out its name.
pub(crate) fn initialize(
    wasm: &[u8],
    job: &Job,
    flags: &Flags,
    over: impl FnOnce(String) + Send + 'static,
) -> Result<Vec<u8>, String> {
    let wrong = |error: wasmtime::Error| {
        format!("it cannot be initialised beforehand (preinit.function): {error:#}")
    };
    let mut wizer = Wizer::new();
    wizer.init_func(&job.function);
    let (context, instrumented) = wizer.instrument(wasm).map_err(wrong)?;
    let engine = engine::initializing_engine(flags).map_err(wrong)?;
    let module = Module::from_binary(&engine, &instrumented).map_err(wrong)?;
    drop(instrumented);
    check(&module, &job.function)?;
    let linker = engine::module_linker(&engine).map_err(wrong)?;
    let pre = unknown::link_module(&linker, &module, flags).map_err(wrong)?;
    let words = Words::default();
    let state = state(&words).map_err(wrong)?;
    let mut store = Store::new(&engine, state);
    let runtime = Builder::new_current_thread().enable_time().build();
    let runtime =
        runtime.map_err(|error| format!("its initialisation has no event loop: {error}"))?;
    runtime.block_on(async {
        let watch = Watch::over(job.time, {
            let (words, function) = (words.clone(), job.function.clone());
            move |limit| {
                over(told(
                    &function,
                    &format!("was not over after {limit}"),
                    &words,
                ))
            }
        });
        let ran = async {
            let instance = pre.instantiate_async(&mut store).await?;
            let mut functions = vec![job.function.as_str()];
            if job.function != INITIALIZE && module.get_export(INITIALIZE).is_some() {
                functions.insert(0, INITIALIZE);
            }
            for name in functions {
                let function = instance.get_typed_func::<(), ()>(&mut store, name)?;
                function.call_async(&mut store, ()).await?;
            }
            Ok(instance)
        };
        let ran: wasmtime::Result<Instance> = ran.await;
        watch.end();
        let instance = ran.map_err(|error| {
            let how = match error.downcast_ref() {
                Some(I32Exit(code)) => format!("has ended the process, with {code}"),
                None => format!("failed: {error:#}"),
            };
            told(&job.function, &how, &words)
        })?;
        let mut left = Left { store, instance };
        wizer.snapshot(&context, &mut left).await.map_err(wrong)
    })
}

/// Whether `function` can be called.
fn check(module: &Module, function: &str) -> Result<(), String> {
    let fits = |ty: &ExternType| match ty {
        ExternType::Func(ty) => ty.params().len() == 0 && ty.results().len() == 0,
        _ => false,
    };
    if module.get_export(function).is_some_and(|ty| fits(&ty)) {
        return Ok(());
    }
    let exports = module.exports().filter(|export| fits(&export.ty()));
    let names: Vec<_> = exports.map(|export| export.name().to_owned()).collect();
    Err(format!(
        "its initialisation (preinit.function) is to be {function:?}, a function without parameters and \
         results, which it does not export; it exports {}",
        match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(", "),
        }
    ))
}

/// How an initialisation has ended, with what it wrote.
fn told(function: &str, how: &str, words: &Words) -> String {
    let said = words.text();
    let said = match said.trim() {
        "" => String::new(),
        said => format!("; it wrote: {said}"),
    };
    format!("its initialisation {function:?} (preinit.function) {how}{said}")
}

/// The view of the world of every initialisation.
fn state(words: &Words) -> wasmtime::Result<State> {
    let mut wasi = WasiCtxBuilder::new();
    wasi.allow_blocking_current_thread(true)
        .preopened_dir("/", "/", FsPerms::ReadOnly)?
        .stdout(words.clone())
        .stderr(words.clone())
        .wall_clock(Ticks::default())
        .monotonic_clock(Ticks::default())
        .secure_random(Deterministic::new(numbers()))
        .insecure_random(Deterministic::new(numbers()))
        .insecure_random_seed(0);
    let settings = Arc::new(Settings::default());
    let common = Common {
        stderr: Output::stderr()?,
        store: keyvalue::stores(&settings.keyvalue, &[])(),
        settings,
    };
    Ok(State::new(
        wasi.build_p1(),
        Default::default(),
        &common,
        &[],
    ))
}

/// 64 KiB that look random and are the same for everybody.
fn numbers() -> Vec<u8> {
    let block = |number: u32| Sha256::digest([&b"random"[..], &number.to_le_bytes()].concat());
    (0..2048).flat_map(block).collect()
}

/// A clock that shows how often it was looked at, in microseconds.
#[derive(Default)]
struct Ticks(AtomicU64);

impl Ticks {
    fn tick(&self) -> Duration {
        Duration::from_micros(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

impl HostWallClock for Ticks {
    fn resolution(&self) -> Duration {
        Duration::from_micros(1)
    }
    fn now(&self) -> Duration {
        self.tick()
    }
}

impl HostMonotonicClock for Ticks {
    fn resolution(&self) -> u64 {
        1000
    }
    fn now(&self) -> u64 {
        self.tick().as_nanos() as u64
    }
}

/// Ends the process when an initialisation has taken its time.
struct Watch(Arc<(Mutex<bool>, Condvar)>);

impl Watch {
    fn over(time: Time, over: impl FnOnce(String) + Send + 'static) -> Self {
        let watch = Self(Arc::default());
        let ended = watch.0.clone();
        let (since, used) = (Instant::now(), processor_time());
        thread::spawn(move || {
            let (ended, changed) = &*ended;
            let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            while !*ended {
                if processor_time().saturating_sub(used) >= time.0 {
                    return over(format!("{time} of processor time (preinit.time)"));
                }
                let patience = time.0 * PATIENCE;
                if since.elapsed() >= patience {
                    return over(format!("{PATIENCE} times {time} (preinit.time)"));
                }
                let step = time.0.min(Duration::from_millis(100));
                let waited = changed.wait_timeout(ended, step);
                (ended, _) = waited.unwrap_or_else(PoisonError::into_inner);
            }
        });
        watch
    }

    fn end(self) {
        let (ended, changed) = &*self.0;
        *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }
}

/// What this process has taken of processors, over all its threads.
fn processor_time() -> Duration {
    let of = |time: TimeVal| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000);
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        of(usage.user_time()) + of(usage.system_time())
    })
}

/// What an instance has become.
struct Left {
    store: Store<State>,
    instance: Instance,
}

impl InstanceState for Left {
    async fn global_get(&mut self, name: &str, _: ValType) -> SnapshotVal {
        let global = self.instance.get_global(&mut self.store, name);
        let global = global.expect("the instrumentation exports it");
        match global.get(&mut self.store) {
            Val::I32(value) => SnapshotVal::I32(value),
            Val::I64(value) => SnapshotVal::I64(value),
            Val::F32(bits) => SnapshotVal::F32(bits),
            Val::F64(bits) => SnapshotVal::F64(bits),
            Val::V128(value) => SnapshotVal::V128(value.as_u128()),
            _ => unreachable!("modules with other globals that change are refused"),
        }
    }

    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        let memory = self.instance.get_memory(&mut self.store, name);
        contents(
            memory
                .expect("the instrumentation exports it")
                .data(&self.store),
        );
    }
}

/// The first of what an initialisation writes; the rest is dropped.
#[derive(Clone, Default)]
struct Words(Arc<Mutex<Vec<u8>>>);

impl Words {
    fn keep(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_WORDS - kept.len();
        kept.extend(&bytes[..bytes.len().min(room)]);
    }

    fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }
}

impl IsTerminal for Words {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Words {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // Of WASI 0.3, which modules do not have.
        Box::new(tokio::io::sink())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Words {
    async fn ready(&mut self) {}
}

impl OutputStream for Words {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.keep(&bytes);
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}
