"""Copies of a saved utility VM: each a machine of its own, made in a fraction of a boot."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import BridgeClosedError, HarnessError
from harness.hcs.document import Attachment, AttachmentType, ComputeSystem, lcow_document
from harness.hcs.service import EventType, SystemState
from harness.image.build import ensure_image
from harness.qemu.clones import TemplatePolicy
from harness.qemu.migration import MemoryKind
from harness.qemu.service import QemuComputeService
from harness.uvm import UtilityVm
from tests.harness.qemu.tinykernel import Action
from tests.integration.test_qemu_service import alive, gone_within
from tests.integration.test_qemu_service import document as tiny_document

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None,
        reason="qemu-system-x86_64 is not installed (apt install qemu-system-x86)",
    ),
]

OF_ITS_OWN = "cat /proc/sys/kernel/random/boot_id; hostname; head -c 16 /dev/urandom | od -An -x"


@pytest.fixture(scope="module")
def document() -> ComputeSystem:
    image = ensure_image()
    return lcow_document(
        owner="tests",
        kernel=str(image.vmlinux),
        initrd=str(image.initrd),
        memory_mb=256,
        processors=1,
        serial_pipe="console",
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
def service(cache: Path) -> Iterator[QemuComputeService]:
    with QemuComputeService(templates=TemplatePolicy(cache)) as made:
        yield made


def shell(vm: UtilityVm, command: str) -> str:
    done = vm.processes.start(["/bin/sh", "-c", command]).wait()
    assert done.exit_code == 0, done
    return done.text


def test_copies_answer_and_share_neither_entropy_nor_name_nor_time(
    service: QemuComputeService, document: ComputeSystem
) -> None:
    with (
        UtilityVm.boot(service, document) as first,
        UtilityVm.boot(service, document) as second,
    ):
        assert first.origin == second.origin == "template"
        own = [set(shell(vm, OF_ITS_OWN).splitlines()) for vm in (first, second)]
        assert len(own[0]) == len(own[1]) == 3
        assert not own[0] & own[1]
        for vm in (first, second):
            assert abs(int(shell(vm, "date +%s")) - time.time()) < 3
    assert service.enumerate() == []


def test_a_copy_is_quiet_until_it_is_started_and_then_served_like_any_other(
    service: QemuComputeService, document: ComputeSystem
) -> None:
    made = service.create("s", document)
    assert made.state is SystemState.CREATED
    assert made.details["from"] == "template"
    assert made.details["from_notes"] == []
    service.close("s")
    assert gone_within(made.details["pid"], 2.0)


def test_a_template_that_was_damaged_is_built_again(document: ComputeSystem, cache: Path) -> None:
    with QemuComputeService(templates=TemplatePolicy(cache)) as service:
        before = service.prepare_template(document)
        path = cache / before.key / "memory"
        size = path.stat().st_size
        path.write_bytes(os.urandom(4096))
        os.truncate(path, size)
        with UtilityVm.boot(service, document) as vm:
            assert vm.origin == "template"
            assert shell(vm, "echo up") == "up"
        after = service.prepare_template(document)
    assert (after.key, after.built) == (before.key, False)


def test_a_template_that_looks_right_and_does_not_load_is_built_again(
    service: QemuComputeService, document: ComputeSystem, cache: Path
) -> None:
    """Its manifest vouches for a state that QEMU refuses."""
    made = service.prepare_template(document)
    folder = cache / made.key
    manifest = json.loads((folder / "template.json").read_text())
    state = folder / "state"
    state.write_bytes(state.read_bytes()[:50_000])
    found = state.stat()
    manifest["files"]["state"] = [found.st_ino, found.st_size, found.st_mtime_ns]
    manifest["state_sha256"] = hashlib.sha256(state.read_bytes()).hexdigest()
    (folder / "template.json").write_text(json.dumps(manifest))
    with UtilityVm.boot(service, document) as vm:
        assert vm.origin == "template"
    assert (folder / "state").stat().st_size > 50_000


def test_without_shared_memory_the_whole_machine_is_migrated(
    document: ComputeSystem, cache: Path
) -> None:
    policy = TemplatePolicy(cache, kinds=(MemoryKind.STREAM,))
    with (
        QemuComputeService(templates=policy) as service,
        UtilityVm.boot(service, document) as first,
        UtilityVm.boot(service, document) as second,
    ):
        assert first.origin == second.origin == "migration"
        own = [shell(vm, OF_ITS_OWN).splitlines() for vm in (first, second)]
        assert not set(own[0]) & set(own[1])


def test_a_guest_that_makes_no_template_boots_cold_and_says_why(tmp_path: Path) -> None:
    agentless = tiny_document(tmp_path, Action.HALT)
    policy = TemplatePolicy(tmp_path / "cache", build_timeout_s=2)
    with QemuComputeService(templates=policy, accelerator="tcg") as service:
        made = service.create("s", agentless)
        assert made.details["from"] == "cold"
        notes = made.details["from_notes"]
        assert len(notes) == 2
        assert all("PREPARE" in note for note in notes)
        left = [path.suffix for path in (tmp_path / "cache").iterdir()]
        assert left == [".lock", ".lock"], "a failed build leaves nothing"
        shutil.rmtree(tmp_path / "cache")
        again = service.create("t", agentless)
        assert again.details["from"] == "cold"
        service.start("s")
    assert not (tmp_path / "cache").exists(), "what failed is not tried again"


def test_a_document_with_disks_boots_cold(tmp_path: Path, cache: Path) -> None:
    disk = tmp_path / "disk.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", disk, "64M"], check=True)
    attachment = Attachment(AttachmentType.VIRTUAL_DISK, str(disk))
    with QemuComputeService(templates=TemplatePolicy(cache), accelerator="tcg") as service:
        made = service.create("s", tiny_document(tmp_path, Action.HALT, root=attachment))
        assert made.details["from"] == "cold"
        assert made.details["from_notes"] == []


def test_a_spare_is_handed_out_at_once_and_is_a_machine_of_its_own(
    document: ComputeSystem, cache: Path
) -> None:
    with QemuComputeService(templates=TemplatePolicy(cache, spares=1)) as service:
        with UtilityVm.boot(service, document) as first:
            assert service.wait_for_spares(timeout_s=30)
            (spare,) = service.spare_pids()
            with UtilityVm.boot(service, document) as second:
                assert service.properties(second.system_id).details["pid"] == spare
                own = [set(shell(vm, OF_ITS_OWN).splitlines()) for vm in (first, second)]
                assert not own[0] & own[1]
                assert abs(int(shell(second, "date +%s")) - time.time()) < 3
        service.wait_for_spares(timeout_s=30)
        left = service.spare_pids()
    assert all(gone_within(pid, 2.0) for pid in left)


BUILDER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from harness.hcs.document import ComputeSystem
    from harness.qemu.clones import TemplatePolicy
    from harness.qemu.service import QemuComputeService
    import json

    document = ComputeSystem.from_json(json.loads(sys.argv[2]))
    with QemuComputeService(templates=TemplatePolicy(Path(sys.argv[1]))) as service:
        made = service.prepare_template(document)
        print(made.built, made.kind, flush=True)
    """
)


def start_builder(
    directory: Path, document: ComputeSystem, *prefix: str, **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", BUILDER, str(directory), json.dumps(document.to_json())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def emulators_below(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in found.split()]


def test_builders_at_the_same_time_build_once_and_a_killed_one_leaves_no_machine(
    document: ComputeSystem, tmp_path: Path
) -> None:
    directory = tmp_path / "templates"
    with start_builder(directory, document) as killed:
        deadline = time.monotonic() + 30
        machines: list[int] = []
        while not any(directory.glob("new-*/memory")) or not machines:
            assert time.monotonic() < deadline
            machines = emulators_below(killed.pid)
            time.sleep(0.02)
        time.sleep(0.3)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert all(gone_within(pid, 5.0) for pid in machines)
    builders = [start_builder(directory, document) for _ in range(3)]
    answers = [builder.communicate(timeout=90) for builder in builders]
    assert all(builder.returncode == 0 for builder in builders), answers
    assert sorted(output for output, _ in answers) == [
        "False file\n",
        "False file\n",
        "True file\n",
    ]
    left = sorted(path.name.partition("-")[0] for path in directory.iterdir())
    assert len(left) == 2, left  # the template and its lock


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_an_ordinary_user_builds_and_copies() -> None:
    image = ensure_image()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kernel, initrd = folder / "vmlinux", folder / "initrd"
        shutil.copy(image.vmlinux, kernel)
        shutil.copy(image.initrd, initrd)
        for path in (folder, kernel, initrd):
            path.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        os.chown(home, 65534, 65534)
        theirs = lcow_document(
            owner="nobody", kernel=str(kernel), initrd=str(initrd), memory_mb=256, processors=1
        )
        user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        user += ["--no-new-privs", "--inh-caps", "-all"]
        readable = subprocess.run([*user, sys.executable, "-c", "import harness.lab"])
        if readable.returncode != 0:
            pytest.skip("user 65534 cannot read this checkout")
        builder = start_builder(
            home / "templates",
            theirs,
            *user,
            HOME=str(home),
            LCOWLAB_CACHE=str(home / "cache"),
            XDG_RUNTIME_DIR="",
        )
        output, errors = builder.communicate(timeout=90)
    assert output == "True file\n", errors


def test_a_panic_ends_whoever_waits_with_the_panics_own_words(
    service: QemuComputeService, document: ComputeSystem
) -> None:
    with UtilityVm.boot(service, document) as vm:
        sleeper = vm.processes.start(["/bin/sleep", "1000"])
        failures: list[HarnessError] = []

        def wait() -> None:
            try:
                sleeper.wait(timeout_s=60)
            except HarnessError as error:
                failures.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        with contextlib.suppress(BridgeClosedError):  # it may be gone before it answers
            vm.guest.execute_process(None, args=["sh", "-c", "echo c > /proc/sysrq-trigger"])
        waiting.join(10)
        assert not waiting.is_alive()
        (failure,) = failures
        assert isinstance(failure, BridgeClosedError)
        assert "Kernel panic - not syncing: sysrq triggered crash" in str(failure)
        assert vm.wait_exit(timeout_s=10)
        kinds = [event.type for event in service.events(vm.system_id)]
        assert kinds == [EventType.STARTED, EventType.CRASHED, EventType.EXITED]


def test_a_kernel_that_stops_at_its_panic_is_ended(tmp_path: Path) -> None:
    panic = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"
    with QemuComputeService(accelerator="tcg") as service:
        made = service.create("s", tiny_document(tmp_path, Action.HALT, message=panic + "\n"))
        service.start("s")
        deadline = time.monotonic() + 10
        while service.properties("s").state is SystemState.RUNNING:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not alive(made.details["pid"])
        assert service.properties("s").details["exit_reason"] == panic
