//! Pods under CRI: their life and their containers'.

use anyhow::Result;
use lighter_test::{
    cri::{Cri, WASMTIME},
    each_cri,
};

each_cri!(pod_of_both_kinds);

fn pod_of_both_kinds(cri: &Cri) -> Result<()> {
    let pod = cri.pod(WASMTIME).run()?;
    let guest = pod.container(["/tool.wasm", "args", "one"]).run()?;
    assert_eq!(guest.success()?, "/tool.wasm\nargs\none\n");
    let linux = pod.container(["/bin/echo", "from Linux"]).run()?;
    assert_eq!(linux.success()?, "from Linux\n");
    pod.end()
}
