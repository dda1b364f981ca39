//! What containerd is told so that it can run pods on this machine.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::IMAGE;
use crate::{
    Containerd, Settings, Version,
    version::{repository, tools},
};

/// Adds what CRI needs to the settings: the runtime handlers, as deploy/ has
/// them for users, and what is special here. Nobody on the machine may lower an
/// oom_score_adj (no CAP_SYS_RESOURCE), which CRI does unless it is restricted.
pub fn settings(version: Version, mut settings: Settings) -> Result<Settings> {
    let plugins = tools().join("cni/usr/lib/cni");
    ensure!(
        plugins.join("bridge").exists(),
        "{} is missing: run `make test`, or `test/setup/engines cni`",
        plugins.join("bridge").display()
    );
    let plugins = plugins.display();
    let deployed = repository().join("deploy/containerd");
    settings.cri = true;
    settings.network = true;
    if settings.whole_config.is_some() {
        return Ok(settings);
    }
    settings.config += &if version < Version::V2_1 {
        let file = deployed.join("1.x.toml");
        let handlers = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        format!(
            "[plugins.'io.containerd.grpc.v1.cri']\n\
             sandbox_image = '{IMAGE}'\n\
             restrict_oom_score_adj = true\n\
             netns_mounts_under_state_dir = true\n\
             stream_server_address = '127.0.0.1'\n\
             stream_server_port = '0'\n\
             stats_collect_period = 1\n\
             [plugins.'io.containerd.grpc.v1.cri'.cni]\n\
             bin_dir = '{plugins}'\n\
             conf_dir = '@FOLDER@/cni'\n\
             {handlers}"
        )
    } else {
        settings.imports.push(deployed.join("2.x.toml"));
        format!(
            "[plugins.'io.containerd.cri.v1.images']\n\
             stats_collect_period = 1\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\n\
             sandbox = '{IMAGE}'\n\
             [plugins.'io.containerd.cri.v1.runtime']\n\
             restrict_oom_score_adj = true\n\
             netns_mounts_under_state_dir = true\n\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\n\
             bin_dirs = ['{plugins}']\n\
             conf_dir = '@FOLDER@/cni'\n\
             [plugins.'io.containerd.grpc.v1.cri']\n\
             stream_server_address = '127.0.0.1'\n\
             stream_server_port = '0'\n"
        )
    };
    Ok(settings)
}

/// Describes the pods' network to the daemon: a bridge, of which the node has
/// an address too. All of it lies in the daemon's network namespace, so every
/// daemon can have the same.
pub fn write_network(engine: &Containerd) -> Result<()> {
    let description = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": "pods0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": engine.folder().join("cni-leases"),
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    let folder = engine.folder().join("cni");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("10-pods.conflist"), description.to_string())?;
    Ok(())
}
