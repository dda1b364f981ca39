//! `lighter cache` as a user types it. What it does with images is tried under
//! containerd, in test/tests/cache.rs.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime},
};

/// A cache's folder, and a few modules to fill it with.
struct Workshop(tempfile::TempDir);

impl Workshop {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for number in 1..=3 {
            let module = wat::parse_str(format!(
                r#"(module (func (export "_start")) (func (result i32) i32.const {number}))"#
            ));
            let path = folder.path().join(format!("{number}.wasm"));
            fs::write(path, module.unwrap()).unwrap();
        }
        Self(folder)
    }

    /// `lighter cache COMMAND --cache-dir ... ARGS` in the folder of the modules.
    fn run(&self, command: &str, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lighter"))
            .current_dir(&self.0)
            .args(["cache", command, "--cache-dir", "cache"])
            .args(args)
            .output()
            .unwrap()
    }

    fn done(&self, command: &str, args: &[&str]) -> String {
        let output = self.run(command, args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, command: &str, args: &[&str]) -> String {
        let output = self.run(command, args);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    /// The lines of `ls` but the first.
    fn listed(&self) -> Vec<String> {
        let text = self.done("ls", &["--no-trunc"]);
        text.lines().skip(1).map(str::to_owned).collect()
    }

    /// The digest of a module.
    fn digest(&self, name: &str) -> String {
        let lines = self.listed();
        let line = lines.iter().find(|line| line.ends_with(name));
        line.expect(name).split(' ').next().unwrap().to_owned()
    }

    /// The native code of a module.
    fn artifact(&self, name: &str) -> PathBuf {
        let digest = self.digest(name);
        let engines = fs::read_dir(self.folder()).unwrap();
        let paths = engines.map(|engine| engine.unwrap().path().join(&digest));
        paths.into_iter().find(|path| path.exists()).expect(name)
    }
}

fn make_old(path: &Path, hours: u32) {
    let age = hours * Duration::from_secs(3600);
    let file = fs::File::open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

#[test]
fn files_are_compiled_once_and_listed() {
    let workshop = Workshop::new();
    assert_eq!(workshop.listed(), [""; 0], "no cache is an empty one");
    let printed = workshop.done("warm", &["1.wasm", "2.wasm", "1.wasm"]);
    assert_eq!(printed.matches("compiled in").count(), 2, "{printed}");
    assert!(printed.contains("1.wasm: is there already"), "{printed}");
    make_old(&workshop.artifact("1.wasm"), 50);
    make_old(&workshop.artifact("2.wasm"), 5);
    let listed = workshop.listed();
    assert_eq!(listed.len(), 2, "{listed:?}");
    for (line, parts) in listed.iter().zip([
        ["module", "KiB", "5 h ago", "this", "2.wasm"],
        ["module", "KiB", "2 d ago", "this", "1.wasm"],
    ]) {
        for part in parts {
            assert!(line.contains(part), "{part} is missing in {line}");
        }
    }
    let short = workshop.done("ls", &[]);
    assert!(!short.contains(&workshop.digest("1.wasm")));
    assert!(short.contains(&workshop.digest("1.wasm")[..12]), "{short}");
    let stat = workshop.done("stat", &[]);
    assert!(stat.contains("entries         2\n"), "{stat}");
    assert!(stat.contains("default limit   10 GiB\n"), "{stat}");
}

#[test]
fn a_digest_or_a_part_that_is_clear_is_removed() {
    let workshop = Workshop::new();
    workshop.done("warm", &["1.wasm", "2.wasm", "3.wasm"]);
    let [one, two] = ["1.wasm", "2.wasm"].map(|name| workshop.digest(name));
    let error = workshop.refused("rm", &[&one, "f00"]);
    assert!(error.contains("begins with f00"), "{error}");
    for text in ["", "sha256:", "sha256:*", "hello"] {
        let error = workshop.refused("rm", &[text]);
        assert!(error.contains("not the beginning of a digest"), "{error}");
    }
    assert_eq!(workshop.listed().len(), 3, "nothing was removed");
    let printed = workshop.done("rm", &[&one[..10], &format!("sha256:{two}")]);
    assert!(
        printed.contains(&one) && printed.contains(&two),
        "{printed}"
    );
    let listed = workshop.listed();
    assert!(
        matches!(&listed[..], [line] if line.ends_with("3.wasm")),
        "{listed:?}"
    );
}

/// Whoever reads may have had enough: all is done all the same, without a word.
#[test]
fn a_reader_that_has_gone_is_no_trouble() {
    let workshop = Workshop::new();
    workshop.done("warm", &["1.wasm", "2.wasm", "3.wasm"]);
    let digests = [workshop.digest("1.wasm"), workshop.digest("2.wasm")];
    let digests = digests.each_ref().map(String::as_str);
    for (command, args) in [("ls", &[][..]), ("rm", &digests), ("stat", &[])] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_lighter"))
            .current_dir(&workshop.0)
            .args(["cache", command, "--cache-dir", "cache"])
            .args(args)
            .stdout(writer)
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        assert!(output.stderr.is_empty(), "{command}: {output:?}");
    }
    assert_eq!(workshop.listed().len(), 1);
}

/// Who cannot be told anything is no reason to do less.
#[test]
fn nobody_at_standard_error_is_no_trouble() {
    let workshop = Workshop::new();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full");
    let gone = std::io::pipe().unwrap().1;
    let run = |args: &[&str], stderr: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lighter"));
        let place = ["cache", "warm", "--cache-dir", "cache"];
        let command = command.current_dir(&workshop.0).args(place).args(args);
        command.stderr(stderr).output().unwrap().status.code()
    };
    let code = run(&["1.wasm", "2.wasm"], full().unwrap().into());
    assert_eq!(code, Some(0));
    assert_eq!(run(&["3.wasm"], gone.into()), Some(0));
    assert_eq!(workshop.listed().len(), 3);
    fs::write(workshop.0.path().join("bad.wasm"), "no wasm").unwrap();
    assert_eq!(run(&["bad.wasm"], full().unwrap().into()), Some(1));
    assert_eq!(run(&[], full().unwrap().into()), Some(2));
}

/// All is done, and the exit code tells that not all was told.
#[test]
fn lost_output_is_a_failure() {
    let workshop = Workshop::new();
    workshop.done("warm", &["1.wasm"]);
    for args in [
        &["cache", "ls", "--cache-dir", "cache"][..],
        &["cache", "prune", "--all", "--cache-dir", "cache"],
        &["--version"],
        &["--help"],
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full");
        let output = Command::new(env!("CARGO_BIN_EXE_lighter"))
            .current_dir(&workshop.0)
            .args(args)
            .stdout(full.unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("No space left on device"), "{error}");
    }
    assert_eq!(workshop.listed(), [""; 0]);
}

/// A folder that is not the cache's, in the layout of systemd's journal.
#[test]
fn folders_of_others_are_left_alone() {
    let workshop = Workshop::new();
    let journal = workshop.folder().join("0123456789abcdef".repeat(2));
    fs::create_dir_all(&journal).unwrap();
    let file = journal.join("system.journal");
    fs::write(&file, "journal").unwrap();
    let mode = |mode| fs::set_permissions(workshop.folder(), fs::Permissions::from_mode(mode));
    mode(0o755).unwrap();
    for (command, args) in [
        ("ls", &[][..]),
        ("stat", &[]),
        ("rm", &["0"]),
        ("prune", &[]),
        ("prune", &["--all"]),
        ("warm", &["1.wasm"]),
    ] {
        let error = workshop.refused(command, args);
        assert!(error.contains("mode 755"), "{command}: {error}");
    }
    let left = fs::read_dir(workshop.folder()).unwrap();
    assert_eq!(left.count(), 1, "nothing was made");
    mode(0o700).unwrap();
    workshop.done("prune", &["--all"]);
    assert_eq!(fs::read(&file).unwrap(), b"journal");
}

#[test]
fn pruning_begins_with_other_versions_and_what_was_not_used_for_longest() {
    let workshop = Workshop::new();
    workshop.done("warm", &["1.wasm", "2.wasm", "3.wasm"]);
    for (name, hours) in [("1.wasm", 2), ("2.wasm", 9), ("3.wasm", 4)] {
        make_old(&workshop.artifact(name), hours);
    }
    let artifact = workshop.artifact("1.wasm");
    let other = workshop.folder().join("0".repeat(32));
    fs::create_dir(&other).unwrap();
    fs::copy(&artifact, other.join(artifact.file_name().unwrap())).unwrap();
    assert!(workshop.done("stat", &[]).contains("entries         4\n"));
    assert_eq!(
        workshop
            .listed()
            .iter()
            .filter(|line| line.contains(" other "))
            .count(),
        1
    );

    workshop.done("prune", &[]);
    assert!(!other.exists());
    assert_eq!(workshop.listed().len(), 3);
    let size = fs::metadata(&artifact).unwrap().len();
    let printed = workshop.done("prune", &["--max-size", &(2 * size + size / 2).to_string()]);
    assert!(printed.contains("freed"), "{printed}");
    let listed = workshop.listed();
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(
        !listed.iter().any(|line| line.ends_with("2.wasm")),
        "{listed:?}"
    );
    workshop.done("prune", &["--all"]);
    assert_eq!(workshop.listed(), [""; 0]);
    assert!(
        workshop
            .refused("prune", &["--max-size", "much"])
            .contains("much")
    );
}

/// Code that is compiled with settings of its own is this version's, and goes like any other.
#[test]
fn settings_make_no_other_version() {
    let workshop = Workshop::new();
    workshop.done("warm", &["1.wasm"]);
    let flags = serde_json::from_str(r#"{"fuel": true}"#).unwrap();
    let cache = wasm::Cache::open(workshop.folder(), env!("CARGO_BIN_EXE_lighter"), flags).unwrap();
    let module = fs::File::open(workshop.0.path().join("1.wasm")).unwrap();
    let compile = |mut command: Command| command.status();
    cache.artifact(&module, "with fuel", &compile).unwrap();
    let kept = || {
        let lines = workshop.listed();
        assert!(
            lines.iter().all(|line| line.contains(" this ")),
            "{lines:?}"
        );
        lines.len()
    };
    assert_eq!(kept(), 2);
    let stat = workshop.done("stat", &[]);
    assert!(stat.contains("other versions  0 B in 0\n"), "{stat}");
    workshop.done("prune", &[]);
    assert_eq!(kept(), 2);
    workshop.done("rm", &[&workshop.digest("1.wasm")]);
    assert_eq!(kept(), 0, "a module's code goes, however it was compiled");
    cache.artifact(&module, "with fuel", &compile).unwrap();
    workshop.done("prune", &["--all"]);
    assert_eq!(kept(), 0);
    let folders = fs::read_dir(workshop.folder()).unwrap().flatten();
    let folders = folders.filter(|entry| entry.path().is_dir());
    assert_eq!(folders.count(), 0, "no folder without code stays");
}

#[test]
fn one_bad_module_keeps_no_other_from_being_compiled() {
    let workshop = Workshop::new();
    fs::write(workshop.0.path().join("bad.wasm"), "no wasm").unwrap();
    let error = workshop.refused("warm", &["bad.wasm", "1.wasm"]);
    assert!(error.contains("bad.wasm cannot run"), "{error}");
    assert_eq!(workshop.listed().len(), 1);
    let error = workshop.refused("warm", &["--address", "/nowhere.sock", "hello"]);
    assert!(error.contains("hello is no file"), "{error}");
    assert!(error.contains("/nowhere.sock: No such file"), "{error}");
}
