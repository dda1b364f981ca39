//! What is in a wasm file, as far as an artifact's configuration tells it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::Wasm;
use wasmparser::{Encoding, Parser, Payload};

/// Looks into the wasm file `path`.
///
/// # Errors
/// When it cannot be read or is no wasm file.
pub fn inspect(path: &Path) -> Result<Wasm> {
    let failed = || format!("cannot read {}", path.display());
    // A pipe would be waited for, and a device has no end.
    ensure!(
        fs::metadata(path).with_context(failed)?.is_file(),
        image::Error::Kind(path.into())
    );
    let bytes = fs::read(path).with_context(failed)?;
    let recognized = wasm::recognize(&bytes[..bytes.len().min(8)]);
    let contents = recognized
        .map_err(|what| anyhow!("it is {what}"))
        .and_then(|()| contents(&bytes));
    contents.with_context(|| {
        format!(
            "{} is not a wasm module or component, and an artifact is nothing else",
            path.display()
        )
    })
}

fn contents(bytes: &[u8]) -> Result<Wasm> {
    let mut depth = 0;
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let mut component = false;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version { encoding, .. } => {
                component |= depth == 0 && encoding == Encoding::Component;
                depth += 1;
            }
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    exports.push(export?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    match (depth, component) {
        (0, true) => Ok(Wasm::Component { imports, exports }),
        (0, false) if !bytes.is_empty() => Ok(Wasm::Module),
        _ => bail!("it ends too early"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_and_components_are_told_apart() {
        assert_eq!(contents(b"\0asm\x01\0\0\0").unwrap(), Wasm::Module);
        let empty = Wasm::Component {
            imports: vec![],
            exports: vec![],
        };
        assert_eq!(contents(b"\0asm\x0d\0\x01\0").unwrap(), empty);
    }

    #[test]
    fn what_is_no_wasm_is_refused() {
        for bytes in [&b""[..], b"\0asm", b"text", b"\x7fELF\x02\x01\x01\0"] {
            assert!(contents(bytes).is_err(), "{bytes:?}");
        }
    }
}
