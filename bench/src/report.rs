//! The figures as people and programs read them.

use std::fmt::{self, Display, Formatter};
use std::thread;

use anyhow::Result;
use lighter_test::{Version, run};
use serde::Serialize;

use crate::figures::Figures;
use crate::first::First;
use crate::http::{CONNECTIONS, Served};
use crate::life::{Lives, PHASES, TOGETHER};
use crate::memory::Idle;
use crate::promise::{self, Promise};
use crate::python::Starts;
use crate::wasmtime::Wasmtime;

/// Everything that was measured.
#[derive(Serialize)]
pub struct Report {
    /// On what, one fact a line.
    pub machine: Vec<String>,
    /// Lives one at a time.
    pub alone: Vec<Lives>,
    /// Lives [`TOGETHER`] at a time.
    pub together: Vec<Lives>,
    /// First bytes of output.
    pub first: Vec<First>,
    /// Idle containers.
    pub idle: Vec<Idle>,
    /// Servers of requests over HTTP.
    pub http: Vec<Served>,
    /// Starts of CPython.
    pub python: Vec<Starts>,
    /// The guarantees.
    pub promises: Vec<Promise>,
}

/// What the figures depend on.
///
/// # Errors
/// An engine that is missing or does not tell its version.
pub fn machine(wasmtime: &Wasmtime) -> Result<Vec<String>> {
    let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
    let containerd = Version::V2_1.programs()?.join("containerd");
    let cores = thread::available_parallelism()?;
    let cgroups = match std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => "v2",
        false => "v1",
    };
    Ok(vec![
        format!("{cores} cores, cgroup {cgroups}"),
        format!("Linux {}", first(run("uname", &["-r"])?)),
        first(run(&containerd.display().to_string(), &["--version"])?),
        first(run("runc", &["--version"])?),
        first(run(
            &wasmtime.program().display().to_string(),
            &["--version"],
        )?),
    ])
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "measured on: {}", self.machine.join("; "))?;
        lives(f, "one at a time", &self.alone)?;
        lives(f, &format!("{TOGETHER} at a time"), &self.together)?;
        first(f, &self.first)?;
        idle(f, &self.idle)?;
        http(f, &self.http)?;
        python(f, &self.python)?;
        writeln!(
            f,
            "\nguarantees (SPECIFICATION.md), as shares of the model's"
        )?;
        for promise in &self.promises {
            write!(f, "{promise}")?;
        }
        Ok(())
    }
}

/// A table of lives: a row of medians for each kind, below it the spread and the 99th percentile.
fn lives(f: &mut Formatter<'_>, how: &str, lives: &[Lives]) -> fmt::Result {
    let count = lives.first().map_or(0, |lives| lives.turns.len());
    writeln!(f, "\nlife of a container, {how} ({count} turns), in ms")?;
    write!(f, "  {:24}", "")?;
    for phase in PHASES {
        write!(f, "{phase:>14}")?;
    }
    writeln!(f, "{:>14}{:>10}", "containers/s", "ratio")?;
    for of in lives {
        let ratio = promise::life(lives, &of.kind).map_err(|_| fmt::Error)?;
        write!(f, "  {:14}{:10}", of.kind, "median")?;
        for figures in &of.phases {
            write!(f, "{:>14.1}", figures.median)?;
        }
        writeln!(f, "{:>14.1}{ratio:>10.3}", of.rate)?;
        write!(f, "  {:14}{:10}", "", "spread")?;
        for figures in &of.phases {
            let spread = format!("{:.1}-{:.1}", figures.quarter, figures.three_quarters);
            write!(f, "{spread:>14}")?;
        }
        write!(f, "\n  {:14}{:10}", "", "p99")?;
        for figures in &of.phases {
            write!(f, "{:>14.1}", figures.p99)?;
        }
        writeln!(f)?;
    }
    Ok(())
}

fn first(f: &mut Formatter<'_>, first: &[First]) -> fmt::Result {
    let count = first.first().map_or(0, |first| first.times.len());
    writeln!(
        f,
        "\nfrom the start call to the first byte of output ({count} turns), in ms"
    )?;
    writeln!(
        f,
        "  {:20}{:>10}{:>14}{:>10}{:>10}",
        "", "median", "spread", "p99", "ratio"
    )?;
    for of in first {
        let ratio = promise::first(first, &of.kind).map_err(|_| fmt::Error)?;
        let figures = Figures::of(of.times.clone());
        let spread = format!("{:.1}-{:.1}", figures.quarter, figures.three_quarters);
        writeln!(
            f,
            "  {:20}{:>10.1}{spread:>14}{:>10.1}{ratio:>10.3}",
            of.kind, figures.median, figures.p99
        )?;
    }
    Ok(())
}

fn idle(f: &mut Formatter<'_>, idle: &[Idle]) -> fmt::Result {
    writeln!(f, "\none of so many idle containers, memory in kB")?;
    let columns = ["held", "PSS", "private", "processes", "threads", "ratio"];
    write!(f, "  {:16}", "")?;
    for column in columns {
        write!(f, "{column:>11}")?;
    }
    writeln!(f, "   PSS by process")?;
    for of in idle {
        let ratio = promise::memory(idle, &of.kind).map_err(|_| fmt::Error)?;
        let parts: Vec<String> = of
            .parts
            .iter()
            .map(|(name, pss)| format!("{name} {pss:.0}"))
            .collect();
        writeln!(
            f,
            "  {:16}{:>11}{:>11.0}{:>11.0}{:>11.1}{:>11.1}{ratio:>11.3}   {}",
            of.kind,
            of.containers,
            of.pss,
            of.private,
            of.processes,
            of.threads,
            parts.join(", ")
        )?;
    }
    Ok(())
}

/// A table of servers: how they answer, a row for each number of connections, and what they take.
fn http(f: &mut Formatter<'_>, all: &[Served]) -> fmt::Result {
    writeln!(f, "\nrequests over HTTP, a component that says hello")?;
    let columns = ["connections", "requests/s", "ratio", "p50 ms", "p99 ms"];
    write!(f, "  {:16}", "")?;
    for column in columns {
        write!(f, "{column:>13}")?;
    }
    writeln!(f)?;
    for of in all {
        for (at, connections) in CONNECTIONS.iter().enumerate() {
            let ratio = promise::served(all, of.kind, at, |load| load.rate());
            let median = |figure: fn(&_) -> f64| of.figures(at, figure).median;
            writeln!(
                f,
                "  {:16}{connections:>13}{:>13.0}{:>13.2}{:>13.2}{:>13.2}",
                if at == 0 { of.kind } else { "" },
                median(|load| load.rate()),
                ratio.map_err(|_| fmt::Error)?,
                median(|load| load.p50),
                median(|load| load.p99),
            )?;
        }
        writeln!(
            f,
            "  {:16}first answer after {:.1} ms; {:.0} kB amid {} connections",
            "",
            Figures::of(of.starts.clone()).median,
            Figures::of(of.memory.clone()).median,
            CONNECTIONS[CONNECTIONS.len() - 1],
        )?;
    }
    Ok(())
}

fn python(f: &mut Formatter<'_>, starts: &[Starts]) -> fmt::Result {
    writeln!(f, "\nCPython prints a line and ends, in ms")?;
    let columns = ["compiled", "again", "start to line"];
    write!(f, "  {:16}", "")?;
    for column in columns {
        write!(f, "{column:>14}")?;
    }
    writeln!(f)?;
    for of in starts {
        let again = Figures::of(of.again.clone()).median;
        write!(f, "  {:16}{:>14.0}{again:>14.1}", of.kind, of.first)?;
        if !of.printed.is_empty() {
            let printed = Figures::of(of.printed.clone()).median;
            write!(f, "{printed:>14.1}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}
