//! A process's environment.

use std::collections::HashSet;

use oci_spec::runtime::Process;

/// Leaves of each variable of `process` the last that is given, as runc does: of several, programs take the first.
///
/// # Errors
/// Which is no variable.
pub(crate) fn settle(process: &mut Process) -> Result<(), String> {
    let Some(env) = process.env() else {
        return Ok(());
    };
    for entry in env {
        if entry.starts_with('=') {
            return Err(format!("the environment variable {entry:?} has no name"));
        }
        if entry.contains('\0') {
            return Err(format!(
                "the environment variable {entry:?} has a NUL in it"
            ));
        }
    }
    let mut names = HashSet::new();
    let mut settled: Vec<&String> = env.iter().rev().collect();
    settled.retain(|entry| {
        // Without a value it is no variable.
        let name = entry.split_once('=').map(|(name, _)| name);
        name.is_none_or(|name| names.insert(name))
    });
    if settled.len() < env.len() {
        let settled = settled.into_iter().rev().cloned().collect();
        process.set_env(Some(settled));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_each_stays() {
        let settled = |env: &[&str]| {
            let mut process = Process::default();
            process.set_env(Some(env.iter().map(ToString::to_string).collect()));
            settle(&mut process).map(|()| process.env().clone().unwrap())
        };
        let env = ["A=1", "PATH=/x", "A", "B=", "A=2=3", "PATH=/y", "A"];
        let left = ["A", "B=", "A=2=3", "PATH=/y", "A"];
        assert_eq!(settled(&env).unwrap(), left);
        assert_eq!(settled(&["B=1", "A=1"]).unwrap(), ["B=1", "A=1"]);
        for wrong in ["=x", "A=x\0y"] {
            let refused = settled(&["B=1", wrong]).unwrap_err();
            assert!(refused.contains(&format!("{wrong:?}")), "{refused}");
        }
    }
}
