//! Composing the layers of an image, in the compile worker: what a program imports and another
//! component exports is taken from that.

use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeOptions, PackageId, PlugError, plug};

use crate::parts;
use crate::worker::is_component;

/// The program that `file` is for: itself, or the first of its parts composed with those of the
/// others that are components. An import that several export is taken from the first. What is left
/// is the host's to provide.
///
/// # Errors
/// Why they do not fit.
pub(crate) fn program(file: Vec<u8>) -> Result<Vec<u8>, String> {
    let Some(parts) = parts::split(&file)? else {
        return Ok(file);
    };
    let Some((program, others)) = parts.split_first() else {
        return Err("it has no layers".to_owned());
    };
    let mut program = program.to_vec();
    if !is_component(&program) {
        return Ok(program);
    }
    let mut others: Vec<&[u8]> = others.to_vec();
    others.retain(|other| is_component(other));
    // Each round provides what those of the round before import. There are no more rounds than
    // components, unless they import each other in a ring, which cannot be composed.
    for _ in 0..others.len() {
        let mut done = true;
        let mut left = Vec::new();
        for other in others {
            let (composed, wraps) = compose(&program, other)?;
            let fits = composed.is_some();
            if let Some(composed) = composed {
                (program, done) = (composed, false);
            }
            // One that imports what it exports stands between the program and the host, once.
            if !(fits && wraps) {
                left.push(other);
            }
        }
        if done {
            break;
        }
        others = left;
    }
    Ok(program)
}

/// `program` with its imports taken from `other`, or `None` where that has none of them; and whether
/// `other` imports something that it exports.
fn compose(program: &[u8], other: &[u8]) -> Result<(Option<Vec<u8>>, bool), String> {
    let mut graph = CompositionGraph::new();
    let program = register(&mut graph, "layer:program", program)?;
    let other = register(&mut graph, "layer:other", other)?;
    let world = &graph.types()[graph[other].ty()];
    let wraps = world
        .exports
        .keys()
        .any(|it| world.imports.contains_key(it));
    let composed = match plug(&mut graph, vec![other], program) {
        Ok(()) => {
            let encoded = graph.encode(EncodeOptions::default());
            Some(encoded.map_err(|error| format!("its layers cannot be composed: {error}"))?)
        }
        Err(PlugError::NoPlugHappened) => None,
        Err(PlugError::GraphError { source }) => {
            return Err(format!("its layers cannot be composed: {source:#}"));
        }
    };
    Ok((composed, wraps))
}

fn register(graph: &mut CompositionGraph, name: &str, wasm: &[u8]) -> Result<PackageId, String> {
    let package = Package::from_bytes(name, None, wasm, graph.types_mut())
        .map_err(|error| format!("one of its layers is no component: {error:#}"))?;
    graph
        .register_package(package)
        .map_err(|error| format!("its layers cannot be composed: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::parts::Parts;

    fn file(parts: &[&[u8]]) -> Vec<u8> {
        let mut file = Parts::new().unwrap();
        for part in parts {
            let room = file.begin(part.len() as u64).unwrap();
            room.write_all(part).unwrap();
        }
        let (mut file, mut bytes) = (file.into_file(), Vec::new());
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn component(text: &str) -> Vec<u8> {
        wat::parse_str(format!("(component {text})")).unwrap()
    }

    /// A component that exports the function `code` of an interface, which `of` computes.
    fn exporting(interface: &str, imports: &str) -> Vec<u8> {
        component(&format!(
            r#"{imports}
            (core module $m (func (export "code") (result i32) i32.const 1))
            (core instance $i (instantiate $m))
            (func $f (result u32) (canon lift (core func $i "code")))
            (instance $e (export "code" (func $f)))
            (export "{interface}" (instance $e))"#
        ))
    }

    fn importing(interface: &str) -> String {
        format!(r#"(import "{interface}" (instance (export "code" (func (result u32)))))"#)
    }

    fn imports(component: &[u8]) -> Vec<String> {
        let mut graph = CompositionGraph::new();
        let package = register(&mut graph, "a:b", component).unwrap();
        let world = &graph.types()[graph[package].ty()];
        world.imports.keys().cloned().collect()
    }

    #[test]
    fn a_single_file_stays_as_it_is() {
        assert_eq!(program(b"\0asm".to_vec()).unwrap(), b"\0asm");
        let module = b"\0asm\x01\0\0\0";
        assert_eq!(program(file(&[module, b"other"])).unwrap(), module);
        let alone = component("");
        assert_eq!(program(file(&[&alone, module])).unwrap(), alone);
    }

    #[test]
    fn imports_are_taken_from_others_and_theirs_from_others_in_turn() {
        let first = component(&importing("test:a/one"));
        let second = exporting("test:a/one", &importing("test:a/two"));
        let third = exporting("test:a/two", &importing("test:a/host"));
        for others in [[&second, &third], [&third, &second]] {
            let composed = program(file(&[&first, others[0], others[1]])).unwrap();
            assert_eq!(imports(&composed), ["test:a/host"]);
        }
        let composed = program(file(&[&first, &third])).unwrap();
        assert_eq!(imports(&composed), ["test:a/one"], "nothing fits");
    }

    #[test]
    fn one_that_stands_before_the_host_does_so_once() {
        let first = component(&importing("test:a/host"));
        let wrapping = exporting("test:a/host", &importing("test:a/host"));
        let composed = program(file(&[&first, &wrapping])).unwrap();
        assert_eq!(imports(&composed), ["test:a/host"]);
        let twice = program(file(&[&composed, &wrapping])).unwrap();
        assert!(twice.len() > composed.len());
    }

    #[test]
    fn what_is_no_component_is_told() {
        let first = component(&importing("test:a/one"));
        let error = program(file(&[&first, b"\0asm\x0d\0\x01\0garbage"])).unwrap_err();
        assert!(error.contains("no component"), "{error}");
        assert!(program(file(&[])).is_err());
    }
}
