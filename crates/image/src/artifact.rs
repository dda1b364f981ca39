use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{Image, Platform};

/// A wasm file as an OCI artifact, in the layout of the CNCF's working group
/// (<https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>): the file is a
/// layer as it stands.
///
/// The layout's configuration says what the wasm needs and offers, and nothing of how it is
/// run. What [`Image`] says of that is put beside it under an image configuration's keys,
/// where container engines look for it.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The wasm file.
    pub program: PathBuf,
    /// What is in it.
    pub wasm: Wasm,
    /// The name by which an entrypoint means it.
    pub title: String,
    /// How it is run. Its layers are a file system beside the wasm, mostly none; with any, its
    /// configuration is that of an image. Its platform is [`Wasm::platform`], whatever it says.
    pub image: Image,
}

/// What is in a wasm file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wasm {
    /// A core module.
    Module,
    /// A component.
    Component {
        /// The names of what it imports.
        imports: Vec<String>,
        /// The names of what it exports.
        exports: Vec<String>,
    },
}

impl Wasm {
    /// The platform that the layout has for it.
    pub fn platform(&self) -> Platform {
        let os = match self {
            Self::Module => "wasip1",
            Self::Component { .. } => "wasip2",
        };
        Platform {
            os: os.into(),
            ..Platform::default()
        }
    }

    /// The artifact's configuration: that of an image, and the layout's own keys.
    pub(crate) fn describe(
        &self,
        configuration: impl Serialize,
        layer: &str,
    ) -> Result<Value, serde_json::Error> {
        let mut document = serde_json::to_value(configuration)?;
        document["layerDigests"] = json!([layer]);
        document["component"] = match self {
            Self::Module => Value::Null,
            Self::Component { imports, exports } => {
                json!({"imports": imports, "exports": exports, "target": null})
            }
        };
        Ok(document)
    }
}
