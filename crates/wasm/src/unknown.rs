//! Linking a guest, with functions that trap in the place of imports that nothing provides, where its
//! settings say so.

use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{self, Component, LinkerInstance, ResourceType};
use wasmtime::{InstancePre, Linker, Module, Result, bail};

use crate::engine::{COMPONENT_IMPORTS, Concurrency};
use crate::settings::Flags;
use crate::state::State;

/// Links `module` with what `linker` has.
///
/// # Errors
/// The first import that nothing provides.
pub(crate) fn link_module(
    linker: &Linker<State>,
    module: &Module,
    flags: &Flags,
) -> Result<InstancePre<State>> {
    if !flags.unknown_imports_trap {
        return linker.instantiate_pre(module);
    }
    let mut linker = linker.clone();
    linker.define_unknown_imports_as_traps(module)?;
    linker.instantiate_pre(module)
}

/// Links `component` with what `linker` has; `concurrency` is that of the engine. Without it nothing
/// traps: WASI 0.3 is missing there, and is not unknown.
///
/// # Errors
/// The first import that nothing provides.
pub(crate) fn link_component(
    linker: &component::Linker<State>,
    component: &Component,
    concurrency: Concurrency,
    flags: &Flags,
) -> Result<component::InstancePre<State>> {
    if !flags.unknown_imports_trap || concurrency == Concurrency::Off {
        return linker.instantiate_pre(component);
    }
    let mut linker = linker.clone();
    let ty = component.component_type();
    for (name, import) in ty.imports(component.engine()) {
        // wasmtime's own method for this goes by whole names, and would put functions that trap in
        // the place of every version of WASI but the newest.
        if !is_known(name, flags) {
            trap(&mut linker.root(), "", name, import.ty, component)?;
        }
    }
    linker.instantiate_pre(component)
}

/// Whether an import of a component is from a package that is provided. Which versions of it fit is
/// the linker's business.
fn is_known(name: &str, flags: &Flags) -> bool {
    let Some((package, _)) = name
        .strip_prefix("wasi:")
        .and_then(|name| name.split_once('/'))
    else {
        return false;
    };
    COMPONENT_IMPORTS.contains(&package) || (flags.keyvalue && package == "keyvalue")
}

/// Defines the import `name` of the interface `within`, if it is of one, with functions that trap.
fn trap(
    linker: &mut LinkerInstance<'_, State>,
    within: &str,
    name: &str,
    import: ComponentItem,
    component: &Component,
) -> Result<()> {
    match import {
        ComponentItem::ComponentInstance(interface) => {
            let mut linker = linker.instance(name)?;
            for (item, export) in interface.exports(component.engine()) {
                trap(&mut linker, name, item, export.ty, component)?;
            }
            Ok(())
        }
        ComponentItem::ComponentFunc(function) => trap_function(linker, within, name, &function),
        ComponentItem::Resource(_) => {
            linker.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))
        }
        // Types are known by their structure; of the rest the linker says that it is missing.
        ComponentItem::Type(_)
        | ComponentItem::CoreFunc(_)
        | ComponentItem::Module(_)
        | ComponentItem::Component(_) => Ok(()),
    }
}

fn trap_function(
    linker: &mut LinkerInstance<'_, State>,
    within: &str,
    name: &str,
    function: &ComponentFunc,
) -> Result<()> {
    let whole = match within {
        "" => name.to_owned(),
        interface => format!("{interface}#{name}"),
    };
    if function.async_() {
        return linker.func_new_concurrent(name, move |_, _, _, _| {
            let whole = whole.clone();
            Box::pin(async move { bail!("nothing provides the import `{whole}`") })
        });
    }
    linker.func_new(name, move |_, _, _, _| {
        bail!("nothing provides the import `{whole}`")
    })
}
