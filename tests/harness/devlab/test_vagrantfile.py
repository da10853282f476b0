"""The Vagrantfile: what it sets for each provider, and what real Vagrant says of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tree_sitter_powershell
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_sitter import Language, Parser

from harness.devlab.machines import load_machines
from harness.errors import UsageError

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PROVIDERS = ("libvirt", "hyperv", "vmware_desktop", "virtualbox")
RUBY = shutil.which("ruby")
VAGRANT = shutil.which("vagrant")

needs_ruby = pytest.mark.skipif(RUBY is None, reason="no ruby: apt-get install ruby")

Call = tuple[str, list[Any], dict[str, Any]]


def ruby(*arguments: str | Path, env: Mapping[str, str] | None = None, stdin: str = "") -> str:
    done = subprocess.run(
        ["ruby", "-w", *map(str, arguments)],
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        input=stdin,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode == 1 and not done.stdout:
        raise UsageError(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def record(provider: str, machines: Path | None = None, **env: str) -> list[Call]:
    named = {"HV_MACHINES": str(machines)} if machines else {}
    text = ruby(HERE / "ruby/record.rb", ROOT / "Vagrantfile", provider, env={**named, **env})
    return [(path, arguments, named) for path, arguments, named in json.loads(text)]


def values(calls: list[Call], path: str) -> list[Any]:
    return [arguments[0] for called, arguments, _ in calls if called == path]


@pytest.fixture
def one(tmp_path: Path) -> Path:
    path = tmp_path / "machines.toml"
    path.write_text("[machines.a]\nmemory_mib = 16384\ncpus = 6\n", "utf-8")
    return path


@needs_ruby
@pytest.mark.parametrize(
    "path", [ROOT / "Vagrantfile", *sorted((ROOT / "vagrant").glob("*.rb"))], ids=lambda p: p.name
)
def test_ruby_compiles_it_without_a_warning(path: Path) -> None:
    assert ruby("-c", path).strip() == "Syntax OK"


@needs_ruby
def test_every_machine_is_windows_over_winrm_without_a_shared_folder(one: Path) -> None:
    calls = record("libvirt", one)
    assert values(calls, "config.vm.guest=") == ["windows"]
    assert values(calls, "config.vm.communicator=") == ["winrm"]
    assert values(calls, "config.winrm.transport=") == ["negotiate"]
    assert values(calls, "config.winrm.timeout=") == [1800]
    assert values(calls, "config.winrm.max_tries=") == [60]
    assert values(calls, "config.vm.boot_timeout=") == [1200]
    assert ("config.vm.synced_folder", [".", "/vagrant"], {"disabled": True}) in calls
    (bootstrap,) = [call for call in calls if call[0] == "a.vm.provision"]
    assert bootstrap[1] == ["winrm-https"]
    assert Path(bootstrap[2]["path"]).samefile(ROOT / "vagrant/bootstrap-winrm.ps1")


@needs_ruby
def test_the_machines_of_the_file_are_defined_in_its_order() -> None:
    listed = list(tomllib.loads((ROOT / "vagrant/machines.toml").read_text())["machines"])
    assert values(record("libvirt"), "config.vm.define") == listed


@needs_ruby
def test_libvirt_passes_the_processor_on_with_what_windows_needs(one: Path) -> None:
    calls = record("libvirt", one)
    assert values(calls, "libvirt.nested=") == [True]
    assert values(calls, "libvirt.cpu_mode=") == ["host-passthrough"]
    assert values(calls, "libvirt.memory=") == [16384]
    assert values(calls, "libvirt.cpus=") == [6]
    assert values(calls, "libvirt.machine_type=") == ["q35"]
    features = {
        named["name"]: named["state"]
        for path, _, named in calls
        if path == "libvirt.hyperv_feature"
    }
    assert features == dict.fromkeys(
        ["relaxed", "vapic", "vpindex", "synic", "stimer", "spinlocks"], "on"
    )
    assert ("libvirt.clock_timer", [], {"name": "hypervclock", "present": "yes"}) in calls
    assert values(calls, "libvirt.loader=") == []


@needs_ruby
def test_libvirt_takes_a_processor_model_without_tsx(one: Path) -> None:
    calls = record("libvirt", one, HV_CPU_MODEL="Skylake-Server-IBRS")
    assert values(calls, "libvirt.cpu_mode=") == ["custom"]
    assert values(calls, "libvirt.cpu_model=") == ["Skylake-Server-IBRS"]
    off = [named for path, _, named in calls if path == "libvirt.cpu_feature"]
    assert off == [{"name": name, "policy": "disable"} for name in ("rtm", "hle")]


@needs_ruby
def test_hyperv_has_fixed_memory_and_its_extensions(one: Path) -> None:
    calls = record("hyperv", one)
    assert values(calls, "hyperv.enable_virtualization_extensions=") == [True]
    assert values(calls, "hyperv.enable_automatic_checkpoints=") == [False]
    assert values(calls, "hyperv.memory=") == [16384]
    assert values(calls, "hyperv.linked_clone=") == [True]
    assert values(calls, "hyperv.ip_address_timeout=") == [300]
    assert not [path for path, _, _ in calls if "maxmemory" in path]


@needs_ruby
def test_hyperv_lets_inner_machines_have_their_own_mac_addresses(one: Path) -> None:
    calls = record("hyperv", one)
    (vmname,) = values(calls, "hyperv.vmname=")
    (command,) = [arguments for path, arguments, _ in calls if path == "system"]
    assert command[0] == "powershell.exe"
    assert command[-2:] == ["-VMName", vmname]
    assert Path(command[command.index("-File") + 1]).is_file()


@needs_ruby
@pytest.mark.parametrize("provider", ["libvirt", "vmware_desktop", "virtualbox"])
def test_the_others_run_nothing_on_the_outer_host(provider: str, one: Path) -> None:
    assert not [path for path, _, _ in record(provider, one) if path == "system"]


@needs_ruby
def test_vmware_desktop_virtualises_the_processor(one: Path) -> None:
    calls = record("vmware_desktop", one)
    vmx = {arguments[0]: arguments[1] for path, arguments, _ in calls if path.endswith(".vmx.[]=")}
    assert vmx == {
        "numvcpus": "6",
        "memsize": "16384",
        "vhv.enable": "TRUE",
        "vpmc.enable": "FALSE",
    }


@needs_ruby
def test_virtualbox_nests_and_says_hyper_v(one: Path) -> None:
    calls = record("virtualbox", one)
    assert values(calls, "virtualbox.customize") == [
        ["modifyvm", "id", "--nested-hw-virt", "on"],
        ["modifyvm", "id", "--paravirtprovider", "hyperv"],
    ]


@needs_ruby
@pytest.mark.parametrize("provider", ["vmware_desktop", "virtualbox"])
def test_behind_nat_https_is_forwarded_to_loopback_alone(provider: str, one: Path) -> None:
    (forwarded,) = [c for c in record(provider, one) if c[0] == "override.vm.network"]
    assert forwarded[2]["guest"] == 5986
    assert forwarded[2]["host_ip"] == "127.0.0.1"


@needs_ruby
@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_box_is_pinned_unless_hv_box_names_another(provider: str, one: Path) -> None:
    calls = record(provider, one)
    assert len(values(calls, "override.vm.box=")) == 1
    (version,) = values(calls, "override.vm.box_version=")
    assert version[0].isdigit()
    other = record(provider, one, HV_BOX="me/windows")
    assert values(other, "override.vm.box=") == ["me/windows"]
    assert values(other, "override.vm.box_version=") == []
    both = record(provider, one, HV_BOX="me/windows", HV_BOX_VERSION="1.2")
    assert values(both, "override.vm.box_version=") == ["1.2"]


def _read_by_ruby(text: str) -> dict[str, Any]:
    script = HERE / "ruby/machines.rb"
    machines: dict[str, Any] = json.loads(ruby(script, ROOT / "vagrant/machines.rb", stdin=text))
    return machines


_TEXT = st.text(
    st.characters(codec="ascii", categories=["L", "N", "P", "Zs"], exclude_characters="\"\\'"),
    max_size=8,
)
_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "windows": st.sampled_from(["2022", "2025"]),
        "cpus": st.integers(2, 256),
        "memory_mib": st.integers(8192, 1 << 20),
        "firmware": st.sampled_from(["bios", "uefi"]),
        "slots": st.integers(1, 256),
        "tags": st.lists(_TEXT, max_size=3),
    },
)


@needs_ruby
@settings(max_examples=15)
@given(defaults=_VALUES, machines=st.lists(_VALUES, min_size=1, max_size=3), comment=_TEXT)
def test_ruby_and_python_read_the_same_machines(
    defaults: dict[str, Any],
    machines: list[dict[str, Any]],
    comment: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    lines = [f"# {comment}", "[defaults]"]
    lines += [f"{key} = {json.dumps(value)}  # {comment}" for key, value in defaults.items()]
    for number, each in enumerate(machines):
        lines += ["", f"[machines.m-{number}]"]
        lines += [f"{key}={json.dumps(value)}" for key, value in each.items()]
    path = tmp_path_factory.mktemp("machines") / "machines.toml"
    path.write_text("\n".join(lines), "utf-8")
    expected = {name: machine.model_dump() for name, machine in load_machines(path).items()}
    assert _read_by_ruby(path.read_text("utf-8")) == expected


@needs_ruby
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[machines.a]\nmemry_mib = 9000\n", "2: memry_mib is not known; did you mean memory_mib?"),
        ("[machines.a]\nmemory_mib = 4096\n", "memory_mib is 8192 or more, not 4096"),
        ("[machines.a]\ncpus = 4\ncpus = 5\n", "3: cpus stands there twice"),
        ("[machines.a]\n[machines.a]\n", "stands there twice"),
        ("[machine.a]\n", "write [defaults] or [machines.NAME]"),
        ("cpus = 4\n", "a key before any table"),
        ('[machines.a]\ntags = ["a\\n"]\n', "without backslashes"),
        ("[machines.a]\ncpus = { a = 1 }\n", "write a number"),
        ("[machines.a]\nwhat\n", "neither [table] nor key = value"),
        ("[defaults]\n", "no machine in it"),
        ("[machines.fifteen-letters-a]\n[machines.fifteen-letters-b]\n", "first 15 characters"),
    ],
)
def test_a_mistake_in_the_machines_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _read_by_ruby(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "vagrant").glob("*.ps1")), ids=lambda p: p.name)
def test_powershell_parses_it(path: Path) -> None:
    tree = Parser(Language(tree_sitter_powershell.language())).parse(path.read_bytes())
    assert not tree.root_node.has_error


@pytest.mark.skipif(VAGRANT is None, reason="no vagrant: apt-get install vagrant vagrant-libvirt")
@pytest.mark.parametrize("model", ["", "Skylake-Server-IBRS"])
def test_real_vagrant_finds_it_valid_with_libvirt(model: str, tmp_path: Path) -> None:
    env = {
        **os.environ,
        "RUBYLIB": str(HERE / "winrmstub"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "HV_CPU_MODEL": model,
    }
    done = subprocess.run(
        ["vagrant", "validate"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if "could not be found" in done.stderr and "libvirt" in done.stderr:
        pytest.skip("this vagrant has no provider that loads here: apt-get install vagrant-libvirt")
    assert "validated successfully" in done.stdout, done.stdout + done.stderr


def real_configuration(provider: str, folder: Path, machines: Path) -> list[dict[str, Any]]:
    """What Vagrant's own class makes of the settings; skips where its library does not load."""
    if RUBY is None or VAGRANT is None:
        pytest.skip("no vagrant: apt-get install vagrant")
    done = subprocess.run(
        [RUBY, "-W0", HERE / "ruby" / "realconfig.rb", provider, folder, machines],
        env={**os.environ, "RUBYLIB": str(HERE / "winrmstub")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    if "missing" in document:
        pytest.skip(f"this vagrant is no library of {RUBY}: {document['missing']}")
    found: list[dict[str, Any]] = document["machines"]
    return found


@pytest.mark.parametrize(
    ("provider", "told"),
    [
        ("hyperv", ("16384", "6", '"enable_virtualization_extensions"=>true')),
        ("virtualbox", ('"--memory", "16384"', '"--cpus", 6', '"--nested-hw-virt", "on"')),
    ],
)
def test_vagrants_own_configuration_takes_every_setting(
    provider: str, told: tuple[str, ...], one: Path, tmp_path: Path
) -> None:
    (machine,) = real_configuration(provider, ROOT / "vagrant", one)
    assert machine["complaints"] == []
    for each in told:
        assert each in machine["told"]
    folder = tmp_path / "mistaken"
    shutil.copytree(ROOT / "vagrant", folder)
    text = (folder / "providers.rb").read_text()
    wrong = text.replace(
        f"def {provider}(settings, override, machine)",
        f"def {provider}(settings, override, machine)\n      settings.no_such_setting = 1",
    )
    assert wrong != text
    (folder / "providers.rb").write_text(wrong)
    (machine,) = real_configuration(provider, folder, one)
    assert "no_such_setting" in machine["complaints"][0]


@pytest.mark.skipif(VAGRANT is None, reason="no vagrant: apt-get install vagrant")
@pytest.mark.parametrize("provider", ["hyperv", "virtualbox"])
def test_real_vagrant_finds_what_surrounds_the_provider_valid(
    provider: str, tmp_path: Path
) -> None:
    """Neither runs here, so the provider's own block is left to the test above."""
    done = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=ROOT,
        env={
            **os.environ,
            "RUBYLIB": str(HERE / "winrmstub"),
            "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
            "VAGRANT_HOME": str(tmp_path / "home"),
            "VAGRANT_DEFAULT_PROVIDER": provider,
        },
        capture_output=True,
        text=True,
    )
    assert "validated successfully" in done.stdout, done.stdout + done.stderr
