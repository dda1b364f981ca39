//! What the shim tells of itself (`-info`), beside what the runc shim tells.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use containerd_client::{
    services::v1::PluginInfoRequest,
    types::{RuntimeInfo, RuntimeRequest},
};
use lighter_test::{Containerd, RUNC, Version, WASMTIME, ensure_root, options::RuncOptions};
use prost::Message;
use prost_types::Any;
use serde_json::Value;

/// What containerd 2 answers when a client asks for a runtime's information, as dockerd does.
fn info(engine: &Containerd, runtime: &str, options: Option<Any>) -> Result<RuntimeInfo> {
    let request = RuntimeRequest {
        runtime_path: runtime.to_owned(),
        options,
    };
    let request = PluginInfoRequest {
        r#type: "io.containerd.runtime.v2".to_owned(),
        id: "task".to_owned(),
        options: Some(Any {
            type_url: "containerd.types.RuntimeRequest".to_owned(),
            value: request.encode_to_vec(),
        }),
    };
    let extra = engine
        .plugin_info(request)?
        .extra
        .context("no information")?;
    Ok(RuntimeInfo::decode(&*extra.value)?)
}

fn features(info: &RuntimeInfo) -> Result<Value> {
    let features = info.features.as_ref().context("no features")?;
    assert_eq!(
        features.type_url,
        "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    );
    Ok(serde_json::from_slice(&features.value)?)
}

fn names(features: &Value, pointer: &str) -> BTreeSet<String> {
    let list = features.pointer(pointer).and_then(Value::as_array);
    let names = list.into_iter().flatten().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

#[test]
fn beside_runc() -> Result<()> {
    ensure_root()?;
    let engine = Containerd::shared(Version::V2_1)?;
    let (ours, runcs) = (info(&engine, WASMTIME, None)?, info(&engine, RUNC, None)?);
    assert_eq!(ours.name, WASMTIME);
    assert_eq!(runcs.name, RUNC);
    let version = ours.version.clone().context("no version")?;
    assert_eq!(version.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(ours.options, runcs.options);

    let (ours, runcs) = (features(&ours)?, features(&runcs)?);
    for same in [
        "/hooks",
        "/linux/capabilities",
        "/linux/seccomp/actions",
        "/linux/seccomp/operators",
    ] {
        assert!(!names(&ours, same).is_empty(), "{same}");
        assert_eq!(names(&ours, same), names(&runcs, same), "{same}");
    }
    for more in ["/linux/namespaces", "/linux/seccomp/archs"] {
        assert!(
            names(&ours, more).is_superset(&names(&runcs, more)),
            "{more}"
        );
    }
    for same in ["v1", "v2", "systemd"] {
        let pointer = format!("/linux/cgroup/{same}");
        assert_eq!(ours.pointer(&pointer), runcs.pointer(&pointer), "{same}");
    }
    for is in [
        "/linux/seccomp/enabled",
        "/linux/apparmor/enabled",
        "/linux/mountExtensions/idmap/enabled",
    ] {
        assert_eq!(ours.pointer(is), Some(&Value::from(true)), "{is}");
    }
    for isnt in ["/linux/selinux/enabled", "/linux/cgroup/systemdUser"] {
        assert_eq!(ours.pointer(isnt), Some(&Value::from(false)), "{isnt}");
    }
    let missing: Vec<String> = names(&runcs, "/mountOptions")
        .difference(&names(&ours, "/mountOptions"))
        .cloned()
        .collect();
    // libcontainer hands these to the file system, which may know them.
    let expected = [
        "acl",
        "iversion",
        "lazytime",
        "loud",
        "noacl",
        "noiversion",
        "nolazytime",
        "nosymfollow",
        "silent",
        "symfollow",
        "tmpcopyup",
    ];
    assert_eq!(missing, expected);
    Ok(())
}

#[test]
fn options_come_back() -> Result<()> {
    ensure_root()?;
    let engine = Containerd::shared(Version::V2_1)?;
    let options = RuncOptions {
        systemd_cgroup: true,
        ..RuncOptions::default()
    };
    for runtime in [WASMTIME, RUNC] {
        let info = info(&engine, runtime, Some(options.any()))?;
        let returned = info.options.context("no options")?;
        assert_eq!(returned.type_url, options.any().type_url, "{runtime}");
        assert_eq!(returned.value, options.any().value, "{runtime}");
    }
    let other = Any {
        type_url: "some.Other".to_owned(),
        value: Vec::new(),
    };
    let error = format!(
        "{:#}",
        info(&engine, WASMTIME, Some(other))
            .err()
            .context("taken")?
    );
    assert!(error.contains("some.Other"), "{error}");
    Ok(())
}
