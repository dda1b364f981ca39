"""Runs the tests of WebAssembly/wasi-testsuite as containers: the adapter that the suite's own runner
asks for. It wants CONTAINERD_ADDRESS and CONTAINERD_NAMESPACE, and ctr on PATH; see wasi-testsuite
beside this file.

The runner imports this file, and starts it as a program for each test: a bundle's configuration is
made, and ctr runs it with the standard streams as they are.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

TIMEOUT = 60.0


def get_name():
    return "lighter"


def get_version():
    return subprocess.run(
        ["containerd-shim-wasmtime-v1", "-v"], encoding="utf-8", capture_output=True, check=True
    ).stdout.split()[-1]


def get_wasi_versions():
    return ["wasm32-wasip1", "wasm32-wasip3"]


def get_wasi_worlds():
    return ["wasi:cli/command", "wasi:http/service"]


def get_timeout_seconds():
    # The first run of a test compiles it.
    return TIMEOUT


def compute_argv(test_path, args_env_root, proposals, wasi_world, wasi_version):
    args, env, root = args_env_root
    test = {
        "wasm": os.path.abspath(test_path),
        "args": args,
        "env": env,
        "root": os.path.abspath(root) if root else None,
        "network": "sockets" in proposals or "http" in proposals,
        "serves": wasi_world == "wasi:http/service",
    }
    return [sys.executable, os.path.abspath(__file__), json.dumps(test)]


def settings(test):
    """The guest's folders and network, in the place of wasmtime's options."""
    lines = [f"network.enabled = {str(test['network']).lower()}", "files.root = false"]
    if test["root"]:
        lines.append("files.preopens = ['/root-of-test:/']")
    if test["serves"]:
        lines += ["http.address = '127.0.0.1'", f"http.port = {test['port']}"]
    return "\n".join(lines)


def configuration(test, rootfs, name):
    """The OCI configuration of a container that has the test and its folder."""
    # Found on the path that there is without PATH, so that its first argument is its name, as with wasmtime.
    program = os.path.basename(test["wasm"])
    binds = {f"/bin/{program}": test["wasm"]}
    if test["root"]:
        binds["/root-of-test"] = test["root"]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    ]
    for to, source in binds.items():
        mounts.append({"destination": to, "type": "bind", "source": source, "options": ["rbind"]})
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": [program, *test["args"]],
            "env": [f"{key}={value}" for key, value in test["env"].items()],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
        },
        "root": {"path": rootfs},
        "mounts": mounts,
        "linux": {
            "cgroupsPath": f"/{os.environ['CONTAINERD_NAMESPACE']}/{name}",
            # The runner is on the machine's loopback interface.
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
        },
    }


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def tell_address(port, child):
    """As wasmtime serve: the address, on the standard error, as soon as it can be reached."""
    while child.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.01)
            continue
        print(f"Serving HTTP on http://127.0.0.1:{port}/", file=sys.stderr, flush=True)
        return


def main():
    test = json.loads(sys.argv[1])
    test["port"] = free_port() if test["serves"] else 0
    with tempfile.TemporaryDirectory(prefix="wasi-testsuite-") as folder:
        name = f"wasi-testsuite-{os.getpid()}"
        rootfs = os.path.join(folder, "rootfs")
        os.mkdir(rootfs)
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(configuration(test, rootfs, name), file)
        with open(os.path.join(folder, "settings.toml"), "w", encoding="utf-8") as file:
            file.write(settings(test))
        child = subprocess.Popen(
            ["ctr", "run", "--rm", "--runtime", "io.containerd.wasmtime.v1"]
            + ["--runtime-config-path", file.name, "--config", f"{folder}/config.json", name]
        )
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, lambda number, _: child.send_signal(number))
        if test["serves"]:
            tell_address(test["port"], child)
        code = child.wait()
    sys.exit(code)


if __name__ == "__main__" and len(sys.argv) == 2 and sys.argv[1].startswith("{"):
    main()
