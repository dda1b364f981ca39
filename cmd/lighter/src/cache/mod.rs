//! `lighter cache`: what the shim has compiled, listed, removed and made beforehand.

mod containerd;
mod warm;

use crate::say::say;
use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use wasm::settings::Size;
use wasm::{DEFAULT_CACHE_DIR, DEFAULT_CACHE_SIZE, Entry, Inventory};

/// Look after the cache of compiled guests
#[derive(Args)]
pub struct Cache {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Ls(Ls),
    Rm(Rm),
    Prune(Prune),
    Stat(Stat),
    Warm(warm::Warm),
}

impl Cache {
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Ls(ls) => ls.run(),
            Command::Rm(rm) => rm.run(),
            Command::Prune(prune) => prune.run(),
            Command::Stat(stat) => stat.run(),
            Command::Warm(warm) => warm.run(),
        }
    }
}

#[derive(Args)]
struct Place {
    /// The cache's folder, as the shim's option `cache_dir` has it
    #[arg(long, value_name = "DIR", default_value = DEFAULT_CACHE_DIR)]
    cache_dir: PathBuf,
}

impl Place {
    fn inventory(&self) -> Result<Inventory> {
        Ok(Inventory::new(&self.cache_dir)?)
    }

    fn entries(&self) -> Result<Vec<Entry>> {
        let entries = self.inventory()?.entries();
        entries.with_context(|| format!("cannot read the cache {}", self.cache_dir.display()))
    }
}

/// The size that the folder may have.
#[derive(Args)]
struct Limit {
    /// How large the cache may be, as 512MiB, like the shim's option `cache_size`
    #[arg(long, value_name = "SIZE", default_value_t = DEFAULT_CACHE_SIZE)]
    max_size: Size,
}

/// List what is compiled, what was used last first
///
/// DIGEST is the SHA-256 of the module. VERSION says whether this version of Lighter made the
/// code, and so can use it. NAME is what the module was called when it was compiled.
#[derive(Args)]
struct Ls {
    #[command(flatten)]
    place: Place,
    /// Print digests in full
    #[arg(long)]
    no_trunc: bool,
}

impl Ls {
    fn run(self) -> Result<()> {
        let entries = self.place.entries()?;
        let width = if self.no_trunc { 64 } else { 12 };
        say!(
            "{:width$}  {:9}  {:>9}  {:9}  {:7}  NAME",
            "DIGEST",
            "KIND",
            "SIZE",
            "USED",
            "VERSION"
        );
        for entry in entries {
            let source = entry.source();
            let (kind, name) = match &source {
                // A container chooses the name.
                Some(source) => (
                    source.kind.to_string(),
                    source.name.escape_debug().to_string(),
                ),
                None => ("-".into(), "-".into()),
            };
            say!(
                "{:width$}  {kind:9}  {:>9}  {:9}  {:7}  {name}",
                &entry.digest[..width],
                shown(entry.size),
                age(entry.used),
                if entry.current { "this" } else { "other" },
            );
        }
        Ok(())
    }
}

/// How long ago; the cache knows it to the hour.
fn age(time: SystemTime) -> String {
    let age = SystemTime::now().duration_since(time);
    match age.unwrap_or(Duration::ZERO).as_secs() / 3600 {
        0 => "< 1 h ago".into(),
        hours @ ..48 => format!("{hours} h ago"),
        hours => format!("{} d ago", hours / 24),
    }
}

/// Remove compiled guests
///
/// Containers that run are not harmed. The next one with the module compiles it again.
#[derive(Args)]
struct Rm {
    #[command(flatten)]
    place: Place,
    /// SHA-256 of a module, or so much of its start that it is the only one
    #[arg(required = true, value_name = "DIGEST")]
    digests: Vec<String>,
}

impl Rm {
    fn run(self) -> Result<()> {
        let inventory = self.place.inventory()?;
        let entries = self.place.entries()?;
        // All of them are looked up before any is removed.
        let mut wanted = BTreeSet::new();
        for text in &self.digests {
            let prefix = text.strip_prefix("sha256:").unwrap_or(text);
            ensure!(
                !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{text:?} is not the beginning of a digest, which is of hexadecimal digits"
            );
            let found: BTreeSet<&str> = entries
                .iter()
                .map(|entry| entry.digest.as_str())
                .filter(|digest| digest.starts_with(prefix))
                .collect();
            match found.len() {
                1 => wanted.extend(found),
                0 => bail!(
                    "nothing in {} has a digest that begins with {text}",
                    self.place.cache_dir.display()
                ),
                count => bail!("{count} digests begin with {text}; give more of the one you mean"),
            }
        }
        for entry in &entries {
            if wanted.contains(entry.digest.as_str()) {
                let removed = inventory.remove(entry);
                removed.with_context(|| format!("cannot remove {}", entry.digest))?;
                say!("{}", entry.digest);
            }
        }
        Ok(())
    }
}

/// Remove what other versions of Lighter have compiled, then what was not used for longest
///
/// The shim does the second by itself whenever it adds to the cache.
#[derive(Args)]
struct Prune {
    #[command(flatten)]
    place: Place,
    /// Remove everything
    #[arg(long, conflicts_with = "max_size")]
    all: bool,
    #[command(flatten)]
    limit: Limit,
}

impl Prune {
    fn run(self) -> Result<()> {
        let inventory = self.place.inventory()?;
        let limit = if self.all { 0 } else { self.limit.max_size.0 };
        let prune = || {
            let mut removed = inventory.remove_other_versions()?;
            removed.extend(inventory.shrink(limit, None)?);
            inventory.sweep()?;
            Ok::<_, std::io::Error>(removed)
        };
        let removed =
            prune().with_context(|| format!("cannot prune {}", self.place.cache_dir.display()))?;
        for entry in &removed {
            say!("{}", entry.digest);
        }
        say!("freed {}", shown(total(&removed)));
        Ok(())
    }
}

fn total<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> u64 {
    entries.into_iter().map(|entry| entry.size).sum()
}

/// A number of bytes in the largest unit that it has one of, with a decimal if that is not whole.
fn shown(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// Tell how much is compiled
#[derive(Args)]
struct Stat {
    #[command(flatten)]
    place: Place,
}

impl Stat {
    fn run(self) -> Result<()> {
        let entries = self.place.entries()?;
        let all = total(&entries);
        let (this, other): (Vec<&Entry>, Vec<&Entry>) =
            entries.iter().partition(|entry| entry.current);
        say!("folder          {}", self.place.cache_dir.display());
        say!("entries         {}", entries.len());
        say!("size            {} ({all} bytes)", shown(all));
        say!(
            "this version    {} in {}",
            shown(total(this.iter().copied())),
            this.len()
        );
        say!(
            "other versions  {} in {}",
            shown(total(other.iter().copied())),
            other.len()
        );
        say!("default limit   {}", shown(DEFAULT_CACHE_SIZE.0));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn sizes_are_shown_in_their_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (32_739_600, "31.2 MiB"),
            (10 << 30, "10 GiB"),
        ] {
            assert_eq!(shown(bytes), text);
        }
    }
}
