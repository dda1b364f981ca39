//! Reads an archive that this program has written: an OCI image layout in a tar.

use std::collections::HashMap;
use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail};
use image::{Descriptor, Document, Index};

/// The media types of blobs that refer to others.
const DOCUMENTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
];

/// Where a blob lies in the archive's file.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// An archive, open.
pub struct Layout<'a> {
    file: &'a File,
    places: HashMap<String, Place>,
}

impl<'a> Layout<'a> {
    /// Looks into an archive.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(mut file: &'a File) -> Result<Self> {
        let read = "cannot read the archive";
        file.rewind().context(read)?;
        let mut places = HashMap::new();
        let mut tar = tar::Archive::new(file);
        for entry in tar.entries().context(read)? {
            let entry = entry.context(read)?;
            let place = Place {
                offset: entry.raw_file_position(),
                size: entry.size(),
            };
            places.insert(entry.path()?.to_string_lossy().into_owned(), place);
        }
        Ok(Self { file, places })
    }

    /// The table of contents.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn index(&self) -> Result<Index> {
        let path = "index.json";
        serde_json::from_slice(&self.read(path)?).with_context(|| format!("the archive's {path}"))
    }

    /// The manifest or index that `descriptor` refers to; `None` if it refers to something else.
    ///
    /// # Errors
    /// As [`Layout::index`].
    pub fn document(&self, descriptor: &Descriptor) -> Result<Option<Document>> {
        if !DOCUMENTS.contains(&descriptor.media_type.as_str()) {
            return Ok(None);
        }
        let document = Document::parse(&self.read(&path(&descriptor.digest))?);
        match document {
            Ok(document) => Ok(Some(document)),
            Err(reason) => bail!("the archive's {} {reason}", descriptor.digest),
        }
    }

    /// Where the blob `digest` lies.
    ///
    /// # Errors
    /// When it is not there.
    pub fn place(&self, digest: &str) -> Result<Place> {
        let place = self.places.get(&path(digest));
        place.copied().context("the archive lacks a blob")
    }

    /// Up to `most` bytes of a blob from `offset` on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn chunk(&self, place: Place, offset: u64, most: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; most.min(place.size - offset) as usize];
        self.file.read_exact_at(&mut bytes, place.offset + offset)?;
        Ok(bytes)
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let place = self.places.get(path);
        let place = *place.with_context(|| format!("the archive lacks {path}"))?;
        self.chunk(place, 0, place.size)
    }
}

fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}
