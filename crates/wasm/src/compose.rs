//! Composing the layers of an image, in the compile worker: what a program imports and another
//! component exports is taken from that.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};
use wac_graph::types::{ItemKind, Package, SubtypeChecker, are_semver_compatible};
use wac_graph::{CompositionGraph, EncodeOptions, NodeId, PackageId};

use crate::parts;
use crate::worker::is_component;

/// The layer that is the program.
const PROGRAM: usize = 0;

/// The program that `file` is for: itself, or the first of its parts composed with those of the
/// others that are components. An import that several export is taken from the first. What is left
/// is the host's to provide. Each layer is instantiated once, whoever imports it.
///
/// # Errors
/// Why they do not fit.
pub(crate) fn program(file: Vec<u8>) -> Result<Vec<u8>, String> {
    let Some(mut parts) = parts::split(&file)? else {
        return Ok(file);
    };
    let Some(program) = parts.first().map(|program| program.to_vec()) else {
        return Err("it has no layers".to_owned());
    };
    if !is_component(&program) {
        return Ok(program);
    }
    parts.retain(|part| is_component(part));
    let mut composition = Composition::new(&parts)?;
    let composed = composition.compose().map_err(|error| {
        let names = composition.layers.iter().map(|layer| layer.name.as_str());
        let names = names.collect::<Vec<_>>().join(", ");
        format!("its layers ({names}) cannot be composed: {error:#}")
    })?;
    Ok(composed.unwrap_or(program))
}

/// Layers on their way to be one component.
struct Composition {
    graph: CompositionGraph,
    layers: Vec<Layer>,
}

struct Layer {
    /// Its digest, as the image's manifest has it.
    name: String,
    package: PackageId,
    /// Its instance, once it is needed.
    instance: Option<NodeId>,
    /// The layers that it imports from.
    providers: BTreeSet<usize>,
}

impl Composition {
    /// These components, the program first.
    ///
    /// # Errors
    /// One is none.
    fn new(components: &[&[u8]]) -> Result<Self, String> {
        let mut graph = CompositionGraph::new();
        let mut layers = Vec::new();
        for component in components {
            let name = format!("sha256:{:x}", Sha256::digest(component));
            let package = register(&mut graph, &name, component)?;
            layers.push(Layer {
                name,
                package,
                instance: None,
                providers: BTreeSet::new(),
            });
        }
        Ok(Self { graph, layers })
    }

    /// The program with its imports taken from the others, and theirs in turn; `None` where no other has any.
    fn compose(&mut self) -> wasmtime::Result<Option<Vec<u8>>> {
        let program = self.graph.instantiate(self.layers[PROGRAM].package);
        self.layers[PROGRAM].instance = Some(program);
        let mut left = vec![PROGRAM];
        while let Some(user) = left.pop() {
            let world = &self.graph.types()[self.graph[self.layers[user].package].ty()];
            let imports = world.imports.iter();
            let imports: Vec<(String, ItemKind)> =
                imports.map(|(name, kind)| (name.clone(), *kind)).collect();
            for (import, kind) in imports {
                if let Some((provider, export)) = self.provider(user, &import, kind) {
                    if self.layers[provider].instance.is_none() {
                        left.push(provider);
                    }
                    self.connect(user, &import, provider, &export)?;
                }
            }
        }
        if self.layers[PROGRAM].providers.is_empty() {
            return Ok(None);
        }
        let world = &self.graph.types()[self.graph[self.layers[PROGRAM].package].ty()];
        for name in world.exports.keys().cloned().collect::<Vec<_>>() {
            let export = self.graph.alias_instance_export(program, &name)?;
            self.graph.export(export, &name)?;
        }
        Ok(Some(self.graph.encode(EncodeOptions::default())?))
    }

    /// The first layer that exports what `user` imports, and under which name: the same, or one of a
    /// compatible version. One that imports from `user` itself is passed over: so layers that stand
    /// between the program and the host come one after the other, and a ring ends at the host, which
    /// has nothing for it.
    fn provider(&self, user: usize, import: &str, kind: ItemKind) -> Option<(usize, String)> {
        let types = self.graph.types();
        let mut cache = Default::default();
        let mut checker = SubtypeChecker::new(&mut cache);
        let mut fits = |export: ItemKind| checker.is_subtype(export, types, kind, types).is_ok();
        (PROGRAM + 1..self.layers.len())
            .filter(|layer| !self.needs(*layer, user))
            .find_map(|layer| {
                let exports = &types[self.graph[self.layers[layer].package].ty()].exports;
                let same = exports.get_key_value(import).into_iter();
                let compatible = exports
                    .iter()
                    .filter(|(export, _)| are_semver_compatible(export, import));
                let export = same.chain(compatible).find(|(_, kind)| fits(**kind));
                export.map(|(export, _)| (layer, export.clone()))
            })
    }

    /// Whether a layer is `other`, or imports from it, be it by way of others.
    fn needs(&self, layer: usize, other: usize) -> bool {
        let (mut seen, mut left) = (BTreeSet::new(), vec![layer]);
        while let Some(layer) = left.pop() {
            if layer == other {
                return true;
            }
            if seen.insert(layer) {
                left.extend(&self.layers[layer].providers);
            }
        }
        false
    }

    /// Has `user` import what `provider` exports.
    fn connect(
        &mut self,
        user: usize,
        import: &str,
        provider: usize,
        export: &str,
    ) -> wasmtime::Result<()> {
        let [importing, exporting] = [user, provider].map(|layer| {
            let layer = &mut self.layers[layer];
            *layer
                .instance
                .get_or_insert_with(|| self.graph.instantiate(layer.package))
        });
        let export = self.graph.alias_instance_export(exporting, export)?;
        self.graph
            .set_instantiation_argument(importing, import, export)?;
        self.layers[user].providers.insert(provider);
        Ok(())
    }
}

fn register(graph: &mut CompositionGraph, name: &str, wasm: &[u8]) -> Result<PackageId, String> {
    let package = Package::from_bytes(name, None, wasm, graph.types_mut())
        .map_err(|error| format!("its layer {name} is no component: {error:#}"))?;
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

    /// One that exports a number of times that it was called; one that passes that on; and a program that calls
    /// the first, then the second, and gives what that says.
    fn counting() -> [Vec<u8>; 3] {
        let call = |interface: &str| {
            format!(
                r#"(import "{interface}" (instance ${interface} (export "code" (func (result u32)))))
                (core func ${interface} (canon lower (func ${interface} "code")))"#
            )
            .replace("$test:a/", "$")
        };
        let program = component(&format!(
            r#"{} {}
            (core module $m
                (import "" "p" (func $p (result i32)))
                (import "" "q" (func $q (result i32)))
                (func (export "run") (result i32) (drop (call $p)) (call $q)))
            (core instance $i (instantiate $m
                (with "" (instance (export "p" (func $p)) (export "q" (func $q))))))
            (func (export "run") (result u32) (canon lift (core func $i "run")))"#,
            call("test:a/p"),
            call("test:a/q"),
        ));
        let counter = component(
            r#"(core module $m
                (global $calls (mut i32) (i32.const 0))
                (func (export "code") (result i32)
                    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
                    (global.get $calls)))
            (core instance $i (instantiate $m))
            (func $f (result u32) (canon lift (core func $i "code")))
            (instance $e (export "code" (func $f)))
            (export "test:a/p" (instance $e))"#,
        );
        let passing = component(&format!(
            r#"{}
            (core module $m
                (import "" "p" (func $p (result i32)))
                (func (export "code") (result i32) (call $p)))
            (core instance $i (instantiate $m (with "" (instance (export "p" (func $p))))))
            (func $f (result u32) (canon lift (core func $i "code")))
            (instance $e (export "code" (func $f)))
            (export "test:a/q" (instance $e))"#,
            call("test:a/p"),
        ));
        [program, counter, passing]
    }

    /// What the function `run` of a component gives.
    fn run(wasm: &[u8]) -> u32 {
        let engine = wasmtime::Engine::default();
        let component = wasmtime::component::Component::new(&engine, wasm).unwrap();
        let mut store = wasmtime::Store::new(&engine, ());
        let linker = wasmtime::component::Linker::new(&engine);
        let instance = linker.instantiate(&mut store, &component).unwrap();
        let run = instance.get_typed_func::<(), (u32,)>(&mut store, "run");
        run.unwrap().call(&mut store, ()).unwrap().0
    }

    #[test]
    fn a_layer_is_one_instance_in_whatever_order() {
        let [program, counter, passing] = counting();
        for others in [[&counter, &passing], [&passing, &counter]] {
            let composed = super::program(file(&[&program, others[0], others[1]])).unwrap();
            assert_eq!(run(&composed), 2);
        }
    }

    /// The type that two layers speak of is that of the one which has it.
    #[test]
    fn resources_are_shared_in_whatever_order() {
        let exporting = |name: &str, imports: &str, items: &str| {
            component(&format!(
                r#"{imports}
                (component $c
                    (import "r" (type $r (sub resource)))
                    (import "f" (func $f {items}))
                    (export $exported "r" (type $r))
                    (export "f" (func $f) (func {})))
                (instance $e (instantiate $c (with "r" (type $r)) (with "f" (func $f))))
                (export "{name}" (instance $e))"#,
                items.replace("$r", "$exported")
            ))
        };
        let maker = exporting(
            "test:a/p",
            r#"(type $r (resource (rep i32)))
            (core func $new (canon resource.new $r))
            (core module $m
                (import "" "new" (func $new (param i32) (result i32)))
                (func (export "f") (result i32) (call $new (i32.const 7))))
            (core instance $i (instantiate $m (with "" (instance (export "new" (func $new))))))
            (func $f (result (own $r)) (canon lift (core func $i "f")))"#,
            "(result (own $r))",
        );
        let taker = exporting(
            "test:a/q",
            r#"(import "test:a/p" (instance $p (export "r" (type (sub resource)))))
            (alias export $p "r" (type $r))
            (core module $m (func (export "f") (param i32) (result i32) i32.const 5))
            (core instance $i (instantiate $m))
            (func $f (param "it" (own $r)) (result u32) (canon lift (core func $i "f")))"#,
            r#"(param "it" (own $r)) (result u32)"#,
        );
        let program = component(
            r#"(import "test:a/p" (instance $p
                (export "r" (type $r (sub resource)))
                (export "f" (func (result (own $r))))))
            (alias export $p "r" (type $r))
            (import "test:a/q" (instance $q
                (export "r" (type $same (eq $r)))
                (export "f" (func (param "it" (own $same)) (result u32)))))
            (core func $make (canon lower (func $p "f")))
            (core func $take (canon lower (func $q "f")))
            (core module $m
                (import "" "make" (func $make (result i32)))
                (import "" "take" (func $take (param i32) (result i32)))
                (func (export "run") (result i32) (call $take (call $make))))
            (core instance $i (instantiate $m
                (with "" (instance (export "make" (func $make)) (export "take" (func $take))))))
            (func (export "run") (result u32) (canon lift (core func $i "run")))"#,
        );
        for others in [[&maker, &taker], [&taker, &maker]] {
            let composed = super::program(file(&[&program, others[0], others[1]])).unwrap();
            assert_eq!(run(&composed), 5);
        }
    }

    #[test]
    fn several_stand_before_the_host_one_after_the_other() {
        let first = component(&importing("test:a/host"));
        let wrapping = |code: &str| {
            let wrapping = exporting("test:a/host", &importing("test:a/host"));
            [&wrapping[..], code.as_bytes()].concat()
        };
        // Custom sections tell them apart.
        let (one, two) = (wrapping("\0\x02\x01a"), wrapping("\0\x02\x01b"));
        let once = program(file(&[&first, &one])).unwrap();
        let twice = program(file(&[&first, &one, &two])).unwrap();
        assert_eq!(imports(&twice), ["test:a/host"]);
        assert!(twice.len() > once.len() + one.len() / 2);
    }

    #[test]
    fn a_ring_is_left_to_the_host() {
        let first = component(&importing("test:a/one"));
        let second = exporting("test:a/one", &importing("test:a/two"));
        let third = exporting("test:a/two", &importing("test:a/one"));
        let composed = program(file(&[&first, &second, &third])).unwrap();
        assert_eq!(imports(&composed), ["test:a/one"]);
    }

    #[test]
    fn what_is_no_component_is_told() {
        let first = component(&importing("test:a/one"));
        let error = program(file(&[&first, b"\0asm\x0d\0\x01\0garbage"])).unwrap_err();
        assert!(error.contains("no component"), "{error}");
        assert!(program(file(&[])).is_err());
    }
}
