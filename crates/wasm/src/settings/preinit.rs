//! What of a module is run once, when it is compiled.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::Time;

/// A module's initialisation, whose memory is kept with its native code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preinit {
    /// The exported function to run; without one nothing is run.
    pub function: Option<String>,
    /// Files and folders of the container that it may read.
    pub files: Vec<String>,
    /// How much processor time it may take.
    pub time: Time,
}

impl Default for Preinit {
    fn default() -> Self {
        Self {
            function: None,
            files: Vec::new(),
            time: Time::seconds(60),
        }
    }
}

impl Preinit {
    /// Whether these make sense.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.function.as_deref() == Some("") {
            return Err("it must be a name".into());
        }
        match self.files.iter().find(|path| !is_plain(path)) {
            Some(path) => Err(format!(
                "{path:?} is no absolute path of a file or folder below the root, without \"..\""
            )),
            None => Ok(()),
        }
    }
}

/// Whether `path` leads from the root downwards, as it stands.
fn is_plain(path: &str) -> bool {
    let mut components = Path::new(path).components();
    components.next() == Some(Component::RootDir)
        && components.clone().next().is_some()
        && components.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_downwards() {
        let check = |path: &str| {
            let files = vec![path.to_owned()];
            let preinit = Preinit {
                files,
                ..Preinit::default()
            };
            preinit.check()
        };
        for path in ["/lib", "/usr/lib/python.zip", "/usr//lib/"] {
            assert_eq!(check(path), Ok(()));
        }
        for path in ["", "/", "lib", "/lib/../etc", "./lib"] {
            let reason = check(path).unwrap_err();
            assert!(reason.contains(&format!("{path:?}")), "{reason}");
        }
    }
}
