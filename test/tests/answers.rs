//! What each call answers in each state of a task: the same as containerd's shim for runc, asked
//! directly and through containerd, but where the table says why not.

use anyhow::{Context, Result, bail, ensure};
use containerd_client::{
    services::v1 as grpc,
    tonic::{self, Code},
};
use containerd_shim_protos::{api, ttrpc};
use lighter_test::{
    Container, Containerd, RUNC, Rootfs, Version, WASMTIME, each_containerd,
    shim::{Shim, bundle, deadline},
    spec::RESOURCES_TYPE_URL,
};
use prost_types::Any;

each_containerd!(through_containerd);

/// A shim's name, its runtime's, and the arguments of a container.
type Program = (&'static str, &'static str, &'static [&'static str]);

/// The runtimes by the names of their shims, and the program that each is asked about.
const PROGRAMS: [Program; 3] = [
    ("runc", RUNC, &["/bin/sleep", "1000"]),
    ("wasmtime", WASMTIME, &["/bin/sleep", "1000"]),
    ("wasmtime", WASMTIME, &["/tool.wasm", "sleep", "1000"]),
];

/// The process that a call is about.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    /// The task's init.
    Init,
    /// The added process of this name.
    Exec(&'static str),
    /// One that no task has.
    Stranger,
    /// The init of a task that there is not.
    Nobody,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Create,
    Start(Who),
    State(Who),
    Wait(Who),
    Kill(Who, u32),
    KillAll(u32),
    Delete(Who),
    /// Adds a process with a good description, or with one that makes no sense.
    Exec(Who, &'static str),
    Resize(Who),
    CloseIo(Who),
    Pids(Who),
    Stats(Who),
    Pause(Who),
    Resume(Who),
    Update(Who, &'static str),
    Checkpoint(Who),
    Connect(Who),
    Shutdown,
}

/// How our answer is to be.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// The same code and words.
    Same,
    /// Another code than runc's, for this reason.
    Ours(Code, &'static str),
    /// As [`Rule::Ours`], but containerd gives runc's answer the code.
    OursDirectly(Code, &'static str),
    /// Another success than runc's, for this reason.
    Told(&'static str, &'static str),
}

use Call::*;
use Rule::{Ours, OursDirectly, Same, Told};
use Who::{Init, Nobody, Stranger};

const A: Who = Who::Exec("a");
const PROCESS: &str =
    r#"{"args": ["/bin/sleep", "1000"], "cwd": "/", "user": {"uid": 0, "gid": 0}}"#;
const TERM: u32 = 15;
const KILL: u32 = 9;

const TAKEN: Rule = Ours(
    Code::AlreadyExists,
    "runc says in words only that the id is taken",
);
const NO_SIGNAL: Rule = Ours(
    Code::InvalidArgument,
    "runc says in words only that there is no such signal, and to all processes nothing at all",
);
const NO_PROCESS: Rule = Ours(
    Code::InvalidArgument,
    "runc's shim says in words only that the description cannot be read",
);
const LAST_PID: Rule = Told(
    "1",
    "without a process containerd 1.7 and later take the shim for a left-over one when they start",
);
const UNCODED: Rule = OursDirectly(
    Code::NotFound,
    "the shim for runc forgets the code of this call alone",
);

/// The states in which a task is asked, and the calls, in order.
type Table = &'static [(&'static str, &'static [(Call, Rule)])];

const TABLE: Table = &[
    (
        "unknown ids",
        &[
            (Start(Nobody), Same),
            (State(Nobody), Same),
            (Wait(Nobody), Same),
            (Kill(Nobody, KILL), Same),
            (Delete(Nobody), Same),
            (Exec(Nobody, PROCESS), Same),
            (Resize(Nobody), Same),
            (CloseIo(Nobody), Same),
            (Pids(Nobody), Same),
            (Stats(Nobody), Same),
            (Pause(Nobody), Same),
            (Resume(Nobody), Same),
            (Update(Nobody, "{}"), Same),
            (Checkpoint(Nobody), Same),
            (Connect(Nobody), Same),
            (Start(Stranger), Same),
            (State(Stranger), Same),
            (Wait(Stranger), Same),
            (Kill(Stranger, KILL), Same),
            (Delete(Stranger), Same),
            (Resize(Stranger), Same),
            (CloseIo(Stranger), UNCODED),
        ],
    ),
    (
        "created",
        &[
            (Create, TAKEN),
            (State(Init), Same),
            (Resize(Init), Same),
            (CloseIo(Init), Same),
            (Pids(Init), Same),
            (Stats(Init), Same),
            (Resume(Init), Same),
            (Kill(Init, 250), NO_SIGNAL),
            (Update(Init, "{}"), Same),
            (Connect(Init), Same),
            (Shutdown, Same),
            (Exec(A, "no JSON"), NO_PROCESS),
            (Exec(A, PROCESS), Same),
            (Exec(A, PROCESS), Same),
            (State(A), Same),
            (Kill(A, KILL), Same),
            (Resize(A), Same),
            (CloseIo(A), Same),
            (Delete(A), Same),
            (Delete(A), Same),
            (Pause(Init), Same),
            (State(Init), Same),
        ],
    ),
    (
        "running",
        &[
            (Create, TAKEN),
            (State(Init), Same),
            (Start(Init), Same),
            (Delete(Init), Same),
            (Resize(Init), Same),
            (CloseIo(Init), Same),
            (Resume(Init), Same),
            (Kill(Init, 0), Same),
            (Kill(Init, 250), NO_SIGNAL),
            (KillAll(250), NO_SIGNAL),
            (Exec(A, PROCESS), Same),
            (Exec(A, PROCESS), Same),
            (Start(A), Same),
            (Start(A), Same),
            (State(A), Same),
            (Delete(A), Same),
            (Exec(A, PROCESS), Same),
            (Resize(A), Same),
            (Kill(A, 250), NO_SIGNAL),
            (Kill(A, KILL), Same),
            (Wait(A), Same),
            (Wait(A), Same),
            (State(A), Same),
            (Start(A), Same),
            (Kill(A, KILL), Same),
            (Resize(A), Same),
            (CloseIo(A), Same),
            (Exec(A, PROCESS), Same),
            (Delete(A), Same),
            (State(A), Same),
            (Start(A), Same),
            (Wait(A), Same),
            (Kill(A, KILL), Same),
            (Resize(A), Same),
            (CloseIo(A), UNCODED),
            (Delete(A), Same),
            (Exec(A, PROCESS), Same),
            (Shutdown, Same),
            (Connect(Init), Same),
        ],
    ),
    (
        "paused",
        &[
            (State(Init), Same),
            (Pause(Init), Same),
            (Start(Init), Same),
            (Delete(Init), Same),
            (Create, TAKEN),
            (Exec(A, PROCESS), Same),
            (Pids(Init), Same),
            (Stats(Init), Same),
            (Resize(Init), Same),
            (CloseIo(Init), Same),
            (Kill(Init, 250), NO_SIGNAL),
            (Update(Init, "{}"), Same),
            (Resume(Init), Same),
            (State(Init), Same),
            (Resume(Init), Same),
        ],
    ),
    (
        "stopped",
        &[
            (Create, TAKEN),
            (State(Init), Same),
            (Start(Init), Same),
            (Wait(Init), Same),
            (Kill(Init, TERM), Same),
            (Kill(Init, KILL), Same),
            (Kill(Init, 250), Same),
            (KillAll(KILL), Same),
            (KillAll(TERM), Same),
            (Exec(A, PROCESS), Same),
            (Resize(Init), Same),
            (CloseIo(Init), Same),
            (Pids(Init), LAST_PID),
            (Stats(Init), Same),
            (Pause(Init), Same),
            (Resume(Init), Same),
            (Update(Init, "{}"), Same),
            (Connect(Init), Same),
            (Shutdown, Same),
            (State(Init), Same),
        ],
    ),
    (
        "deleted",
        &[
            (State(Init), Same),
            (Start(Init), Same),
            (Wait(Init), Same),
            (Kill(Init, KILL), Same),
            (Delete(Init), Same),
            (Exec(A, PROCESS), Same),
            (Resize(Init), Same),
            (CloseIo(Init), Same),
            (Pids(Init), Same),
            (Stats(Init), Same),
            (Pause(Init), Same),
            (Resume(Init), Same),
            (Update(Init, "{}"), Same),
            (Checkpoint(Init), Same),
            (Connect(Init), Same),
        ],
    ),
];

/// Calls that a client of containerd cannot make, or that never reach the shim.
fn only_direct(call: Call) -> bool {
    matches!(call, Connect(_) | Shutdown | Checkpoint(_) | Create)
}

/// A code, and the words with it.
type Answer = (Code, String);

/// Who is asked: a shim, or containerd about a task.
trait Door {
    fn id(&self) -> &str;
    fn ask(&self, call: Call) -> Result<String, Answer>;

    fn ids(&self, who: Who) -> (String, String) {
        let exec = |id: &str| (self.id().to_owned(), id.to_owned());
        match who {
            Init => exec(""),
            Who::Exec(id) => exec(id),
            Stranger => exec("stranger"),
            Nobody => ("nobody".to_owned(), String::new()),
        }
    }
}

struct Direct<'a>(&'a Shim<'a>);

macro_rules! ours {
    ($message:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        #[allow(unused_mut)]
        let mut request = api::$message::new();
        $(request.$field = $value;)*
        request
    }};
}

fn any(
    type_url: &str,
    value: &str,
) -> containerd_shim_protos::protobuf::well_known_types::any::Any {
    containerd_shim_protos::protobuf::well_known_types::any::Any {
        type_url: type_url.to_owned(),
        value: value.as_bytes().to_vec(),
        ..Default::default()
    }
}

const PROCESS_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

fn ok<T>(_: T) -> String {
    String::new()
}

impl Door for Direct<'_> {
    fn id(&self) -> &str {
        self.0.id()
    }

    fn ask(&self, call: Call) -> Result<String, Answer> {
        let (tasks, time) = (self.0.tasks(), deadline);
        let answer = match call {
            Create => self.0.create().map(ok),
            Start(who) => {
                let (id, exec_id) = self.ids(who);
                tasks
                    .start(
                        time(),
                        &ours!(StartRequest {
                            id: id,
                            exec_id: exec_id
                        }),
                    )
                    .map(ok)
            }
            State(who) => {
                let (id, exec_id) = self.ids(who);
                tasks
                    .state(
                        time(),
                        &ours!(StateRequest {
                            id: id,
                            exec_id: exec_id
                        }),
                    )
                    .map(|state| {
                        // The time zero of Go is long before 1970.
                        let exited = state.exited_at.seconds > 0;
                        format!("{:?} {} {exited}", state.status, state.exit_status)
                    })
            }
            Wait(who) => {
                let (id, exec_id) = self.ids(who);
                tasks
                    .wait(
                        time(),
                        &ours!(WaitRequest {
                            id: id,
                            exec_id: exec_id
                        }),
                    )
                    .map(|exit| exit.exit_status.to_string())
            }
            Kill(who, signal) => {
                let (id, exec_id) = self.ids(who);
                tasks
                    .kill(
                        time(),
                        &ours!(KillRequest {
                            id: id,
                            exec_id: exec_id,
                            signal: signal
                        }),
                    )
                    .map(ok)
            }
            KillAll(signal) => {
                let (id, _) = self.ids(Init);
                tasks
                    .kill(
                        time(),
                        &ours!(KillRequest {
                            id: id,
                            signal: signal,
                            all: true
                        }),
                    )
                    .map(ok)
            }
            Delete(who) => {
                let (id, exec_id) = self.ids(who);
                tasks
                    .delete(
                        time(),
                        &ours!(DeleteRequest {
                            id: id,
                            exec_id: exec_id
                        }),
                    )
                    .map(|exit| exit.exit_status.to_string())
            }
            Exec(who, process) => {
                let (id, exec_id) = self.ids(who);
                let spec = Some(any(PROCESS_TYPE_URL, process)).into();
                let request = ours!(ExecProcessRequest {
                    id: id,
                    exec_id: exec_id,
                    spec: spec
                });
                tasks.exec(time(), &request).map(ok)
            }
            Resize(who) => {
                let (id, exec_id) = self.ids(who);
                let request = ours!(ResizePtyRequest {
                    id: id,
                    exec_id: exec_id,
                    width: 80,
                    height: 24
                });
                tasks.resize_pty(time(), &request).map(ok)
            }
            CloseIo(who) => {
                let (id, exec_id) = self.ids(who);
                let request = ours!(CloseIORequest {
                    id: id,
                    exec_id: exec_id,
                    stdin: true
                });
                tasks.close_io(time(), &request).map(ok)
            }
            Pids(who) => {
                let request = ours!(PidsRequest {
                    id: self.ids(who).0
                });
                tasks
                    .pids(time(), &request)
                    .map(|pids| pids.processes.len().to_string())
            }
            Stats(who) => tasks
                .stats(
                    time(),
                    &ours!(StatsRequest {
                        id: self.ids(who).0
                    }),
                )
                .map(ok),
            Pause(who) => tasks
                .pause(
                    time(),
                    &ours!(PauseRequest {
                        id: self.ids(who).0
                    }),
                )
                .map(ok),
            Resume(who) => tasks
                .resume(
                    time(),
                    &ours!(ResumeRequest {
                        id: self.ids(who).0
                    }),
                )
                .map(ok),
            Update(who, resources) => {
                let resources = Some(any(RESOURCES_TYPE_URL, resources)).into();
                let request = ours!(UpdateTaskRequest {
                    id: self.ids(who).0,
                    resources: resources
                });
                tasks.update(time(), &request).map(ok)
            }
            Checkpoint(who) => {
                let path = "/nowhere".to_owned();
                let request = ours!(CheckpointTaskRequest {
                    id: self.ids(who).0,
                    path: path
                });
                tasks.checkpoint(time(), &request).map(ok)
            }
            Connect(who) => tasks
                .connect(
                    time(),
                    &ours!(ConnectRequest {
                        id: self.ids(who).0
                    }),
                )
                .map(|connected| (connected.task_pid > 0).to_string()),
            Shutdown => tasks
                .shutdown(
                    time(),
                    &ours!(ShutdownRequest {
                        id: self.ids(Init).0
                    }),
                )
                .map(ok),
        };
        answer.map_err(|error| match error {
            ttrpc::Error::RpcStatus(status) => {
                let code = Code::from_i32(status.code.value());
                (code, status.message().to_owned())
            }
            other => (Code::Aborted, format!("no answer: {other}")),
        })
    }
}

struct Through<'a>(&'a Container<'a>);

impl Door for Through<'_> {
    fn id(&self) -> &str {
        self.0.id()
    }

    fn ask(&self, call: Call) -> Result<String, Answer> {
        let engine = self.0.engine();
        let mut tasks = engine.client().tasks();
        macro_rules! send {
            ($method:ident, $message:ident { $($field:ident: $value:expr),* $(,)? }) => {{
                #[allow(
                    clippy::needless_update,
                    reason = "some messages have further fields, others have none"
                )]
                let request = engine.request(grpc::$message {
                    $($field: $value,)*
                    ..Default::default()
                });
                lighter_test::call(tasks.$method(request)).map(tonic::Response::into_inner)
            }};
        }
        let answer = match call {
            Start(who) => {
                let (container_id, exec_id) = self.ids(who);
                send!(
                    start,
                    StartRequest {
                        container_id: container_id,
                        exec_id: exec_id
                    }
                )
                .map(ok)
            }
            State(who) => {
                let (container_id, exec_id) = self.ids(who);
                send!(
                    get,
                    GetRequest {
                        container_id: container_id,
                        exec_id: exec_id
                    }
                )
                .map(|answer| {
                    let state = answer.process.unwrap_or_default();
                    let exited = state.exited_at.as_ref().is_some_and(|at| at.seconds > 0);
                    format!("{:?} {} {exited}", state.status(), state.exit_status)
                })
            }
            Wait(who) => {
                let (container_id, exec_id) = self.ids(who);
                send!(
                    wait,
                    WaitRequest {
                        container_id: container_id,
                        exec_id: exec_id
                    }
                )
                .map(|exit| exit.exit_status.to_string())
            }
            Kill(who, signal) => {
                let (container_id, exec_id) = self.ids(who);
                send!(
                    kill,
                    KillRequest {
                        container_id: container_id,
                        exec_id: exec_id,
                        signal: signal,
                    }
                )
                .map(ok)
            }
            KillAll(signal) => {
                let (container_id, _) = self.ids(Init);
                send!(
                    kill,
                    KillRequest {
                        container_id: container_id,
                        signal: signal,
                        all: true
                    }
                )
                .map(ok)
            }
            Delete(who) => {
                let (container_id, exec_id) = self.ids(who);
                if exec_id.is_empty() {
                    send!(
                        delete,
                        DeleteTaskRequest {
                            container_id: container_id
                        }
                    )
                    .map(|exit| exit.exit_status.to_string())
                } else {
                    send!(
                        delete_process,
                        DeleteProcessRequest {
                            container_id: container_id,
                            exec_id: exec_id,
                        }
                    )
                    .map(|exit| exit.exit_status.to_string())
                }
            }
            Exec(who, process) => {
                let (container_id, exec_id) = self.ids(who);
                send!(
                    exec,
                    ExecProcessRequest {
                        container_id: container_id,
                        exec_id: exec_id,
                        spec: Some(Any {
                            type_url: PROCESS_TYPE_URL.to_owned(),
                            value: process.as_bytes().to_vec(),
                        }),
                    }
                )
                .map(ok)
            }
            Resize(who) => {
                let (container_id, exec_id) = self.ids(who);
                send!(
                    resize_pty,
                    ResizePtyRequest {
                        container_id: container_id,
                        exec_id: exec_id,
                        width: 80,
                        height: 24,
                    }
                )
                .map(ok)
            }
            CloseIo(who) => {
                let (container_id, exec_id) = self.ids(who);
                send!(
                    close_io,
                    CloseIoRequest {
                        container_id: container_id,
                        exec_id: exec_id,
                        stdin: true,
                    }
                )
                .map(ok)
            }
            Pids(who) => send!(
                list_pids,
                ListPidsRequest {
                    container_id: self.ids(who).0
                }
            )
            .map(|pids| pids.processes.len().to_string()),
            Stats(who) => {
                let filters = vec![format!("id=={}", self.ids(who).0)];
                send!(metrics, MetricsRequest { filters: filters })
                    .map(|metrics| metrics.metrics.len().to_string())
            }
            Pause(who) => send!(
                pause,
                PauseTaskRequest {
                    container_id: self.ids(who).0
                }
            )
            .map(ok),
            Resume(who) => send!(
                resume,
                ResumeTaskRequest {
                    container_id: self.ids(who).0
                }
            )
            .map(ok),
            Update(who, resources) => send!(
                update,
                UpdateTaskRequest {
                    container_id: self.ids(who).0,
                    resources: Some(Any {
                        type_url: RESOURCES_TYPE_URL.to_owned(),
                        value: resources.as_bytes().to_vec(),
                    }),
                }
            )
            .map(ok),
            Create | Checkpoint(_) | Connect(_) | Shutdown => unreachable!("only direct"),
        };
        answer.map_err(|status| (status.code(), status.message().to_owned()))
    }
}

/// Brings the task into a state.
fn bring(door: &dyn Door, state: &str) -> Result<()> {
    let calls: &[Call] = match state {
        "created" => &[],
        "running" | "unknown ids" => &[Start(Init)],
        "paused" => &[Start(Init), Pause(Init)],
        "stopped" => &[Start(Init), Kill(Init, KILL), Wait(Init)],
        "deleted" => &[Start(Init), Kill(Init, KILL), Wait(Init), Delete(Init)],
        other => bail!("there is no state {other:?}"),
    };
    for call in calls {
        door.ask(*call)
            .map_err(|(code, words)| anyhow::anyhow!("{call:?}: {code:?} {words}"))?;
    }
    Ok(())
}

/// The answers to the calls of a row of the table, the task's id replaced.
fn answers(
    door: &dyn Door,
    state: &str,
    calls: &[(Call, Rule)],
    direct: bool,
) -> Result<Vec<Result<String, Answer>>> {
    bring(door, state).with_context(|| format!("to become {state}"))?;
    Ok(calls
        .iter()
        .filter(|(call, _)| direct || !only_direct(*call))
        .map(|(call, _)| {
            door.ask(*call)
                .map_err(|(code, words)| (code, words.replace(door.id(), "ID")))
        })
        .collect())
}

/// What is wrong with our answers.
fn compare(
    calls: &[(Call, Rule)],
    direct: bool,
    ours: &[Result<String, Answer>],
    theirs: &[Result<String, Answer>],
) -> Vec<String> {
    let calls = calls
        .iter()
        .filter(|(call, _)| direct || !only_direct(*call));
    let mut wrong = Vec::new();
    for (((call, rule), ours), theirs) in calls.zip(ours).zip(theirs) {
        let right = match (rule, ours, theirs) {
            (Same, ours, theirs) => ours == theirs,
            (OursDirectly(..), ours, theirs) if !direct => ours == theirs,
            (Told(answer, _), Ok(ours), Ok(theirs)) => ours == answer && ours != theirs,
            // Once theirs is the same, the difference is to go.
            (Ours(code, _) | OursDirectly(code, _), Err((ours, _)), theirs) => {
                ours == code
                    && theirs
                        .as_ref()
                        .err()
                        .is_none_or(|(theirs, _)| theirs != code)
            }
            _ => false,
        };
        let why = match rule {
            Same => "",
            Ours(_, why) | OursDirectly(_, why) | Told(_, why) => why,
        };
        if !right {
            wrong.push(format!(
                "{call:?}: {why}\n  ours   {ours:?}\n  theirs {theirs:?}"
            ));
        }
    }
    wrong
}

fn check(
    direct: bool,
    ask: impl Fn(&str, &[(Call, Rule)], Program) -> Result<Vec<Result<String, Answer>>>,
) -> Result<()> {
    let [runc, ours @ ..] = PROGRAMS;
    let mut wrong = Vec::new();
    for (state, calls) in TABLE {
        let theirs = ask(state, calls, runc)?;
        for program in ours {
            let ours = ask(state, calls, program)?;
            let lines = compare(calls, direct, &ours, &theirs);
            let lines = lines.into_iter();
            wrong.extend(lines.map(|line| format!("{state}, {:?}: {line}", program.2)));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The shims themselves, without containerd before them.
#[test]
fn direct() -> Result<()> {
    lighter_test::ensure_root()?;
    let engine = Containerd::shared(Version::V2_1)?;
    check(true, |state, calls, program| {
        let (shim, _, args) = program;
        let id = engine.new_id("answers");
        let bundle = bundle(&engine, &id, args)?;
        let shim = Shim::start(&engine, shim, &id, bundle.path())?;
        shim.create().context("create")?;
        answers(&Direct(&shim), state, calls, true)
    })
}

fn through_containerd(engine: &Containerd) -> Result<()> {
    check(false, |state, calls, program| {
        let (_, runtime, args) = program;
        let container = engine
            .container(&Rootfs::guests()?)
            .runtime(runtime)
            .args(args)
            .create()?;
        answers(&Through(&container), state, calls, false)
    })
}
