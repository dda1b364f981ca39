use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgGroup, Args};
use image::{ArchiveFile, Artifact, Entry, Image, Layer, Name, Platform, Saved};

use crate::containerd::Containerd;
use crate::say::say;
use crate::{docker, inspect};

const EXAMPLES: &str = "\
Examples:
  lighter build app.wasm -t app -o app.tar
  lighter build app.wasm -t app:2 --docker --env LEVEL=debug --cmd serve --cmd 8080
  lighter build app.wasm -t app --containerd --platform wasi/wasm,linux/amd64,linux/arm64
  lighter build app.wasm -t app --artifact -o app.tar
  lighter build -t busybox -o busybox.tar --platform linux/amd64 \\
      --add ./busybox:/bin/busybox --link /bin/sh:busybox --entrypoint /bin/sh

The archive is taken by `ctr images import --all-platforms FILE` and by
`docker load --input FILE`. Docker's classic image store knows no wasi/wasm: build
with `--platform linux/amd64` for it. docs/images.md says which engine runs what.";

/// Make a container image of a WebAssembly program, or of any files
///
/// The image is written to one file, an OCI archive, or given to an engine. The same
/// input gives the same image, byte for byte.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("to").args(["output", "containerd", "docker"]).multiple(true).required(true))]
pub struct Build {
    /// The program; in the image it lies at / under its own name and is the entrypoint
    #[arg(required_unless_present = "add", required_if_eq("artifact", "true"))]
    app: Option<PathBuf>,

    /// Name of the image; a short one is completed as Docker does
    #[arg(short, long = "tag", value_name = "NAME[:TAG]")]
    tag: Name,

    /// The archive to write
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Put the image into a containerd, by its API
    #[arg(long)]
    containerd: bool,

    #[command(flatten)]
    target: Containerd,

    /// Put the image into Docker, with `docker load`
    #[arg(long)]
    docker: bool,

    /// Make the program a layer as it stands: the CNCF's Wasm OCI artifact
    #[arg(long, conflicts_with = "platform")]
    artifact: bool,

    /// What the image is for: wasi/wasm, linux/amd64, linux/arm64/v8, ...; several make an
    /// index of the same files for each
    #[arg(
        long,
        value_name = "OS/ARCH[/VARIANT]",
        value_delimiter = ',',
        default_value = "wasi/wasm"
    )]
    platform: Vec<Platform>,

    /// Program and first arguments, each with an --entrypoint of its own, instead of the app
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    entrypoint: Vec<String>,

    /// Arguments that follow the entrypoint's unless the user gives others; one each
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    cmd: Vec<String>,

    /// An environment variable; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,

    /// The folder in which the program starts [default: /]
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,

    /// Who runs the program: user, uid, user:group or uid:gid [default: root]
    #[arg(long, value_name = "USER")]
    user: Option<String>,

    /// The signal that asks the program to end, as SIGINT [default: SIGTERM]
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,

    /// A file of this machine and its path in the image, or, with a / at its end, the folder to
    /// put it into; or a directory and where to put what it holds; with their modes; repeatable
    #[arg(long, value_name = "SRC:DEST", value_parser = pair)]
    add: Vec<(String, String)>,

    /// A symbolic link in the image and what it points to; repeatable
    #[arg(long, value_name = "LINK:TARGET", value_parser = pair)]
    link: Vec<(String, String)>,

    /// A label; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    label: Vec<(String, String)>,
}

impl Build {
    /// Makes the image, gives it to whom it is for, and prints its name and digest.
    pub fn run(self) -> Result<()> {
        let image = self.image()?;
        let (saved, archive) = match &self.output {
            Some(output) => {
                self.spare_sources(output, &image)?;
                image::save(output, |archive| self.add(archive, image))?
            }
            None => image::draft(|archive| self.add(archive, image))?,
        };
        if self.containerd {
            self.target.import(&archive)?;
        }
        if self.docker {
            docker::load(&archive)?;
        }
        say!("{} {}", saved.name, saved.manifest);
        Ok(())
    }

    /// Makes sure that the archive does not come in the place of something that goes into the image: an earlier archive, too, in a
    /// folder that is added.
    fn spare_sources(&self, output: &Path, image: &Image) -> Result<()> {
        let Ok(before) = fs::metadata(output) else {
            return Ok(());
        };
        let files = image.layers.iter().flat_map(Layer::sources);
        for source in files.chain(self.app.as_deref()) {
            let is_same = fs::metadata(source)
                .is_ok_and(|source| (source.dev(), source.ino()) == (before.dev(), before.ino()));
            ensure!(
                !is_same,
                "-o {} is a file that goes into the image: write the archive elsewhere",
                output.display()
            );
        }
        Ok(())
    }

    /// The image, for the first platform.
    fn image(&self) -> Result<Image> {
        let mut layer = Layer::default();
        let mut entrypoint = self.entrypoint.clone();
        if let Some(app) = &self.app {
            let path = format!("/{}", file_name(app)?);
            if !self.artifact {
                layer.add(&path, Entry::file(app).mode(0o755))?;
            }
            if entrypoint.is_empty() {
                entrypoint.push(path);
            }
        }
        for (source, path) in &self.add {
            let source = Path::new(source);
            if source.is_dir() {
                layer.add_tree(source, path)?;
            } else if path.ends_with('/') {
                let path = format!("{path}{}", file_name(source)?);
                layer.add(&path, Entry::file(source))?;
            } else {
                layer.add(path, Entry::file(source))?;
            }
        }
        for (link, target) in &self.link {
            layer.add(link, Entry::symlink(target))?;
        }
        if let Some(folder) = &self.workdir {
            ensure!(
                folder.starts_with('/'),
                "--workdir {folder} must be an absolute path in the image"
            );
        }
        let nothing_beside = self.artifact && self.add.is_empty() && self.link.is_empty();
        Ok(Image {
            platform: self.platform[0].clone(),
            entrypoint,
            cmd: self.cmd.clone(),
            env: once_each("--env", &self.env)?,
            working_dir: self.workdir.clone(),
            user: self.user.clone(),
            stop_signal: self.stop_signal.clone(),
            labels: once_each("--label", &self.label)?,
            layers: if nothing_beside { vec![] } else { vec![layer] },
        })
    }

    fn add(&self, archive: &mut ArchiveFile, image: Image) -> Result<Saved> {
        if let (true, Some(program)) = (self.artifact, &self.app) {
            let artifact = Artifact {
                program: program.clone(),
                wasm: inspect::inspect(program)?,
                title: file_name(program)?.to_owned(),
                image,
            };
            return Ok(archive.add_artifact(&self.tag, &artifact)?);
        }
        if self.platform.len() == 1 {
            return Ok(archive.add(&self.tag, &image)?);
        }
        let platforms = self.platform.iter().cloned();
        let images = platforms.map(|platform| Image {
            platform,
            ..image.clone()
        });
        Ok(archive.add_index(&self.tag, &images.collect::<Vec<_>>())?)
    }
}

/// The name of the program's file, by which the image knows it.
fn file_name(app: &Path) -> Result<&str> {
    app.file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} does not end in the name of a file", app.display()))
}

/// A map of options that may be given once for each key.
fn once_each(option: &str, pairs: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.insert(key.clone(), value.clone()).is_some() {
            bail!("{option} {key} is given twice");
        }
    }
    Ok(map)
}

/// Splits `KEY=VALUE`.
fn key_value(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("a name, `=` and a value are wanted"),
    }
}

/// Splits `LEFT:RIGHT`; a colon in the left part is not possible.
fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once(':') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => {
            Ok((left.into(), right.into()))
        }
        _ => Err("two paths with `:` between them are wanted"),
    }
}
