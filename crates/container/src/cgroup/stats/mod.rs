//! The figures of a cgroup.
//!
//! Files, units and the handling of what is missing follow containerd's own cgroups library, so
//! that a client sees from this shim what it sees from runc's: a file that the kernel does not
//! have counts as zero, or leaves its group of figures out. The library's groups that the runc shim
//! never fills (network interfaces, taskstats) are not here.

pub(super) mod file;
pub mod v1;
pub mod v2;

use std::path::Path;

use super::{Cgroup, Error, Result, Tree};

/// The figures of one cgroup at one moment, by version. The figures of a v2 cgroup include those
/// of the cgroups below it; on v1 it is as each controller documents.
#[derive(Debug, Clone, PartialEq)]
pub enum Stats {
    /// What v1's controllers count.
    V1(v1::Metrics),
    /// What v2's controllers count.
    V2(v2::Metrics),
}

impl Cgroup {
    /// Reads the figures.
    ///
    /// # Errors
    /// [`Error::Io`] when the cgroup is gone or a file refuses to be read; [`Error::Malformed`]
    /// when a file is not in its documented form.
    pub fn stats(&self) -> Result<Stats> {
        let sizes = huge_page_sizes()?;
        let stats = match &self.tree {
            Tree::V1(_) => Stats::V1(v1::read(self, &sizes)?),
            Tree::V2(folder) => Stats::V2(v2::read(folder, &sizes)?),
        };
        // Missing files are no errors, but a missing cgroup must not look like an idle one.
        let folders = self.folders();
        match folders.iter().any(|folder| folder.exists()) {
            true => Ok(stats),
            false => {
                let folder = folders.first().copied().unwrap_or(Path::new(""));
                let gone = std::io::Error::from_raw_os_error(libc::ENOENT);
                Err(Error::io("read the figures of", folder)(gone))
            }
        }
    }
}

/// Handles and objects of one RDMA device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    /// The device's name.
    pub device: String,
    /// HCA handles; `u32::MAX` is no limit.
    pub hca_handles: u32,
    /// HCA objects; `u32::MAX` is no limit.
    pub hca_objects: u32,
}

/// Use and limits of RDMA devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rdma {
    /// In use now.
    pub current: Vec<RdmaEntry>,
    /// At most.
    pub limit: Vec<RdmaEntry>,
}

/// The lines of an rdma file: `device hca_handle=N hca_object=N`, where N may be `max`.
fn rdma_entries(text: &str) -> Vec<RdmaEntry> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [device, values @ ..] = &fields[..] else {
            continue;
        };
        let value = |name: &str| {
            let text = values
                .iter()
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
            match text {
                Some("max") => u32::MAX,
                Some(number) => number.parse().unwrap_or(0),
                None => 0,
            }
        };
        entries.push(RdmaEntry {
            device: (*device).to_owned(),
            hca_handles: value("hca_handle"),
            hca_objects: value("hca_object"),
        });
    }
    entries
}

/// The sizes of this machine's huge pages, as hugetlb's file names spell them (`2MB`, `1GB`),
/// in ascending order.
fn huge_page_sizes() -> Result<Vec<String>> {
    let path = Path::new("/sys/kernel/mm/hugepages");
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        // A kernel without huge pages.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    let mut sizes = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("read", path))?.file_name();
        sizes.extend(name.to_str().and_then(huge_page_kilobytes));
    }
    sizes.sort_unstable();
    Ok(sizes.into_iter().map(page_size_name).collect())
}

/// The size in the name of a folder of /sys/kernel/mm/hugepages, such as `hugepages-2048kB`.
fn huge_page_kilobytes(name: &str) -> Option<u64> {
    name.strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()
}

/// The kernel rounds down to the unit, as in `hugetlb.2MB.max`.
fn page_size_name(kilobytes: u64) -> String {
    match kilobytes {
        size if size >= 1 << 20 => format!("{}GB", size >> 20),
        size if size >= 1 << 10 => format!("{}MB", size >> 10),
        size => format!("{size}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_have_the_names_of_hugetlb_files() {
        let names = [
            "hugepages-64kB",
            "hugepages-2048kB",
            "hugepages-1048576kB",
            "other",
        ];
        let sizes = names
            .into_iter()
            .filter_map(huge_page_kilobytes)
            .map(page_size_name);
        assert_eq!(sizes.collect::<Vec<_>>(), ["64KB", "2MB", "1GB"]);
    }

    #[test]
    fn rdma_lines_are_read_by_name() {
        let entries = rdma_entries(
            "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=max\n\n",
        );
        let entry = |device: &str, hca_handles, hca_objects| RdmaEntry {
            device: device.to_owned(),
            hca_handles,
            hca_objects,
        };
        assert_eq!(
            entries,
            [entry("mlx4_0", 2, 2000), entry("ocrdma1", 3, u32::MAX)]
        );
    }
}
