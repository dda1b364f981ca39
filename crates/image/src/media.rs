//! The media types and annotations by which the parts of an image are told.

/// The configuration of the CNCF's Wasm OCI artifact.
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// A layer that is a wasm file as it stands, in that layout.
pub(crate) const WASM_LAYER: &str = "application/wasm";

/// The same in the images that runwasi had before there was that layout.
pub(crate) const COMPONENT_LAYER: &str =
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";

/// The annotation that has a layer's file name (OCI image specification, `annotations.md`).
pub(crate) const TITLE: &str = "org.opencontainers.image.title";

/// The annotation in which containerd keeps an image's full name.
pub(crate) const FULL_NAME: &str = "io.containerd.image.name";
