"""Windows machines by Vagrant: every call is an argv list, run in the folder of the Vagrantfile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.devlab.inventoryfile import LabHost, write_whole
from harness.devlab.machines import HostStatus, Machine, load_machines
from harness.errors import InfrastructureError, MissingProgramError, UsageError

PROVIDERS: Final = ("libvirt", "hyperv", "vmware_desktop", "virtualbox")
MACHINES_VARIABLE: Final = "HV_MACHINES"
_HTTPS_PORT: Final = 5986
_BOOTSTRAP: Final = "winrm-https"
_PIN: Final = re.compile(r"pin:sha256:([0-9a-f]{64})\b")
_FIELD: Final = re.compile(r"^\s+(HostName|User|Password|Port) (.*?)\s*$", re.MULTILINE)
_TAIL: Final = 2000
_INSTALL: Final = (
    "take HashiCorp's package (developer.hashicorp.com/vagrant/install) and, for libvirt, "
    "vagrant plugin install vagrant-libvirt; or try without Windows: lcowlab lab up --local 2"
)
# What Ruby says where Debian's package, which leaves the gems for WinRM out, meets a Windows guest.
_NO_WINRM: Final = re.compile(r"cannot load such file -- winrm")


@dataclass(frozen=True, slots=True)
class WinRmAccess:
    """Where Vagrant reaches a machine's WinRM, and as whom."""

    address: str
    user: str
    password: str = field(repr=False)


def parse_winrm_config(text: str, *, machine: str) -> WinRmAccess:
    """Return what `vagrant winrm-config` printed. Raises InfrastructureError."""
    values = dict(_FIELD.findall(text))
    if not all(values.get(key) for key in ("HostName", "User", "Password")):
        raise InfrastructureError(f"vagrant winrm-config {machine} printed no address and user")
    return WinRmAccess(values["HostName"], values["User"], values["Password"])


def parse_status(text: str) -> tuple[HostStatus, ...]:
    """Return the machines of `vagrant status --machine-readable`, in its order."""
    states: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(",", 3)
        if len(parts) == 4 and parts[1] and parts[2] == "state":
            states[parts[1]] = parts[3]
    return tuple(HostStatus(name, "", state) for name, state in states.items())


class Vagrant:
    """The machines of the Vagrantfile in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether Vagrant has made a machine here."""
        return any((self.folder / ".vagrant" / "machines").glob("*/*/id"))

    def machines(self) -> dict[str, Machine]:
        """Return the machines by name. Raises UsageError."""
        named = os.environ.get(MACHINES_VARIABLE)
        return dict(load_machines(Path(named) if named else self._default_machines))

    @property
    def _default_machines(self) -> Path:
        return self.folder / "vagrant" / "machines.toml"

    def up(self, names: Sequence[str], *, provider: str | None) -> tuple[LabHost, ...]:
        """Start machines (none named: all) and return how each is reached over HTTPS.

        Raises UsageError, MissingProgramError, InfrastructureError.
        """
        machines = self.machines()
        chosen = self._chosen(names, machines)
        if provider is not None and provider not in PROVIDERS:
            raise UsageError(f"no provider {provider}; known are {', '.join(PROVIDERS)}")
        self.status()  # says what is missing before anything is downloaded
        with_provider = [] if provider is None else [f"--provider={provider}"]
        self._show(["up", *with_provider, *chosen])
        return tuple(self._host(name, machines[name]) for name in chosen)

    def halt(self, names: Sequence[str]) -> None:
        """Shut machines down; their disks stay."""
        self._show(["halt", *self._chosen(names, self.machines())])

    def destroy(self, names: Sequence[str]) -> None:
        """Remove machines with their disks, and the passwords that were written for them."""
        chosen = self._chosen(names, self.machines())
        self._show(["destroy", "--force", *chosen])
        for name in chosen:
            self._password_file(name).unlink(missing_ok=True)

    def status(self) -> tuple[HostStatus, ...]:
        """Return the state of every machine, in the provider's words."""
        return parse_status(self._ask(["status", "--machine-readable"]))

    def terminal(self, name: str) -> int:
        """Open a terminal on a machine that has an SSH server; return its exit code."""
        (chosen,) = self._chosen([name], self.machines())
        return subprocess.run([*self._program(), "ssh", chosen], cwd=self.folder).returncode

    def save_snapshot(self, name: str, snapshot: str) -> None:
        """Save the state of a machine; one of that name is an error."""
        self._show(["snapshot", "save", *self._chosen([name], self.machines()), snapshot])

    def restore_snapshot(self, name: str, snapshot: str) -> None:
        """Bring a machine back to a snapshot; nothing is provisioned again."""
        chosen = self._chosen([name], self.machines())
        self._show(["snapshot", "restore", "--no-provision", *chosen, snapshot])

    def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Delete a snapshot."""
        self._show(["snapshot", "delete", *self._chosen([name], self.machines()), snapshot])

    def list_snapshots(self, name: str) -> str:
        """Return what Vagrant lists for a machine."""
        return self._ask(["snapshot", "list", *self._chosen([name], self.machines())])

    def _chosen(self, names: Sequence[str], machines: dict[str, Machine]) -> tuple[str, ...]:
        for name in names:
            if name not in machines:
                raise UsageError(f"no machine {name}; there are {', '.join(machines)}")
        return tuple(dict.fromkeys(names)) or tuple(machines)

    def _host(self, name: str, machine: Machine) -> LabHost:
        access = parse_winrm_config(self._ask(["winrm-config", name]), machine=name)
        # The bootstrap may be repeated, and says the pin over the connection that Vagrant trusts.
        printed = self._ask(["provision", name, "--provision-with", _BOOTSTRAP])
        pin = _PIN.search(printed)
        if pin is None:
            raise InfrastructureError(
                f"{name}: the bootstrap of WinRM printed no pin: {printed.strip()[-_TAIL:]}"
            )
        port = _HTTPS_PORT
        if access.address in ("127.0.0.1", "localhost"):  # behind NAT
            port = self._forwarded_port(name)
        self._password_file(name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._password_file(name), access.password)
        return LabHost(
            name=name,
            address=access.address,
            port=port,
            user=access.user,
            password_file=self._password_file(name),
            pin=pin[1],
            slots=machine.slots,
            tags=tuple(machine.tags),
        )

    def _forwarded_port(self, name: str) -> int:
        text = self._ask(["port", name, "--guest", str(_HTTPS_PORT)]).strip()
        if not text.isascii() or not text.isdigit():
            raise InfrastructureError(f"{name}: vagrant port printed no port: {text[-_TAIL:]}")
        return int(text)

    def _password_file(self, name: str) -> Path:
        return (self.folder / ".vagrant" / "lcowlab" / f"{name}.password").absolute()

    def _program(self) -> list[str]:
        if not (self.folder / "Vagrantfile").is_file():
            raise UsageError(
                f"no Vagrantfile in {self.folder.absolute()}: go to a checkout of lcowlab, "
                "or name one with --path"
            )
        program = shutil.which("vagrant")
        if program is None:
            raise MissingProgramError("vagrant", install=_INSTALL)
        return [program]

    def _ask(self, arguments: Sequence[str]) -> str:
        done = subprocess.run(
            [*self._program(), *arguments],
            cwd=self.folder,
            env={**os.environ, "VAGRANT_NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode == 0:
            return done.stdout
        if _NO_WINRM.search(done.stderr):
            raise InfrastructureError(
                "this vagrant has no WinRM in it, as Debian's package has not: "
                f"gem install winrm winrm-fs winrm-elevated; or {_INSTALL}"
            )
        output = (done.stdout + done.stderr).strip()[-_TAIL:]
        raise _failure(arguments, done.returncode, output)

    def _show(self, arguments: Sequence[str]) -> None:
        # What takes minutes is shown as it goes; standard output stays free for our own.
        code = subprocess.run(
            [*self._program(), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        ).returncode
        if code != 0:
            raise _failure(arguments, code, "see above")


def _failure(arguments: Sequence[str], code: int, output: str) -> InfrastructureError:
    return InfrastructureError(
        f"vagrant {' '.join(arguments)} failed with exit code {code}: {output}"
    )
