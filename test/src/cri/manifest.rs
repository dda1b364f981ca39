//! Pods as Kubernetes' manifests describe them, made to what a kubelet asks of CRI.
//!
//! Only what the manifests of deploy/ use is known; anything else is an error, so that no test
//! passes because of what was left out.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::{Builder, Cri, Pod, v1};

/// The `spec` of a pod, or of a DaemonSet's pods.
pub struct Manifest {
    spec: Map<String, Value>,
    /// Where the volumes lie on the node.
    volumes: HashMap<String, PathBuf>,
}

impl Manifest {
    /// Reads a file with one object, a Pod or a DaemonSet. Volumes are made or taken from
    /// below `node`, which stands for the node's root.
    ///
    /// # Errors
    /// A file that is not of that kind, or a volume that a kubelet's part here does not know.
    pub fn read(file: &Path, node: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let object: Value =
            serde_yaml_ng::from_str(&text).with_context(|| file.display().to_string())?;
        let spec = match object["kind"].as_str() {
            Some("Pod") => &object["spec"],
            Some("DaemonSet") => &object["spec"]["template"]["spec"],
            other => bail!("{}: a {other:?}", file.display()),
        };
        let mut spec = spec.as_object().context("no spec")?.clone();
        let mut volumes = HashMap::new();
        for volume in list(spec.remove("volumes"))? {
            let name = text_of(&volume["name"])?;
            let place = if let Some(path) = volume["hostPath"]["path"].as_str() {
                node.join(path.trim_start_matches('/'))
            } else {
                ensure!(volume["emptyDir"].is_object(), "a volume: {volume}");
                let place = node.join("volumes").join(&name);
                fs::create_dir_all(&place)?;
                // As a kubelet makes it, for all users.
                fs::set_permissions(&place, fs::Permissions::from_mode(0o777))?;
                place
            };
            volumes.insert(name, place);
        }
        Ok(Self { spec, volumes })
    }

    /// The runtime class that it asks for.
    pub fn runtime_class(&self) -> Option<&str> {
        self.spec.get("runtimeClassName")?.as_str()
    }

    /// Runs the pod's sandbox under a handler.
    ///
    /// # Errors
    /// What CRI says, or an entry that is not known here.
    pub fn run<'a>(&self, cri: &'a Cri, handler: &str) -> Result<Pod<'a>> {
        let mut spec = self.spec.clone();
        for known in [
            "automountServiceAccountToken",
            "containers",
            "initContainers",
            "nodeSelector",
            "runtimeClassName",
            "terminationGracePeriodSeconds",
            "tolerations",
        ] {
            spec.remove(known);
        }
        let pid = match spec.remove("hostPID") {
            Some(Value::Bool(true)) => v1::NamespaceMode::Node,
            None => v1::NamespaceMode::Container,
            other => bail!("hostPID: {other:?}"),
        };
        nothing_left(spec)?;
        let containers = [
            self.containers("initContainers")?,
            self.containers("containers")?,
        ];
        let privileged = containers.iter().flatten().any(is_privileged);
        cri.pod(handler)
            .security(|security| security.privileged = privileged)
            .namespaces(|namespaces| namespaces.pid = pid.into())
            .run()
    }

    /// A container of the pod, by its name.
    ///
    /// # Errors
    /// There is none, or an entry that is not known here.
    pub fn container<'a>(&self, pod: &'a Pod<'a>, name: &str) -> Result<Builder<'a>> {
        let containers = [
            self.containers("initContainers")?,
            self.containers("containers")?,
        ];
        let found = containers
            .into_iter()
            .flatten()
            .find(|container| container["name"] == name)
            .with_context(|| format!("no container {name}"))?;
        let Value::Object(mut container) = found else {
            bail!("{found}");
        };
        for known in ["name", "imagePullPolicy", "ports", "readinessProbe"] {
            container.remove(known);
        }
        let image = text_of(&container.remove("image").context("no image")?)?;
        let command = strings(container.remove("command"))?;
        let args = strings(container.remove("args"))?;
        let mounts = list(container.remove("volumeMounts"))?
            .iter()
            .map(|mount| self.mount(mount))
            .collect::<Result<Vec<_>>>()?;
        let security = security_context(container.remove("securityContext"))?;
        let limits = limits(container.remove("resources"))?;
        nothing_left(container)?;
        Ok(pod
            .container(command)
            .with(|config| {
                config.image = Some(v1::ImageSpec {
                    image,
                    ..Default::default()
                });
                config.args = args;
                config.mounts = mounts;
            })
            .security(|context| {
                *context = v1::LinuxContainerSecurityContext {
                    namespace_options: context.namespace_options.take(),
                    ..security
                }
            })
            .resources(|resources| *resources = limits))
    }

    fn containers(&self, kind: &str) -> Result<Vec<Value>> {
        list(self.spec.get(kind).cloned())
    }

    fn mount(&self, mount: &Value) -> Result<v1::Mount> {
        let name = text_of(&mount["name"])?;
        let volume = self.volumes.get(&name).with_context(|| name.clone())?;
        Ok(v1::Mount {
            container_path: text_of(&mount["mountPath"])?,
            host_path: volume.display().to_string(),
            ..Default::default()
        })
    }
}

fn is_privileged(container: &Value) -> bool {
    container["securityContext"]["privileged"] == true
}

fn nothing_left(object: Map<String, Value>) -> Result<()> {
    ensure!(object.is_empty(), "not known here: {object:?}");
    Ok(())
}

fn list(value: Option<Value>) -> Result<Vec<Value>> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list),
        Some(other) => bail!("not a list: {other}"),
    }
}

fn text_of(value: &Value) -> Result<String> {
    let text = value
        .as_str()
        .with_context(|| format!("not a text: {value}"))?;
    Ok(text.to_owned())
}

fn strings(value: Option<Value>) -> Result<Vec<String>> {
    list(value)?.iter().map(text_of).collect()
}

fn security_context(value: Option<Value>) -> Result<v1::LinuxContainerSecurityContext> {
    let mut result = v1::LinuxContainerSecurityContext::default();
    let Some(value) = value else {
        return Ok(result);
    };
    let number = |value: &Value| value.as_i64().map(|value| v1::Int64Value { value });
    for (key, value) in value.as_object().context("a security context")? {
        match (key.as_str(), value) {
            ("runAsUser", value) => result.run_as_user = number(value),
            ("runAsGroup", value) => result.run_as_group = number(value),
            // A kubelet's check before the start.
            ("runAsNonRoot", _) => {}
            ("readOnlyRootFilesystem", Value::Bool(yes)) => result.readonly_rootfs = *yes,
            ("allowPrivilegeEscalation", Value::Bool(yes)) => result.no_new_privs = !yes,
            ("privileged", Value::Bool(yes)) => result.privileged = *yes,
            ("capabilities", value) => {
                result.capabilities = Some(v1::Capability {
                    add_capabilities: strings(value.get("add").cloned())?,
                    drop_capabilities: strings(value.get("drop").cloned())?,
                    ..Default::default()
                });
            }
            ("seccompProfile", value) if value["type"] == "RuntimeDefault" => {
                result.seccomp = Some(v1::SecurityProfile {
                    profile_type: v1::security_profile::ProfileType::RuntimeDefault.into(),
                    ..Default::default()
                });
            }
            (key, value) => bail!("not known here: {key}: {value}"),
        }
    }
    Ok(result)
}

/// The period in which a quota of processor time is used up, in microseconds: a kubelet's.
const PERIOD: i64 = 100_000;

fn limits(value: Option<Value>) -> Result<v1::LinuxContainerResources> {
    let mut result = v1::LinuxContainerResources::default();
    let limits = value
        .map(|value| value["limits"].clone())
        .unwrap_or_default();
    for (key, value) in limits.as_object().into_iter().flatten() {
        let text = text_of(value)?;
        let number = |unit: &str| -> Result<i64> {
            let number = text.strip_suffix(unit).with_context(|| text.clone())?;
            Ok(number.parse()?)
        };
        match key.as_str() {
            "cpu" => {
                result.cpu_period = PERIOD;
                result.cpu_quota = number("m")? * PERIOD / 1000;
            }
            "memory" => result.memory_limit_in_bytes = number("Mi")? << 20,
            key => bail!("not known here: {key}"),
        }
    }
    Ok(result)
}
