"""Each check of `shoal doctor` detects its problem and names the remedy."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.doctor.checks import (
    GIB,
    Finding,
    ImportProbe,
    ProcessInfo,
    addresses_of,
    check_address_file,
    check_authentication,
    check_cpus,
    check_disk,
    check_fbgemm_variant,
    check_gpu,
    check_imports,
    check_memory,
    check_open_files,
    check_orphans,
    check_port,
    check_python,
    check_ray_address,
    check_ray_version,
    check_shared_memory,
    check_versions,
    host_and_port,
)
from cluster.doctor.probe import (
    cgroup_limits,
    diagnose,
    disk_space,
    has_token,
    installed_version,
    is_reachable,
    port_in_use,
    probe_imports,
    ray_temp_dir,
    read_text,
)

GOOD = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu": None, "fbgemm-gpu-cpu": "1.8.0", "ray": "2.60.0"}
ON_GPU = ImportProbe(cuda_build="13.0", devices=("H200",))


def test_a_long_path_is_shown_whole_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    remedy = "rm some/folder/ray/ray_current_cluster_with_a_long_name"
    monkeypatch.setattr("cluster.doctor.probe.diagnose", lambda: [Finding("left-overs", "problem", "stale", remedy)])
    done = CliRunner(env={"COLUMNS": "40"}).invoke(app, ["doctor"])
    assert done.exit_code == 2
    remedies = [line.split("│")[4].strip() for line in done.stdout.splitlines() if line.count("│") == 5]
    assert "".join(remedies) == remedy.replace(" ", "")


def has(finding: Finding, status: str, what: str, remedy: str) -> bool:
    """Whether a finding has this status, and mentions these words. Nothing is wrong without a remedy."""
    assert bool(finding.remedy) == (finding.status != "ok"), finding
    assert finding.status == status, finding
    assert what in finding.what, finding
    assert remedy in finding.remedy, finding
    return True


# ---- what is installed


def test_python_is_new_enough() -> None:
    assert has(check_python((3, 11, 7)), "ok", "3.11.7", "")
    assert has(check_python((3, 10, 14)), "problem", "needs 3.11", "python3.11")


@pytest.mark.parametrize(
    ("changed", "status", "what"),
    [
        ({}, "ok", "torchrec 1.8.0"),
        ({"torch": "2.11.0+cu130", "torchrec": "1.6.0", "fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.6.0"}, "ok", "2.11.0"),
        ({"torch": "2.12.1"}, "problem", "do not work together"),
        ({"fbgemm-gpu-cpu": "1.6.0"}, "problem", "known to work: 2.13/1.8/1.8 or 2.11/1.6/1.6"),
        (
            {"torchrec": None, "fbgemm-gpu-cpu": None},
            "problem",
            "not installed: torchrec, fbgemm-gpu-cpu or fbgemm-gpu",
        ),
    ],
)
def test_versions_fit_together(changed: dict[str, str | None], status: str, what: str) -> None:
    assert has(check_versions(GOOD | changed), status, what, "" if status == "ok" else "--no-deps")


@pytest.mark.parametrize(
    ("changed", "probe", "status", "what"),
    [
        ({}, ImportProbe(), "ok", "CPU build"),
        ({}, ON_GPU, "warning", "no GPU kernels"),
        ({"fbgemm-gpu": "1.9.0"}, ImportProbe(), "problem", "both installed"),
        ({"fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": None}, ImportProbe(), "problem", "libtorch_cuda.so"),
        ({"fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": None}, ImportProbe(cuda_build="13.0"), "warning", "sees no GPU"),
        ({"fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": None}, ON_GPU, "ok", "CUDA build"),
        ({"fbgemm-gpu-cpu": None}, ImportProbe(), "problem", "no build"),
    ],
)
def test_fbgemm_is_the_build_for_this_machine(
    changed: dict[str, str | None], probe: ImportProbe, status: str, what: str
) -> None:
    assert has(check_fbgemm_variant(GOOD | changed, probe), status, what, "" if status == "ok" else "pip uninstall -y")


def packages(folder: Path, **code: str) -> None:
    """Fakes of the packages, each a single module."""
    torch = "class cuda:\n device_count = staticmethod(lambda: 0)\n is_available = staticmethod(lambda: False)\n"
    sources = {"torch": torch + "class version:\n cuda = None\n", "fbgemm_gpu": "", "torchrec": ""} | code
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)


def test_healthy_packages_are_imported_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    probe = probe_imports()
    assert probe == ImportProbe()
    assert has(check_imports(probe)[0], "ok", "can be imported", "")
    assert has(check_gpu(probe), "ok", "no GPU visible", "")
    assert has(check_gpu(ON_GPU), "ok", "1 GPU(s): H200", "")


def test_the_wrong_wheel_is_recognised_by_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = "raise OSError('libtorch_cuda.so: cannot open shared object file: No such file or directory')"
    packages(tmp_path, fbgemm_gpu=error, torchrec="import fbgemm_gpu")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    findings = check_imports(probe_imports())
    assert [finding.what.split()[1] for finding in findings] == ["fbgemm_gpu", "torchrec"]
    for finding in findings:
        assert has(finding, "problem", "CUDA build of fbgemm with the CPU build", "pip uninstall -y")


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "signal 11 while importing fbgemm_gpu"),
        (
            "import os, sys\nprint('out of patience', file=sys.stderr)\nos._exit(3)",
            "exit code 3 while importing fbgemm_gpu",
        ),
        ("import time\ntime.sleep(60)", "was not done after 2 s"),
    ],
)
def test_a_crash_at_import_is_a_finding(code: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(tmp_path, fbgemm_gpu=code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = check_imports(probe_imports(timeout_seconds=2.0))
    assert has(finding, "problem", what, "reinstall them")


def test_ray_is_the_tested_one() -> None:
    assert has(check_ray_version("2.60.1"), "ok", "2.60.1", "")
    assert has(check_ray_version("2.44.0"), "warning", "2.44.0", "ray==2.60.0")
    assert has(check_ray_version(None), "problem", "not installed", "pip install 'shoal[cpu]'")
    assert installed_version("no-such-distribution-here") is None
    assert installed_version("pytest") == pytest.__version__


# ---- Ray's left-overs


def test_a_stale_address_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ray_current_cluster"
    assert has(check_address_file(str(file), read_text(file), False), "ok", "no address", "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        file.write_text(address + "\n")
        assert read_text(file) == address
        assert is_reachable(address)
        assert has(check_address_file(str(file), address, True), "ok", f"runs at {address}", "")
    assert not is_reachable(address)
    assert has(check_address_file(str(file), address, False), "problem", address, f"rm {file}")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("ray://head.local:10001", ("head.local", 10001)),
        ("http://127.0.0.1:8265/", ("127.0.0.1", 8265)),
        ("[::1]:6379", ("::1", 6379)),
        ("auto", None),
        ("host", None),
        ("host:port", None),
        ("host:99999", None),
        ("", None),
    ],
)
def test_addresses_are_taken_apart(address: str, parts: tuple[str, int] | None) -> None:
    assert host_and_port(address) == parts


def test_ray_address_must_answer() -> None:
    assert has(check_ray_address(None, False), "ok", "not set", "")
    assert has(check_ray_address("auto", False), "ok", "auto", "")
    assert has(check_ray_address("10.0.0.1:6379", True), "ok", "answers", "")
    assert has(check_ray_address("10.0.0.1:6379", False), "problem", "nothing answers", "unset RAY_ADDRESS")
    assert has(check_ray_address("nonsense", False), "problem", "form host:port", "unset RAY_ADDRESS")


def test_the_temporary_folder_is_rays() -> None:
    assert ray_temp_dir({}) == Path("/tmp/ray")
    assert ray_temp_dir({"RAY_TMPDIR": "/big"}) == Path("/big/ray")
    script = "import ray._common.utils as u; print(u.get_default_ray_temp_dir())"
    asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert ray_temp_dir(os.environ) == Path(asked)


def daemon(pid: int, parent: tuple[int, str], command: str, name: str = "raylet", user: str = "me") -> ProcessInfo:
    return ProcessInfo(pid, parent[0], parent[1], name, user, command)


INIT = (1, "init")


@pytest.mark.parametrize(
    ("one", "alive", "is_orphan"),
    [
        (daemon(7, INIT, "raylet --gcs-address=10.0.0.1:6379 --x"), [], True),
        (daemon(7, (812, "systemd"), "raylet --gcs-address=10.0.0.1:6379 --x"), [], True),
        (daemon(7, INIT, "raylet --gcs-address=10.0.0.1:6379 --x"), ["10.0.0.1:6379"], False),
        (daemon(7, INIT, "raylet --gcs-address=10.0.0.1:63791 --x"), ["10.0.0.1:6379"], True),
        (daemon(7, INIT, "gcs_server --gcs_server_port=6379", "gcs_server"), ["10.0.0.1:6379"], False),
        (daemon(7, INIT, "gcs_server --gcs_server_port=0", "gcs_server"), ["10.0.0.1:6379"], True),
        (daemon(7, (4711, "python"), "raylet --gcs-address=10.0.0.1:5000"), [], False),
        (daemon(7, (1, "python3"), "raylet --gcs-address=10.0.0.1:5000"), [], False),
        (daemon(7, INIT, "raylet --gcs-address=10.0.0.1:5000", user="other"), [], False),
    ],
    ids=["left", "user's init", "ray start", "other port", "head", "other head", "driver", "container", "other user"],
)
def test_orphans_are_distinguished_from_daemons_in_use(one: ProcessInfo, alive: list[str], is_orphan: bool) -> None:
    finding = check_orphans([one], "me", alive)
    if is_orphan:
        assert has(finding, "warning", f"{one.name} (pid 7)", "kill 7")
    else:
        assert has(finding, "ok", "none", "")


def test_a_cluster_with_another_temporary_folder_is_not_left_over() -> None:
    """Its head is noted nowhere, and `ray start` leaves its daemons to init; only they name its address."""
    session = "--session-name=session_1 --temp-dir=/scratch/ray"
    head = [
        daemon(7, (1, "init"), f"gcs_server --gcs_server_port=0 --node-ip-address=10.0.0.1 {session}", "gcs_server"),
        daemon(8, (1, "init"), f"raylet --gcs-address=10.0.0.1:47251 {session} --agent=--gcs-address=10.0.0.1:47251"),
    ]
    assert addresses_of(head) == ["10.0.0.1:47251"]
    assert has(check_orphans(head, "me", addresses_of(head)), "ok", "none", "")
    assert has(check_orphans(head, "me", []), "warning", "raylet (pid 8)", "kill 7 8")
    other = daemon(9, (1, "init"), "gcs_server --gcs_server_port=6380 --node-ip-address=10.0.0.2", "gcs_server")
    assert addresses_of([other]) == ["10.0.0.2:6380"]
    assert has(check_orphans([*head, other], "me", ["10.0.0.2:6380"]), "warning", "raylet (pid 8)", "kill 7 8")


def test_a_missing_token_is_found(tmp_path: Path) -> None:
    assert not has_token({}, tmp_path)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0")
    assert has_token({}, tmp_path)
    assert not has_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "elsewhere")}, tmp_path)
    assert has_token({"RAY_AUTH_TOKEN": "0"}, tmp_path / "nobody")
    head = ["10.0.0.1:6379"]
    assert has(check_authentication("token", True, head), "ok", "token", "")
    assert has(check_authentication("disabled", False, head), "ok", "disabled", "")
    assert has(check_authentication("token", False, []), "problem", "no token", "RAY_AUTH_TOKEN_PATH")
    assert has(check_authentication(None, False, []), "ok", "not set", "")
    assert has(check_authentication(None, True, head), "ok", "is sent", "")
    assert has(check_authentication(None, False, head), "warning", "no token", "copy ~/.ray/auth_token")


def test_a_port_in_use_is_found() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert port_in_use(port)
    assert not port_in_use(port)
    assert has(check_port(6379, "Ray's head", "--port", False, []), "ok", "free", "")
    assert has(check_port(6379, "Ray's head", "--port", True, ["10.0.0.1:6379"]), "ok", "running cluster", "")
    assert has(check_port(8265, "jobs", "--dashboard-port", True, []), "warning", "in use", "--dashboard-port=")


# ---- what the machine allows


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, (None, None)),
        ({"cpu.max": "150000 100000", "memory.max": "2147483648"}, (1.5, 2 * GIB)),
        ({"cpu.max": "max 100000", "memory.max": "max"}, (None, None)),
        (
            {
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "1073741824",
            },
            (2.0, GIB),
        ),
        (
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            (None, None),
        ),
    ],
    ids=["none", "v2", "v2 unlimited", "v1", "v1 unlimited"],
)
def test_limits_of_the_control_group_are_read(
    files: dict[str, str], limits: tuple[float | None, int | None], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cgroup_limits(tmp_path) == limits


def test_the_machine_is_large_enough() -> None:
    assert has(check_cpus(2, None), "ok", "2 CPUs", "")
    assert has(check_cpus(64, 4.0), "warning", "allows 4;", "at most 4")
    assert has(check_memory(16 * GIB, None), "ok", "16.0 GiB", "")
    assert has(check_memory(64 * GIB, 2 * GIB), "warning", "2.0 GiB (limit of the control group)", "num_workers = 1")
    assert has(check_shared_memory(None), "ok", "no /dev/shm", "")
    assert has(check_shared_memory((8 * GIB, 8 * GIB)), "ok", "8.0 GiB", "")
    assert has(check_shared_memory((GIB // 16, GIB // 16)), "warning", "0.1 GiB", "--shm-size")
    assert has(check_shared_memory((8 * GIB, GIB)), "warning", "1.0 GiB free", "delete")
    assert has(check_disk("disk", "/x", (100 * GIB, 50 * GIB), "another disk"), "ok", "/x: 50.0 of 100.0", "")
    assert has(check_disk("disk", "/x", (1000 * GIB, 40 * GIB), "another disk"), "warning", "95 %", "another disk")
    assert has(check_disk("disk", "/x", (20 * GIB, 4 * GIB), "another disk"), "warning", "4.0", "another disk")
    assert has(check_disk("disk", "/x", (20 * GIB, GIB // 2), "another disk"), "problem", "not enough", "another disk")
    assert has(check_disk("disk", "/x", None, "another disk"), "warning", "the free space is unknown", "another disk")
    assert has(check_open_files(65536, 65536), "ok", "65536", "")
    assert has(check_open_files(-1, -1), "ok", "no limit", "")
    assert has(check_open_files(1024, 1048576), "warning", "1024", "ulimit -n 65536")
    assert has(check_open_files(1024, 4096), "warning", "1024", "4096 (more needs an administrator)")


def test_the_disk_of_a_folder_yet_to_be_made_is_its_parents(tmp_path: Path) -> None:
    space = disk_space(tmp_path / "a" / "b")
    assert space is not None
    assert space[0] == (disk_space(tmp_path) or (0, 0))[0] > 0


# ---- the whole


def test_diagnose_ends_with_findings_in_a_broken_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(tmp_path, fbgemm_gpu="import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    for name, value in {
        "PYTHONPATH": str(tmp_path),
        "RAY_TMPDIR": str(tmp_path),
        "RAY_ADDRESS": "127.0.0.1:2",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent"),
    }.items():
        monkeypatch.setenv(name, value)
    findings = {finding.name: finding for finding in diagnose()}
    for name in ("imports", "ray left-overs", "RAY_ADDRESS", "authentication"):
        assert has(findings[name], "problem", "", "")
    assert all(bool(finding.remedy) == (finding.status != "ok") for finding in findings.values())


def test_the_doctor_imports_nothing_heavy() -> None:
    script = "import sys, cluster.doctor.probe; print(sorted({'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
