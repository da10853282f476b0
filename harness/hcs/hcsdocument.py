"""What only Windows' HCS needs in the document of a utility VM, and which files it is to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from harness.hcs.devices import ComPort
from harness.hcs.document import ComputeSystem

# hcsshim internal/uvm/create_lcow.go: no PCI without VPCI devices, no RAM disks, no ACPI timer
# (Hyper-V has a better clock), and hv_sock as the transport of vsock.
_COMMAND_LINE: Final = "pci=off brd.rd_nr=0 pmtmr=0 initcall_blacklist=virtio_vsock_init"
_PIPE: Final = "\\\\.\\pipe\\"
_CONSOLE: Final = "0"  # COM1, which is ttyS0


@dataclass(frozen=True, slots=True)
class HcsDocument:
    """A document as HCS takes it.

    `boot_files` must be readable by the virtual machine's account; `console` is the named pipe of
    COM1, "" without one.
    """

    system: ComputeSystem
    boot_files: tuple[str, ...]
    console: str


def for_hcs(system_id: str, document: ComputeSystem) -> HcsDocument:
    """Return the document with what Windows' virtual hardware needs.

    A serial port whose pipe is no path of Windows (other services take any word for "yes") gets
    one with the system's own name.
    """
    machine = document.virtual_machine
    if machine is None:
        return HcsDocument(document, (), "")
    files: tuple[str, ...] = ()
    chipset = machine.chipset
    direct = chipset.linux_kernel_direct if chipset else None
    if chipset and direct:
        files = tuple(file for file in (direct.kernel_file_path, direct.init_rd_path) if file)
        line = f"{direct.kernel_cmd_line} {_COMMAND_LINE}".strip()
        chipset = replace(chipset, linux_kernel_direct=replace(direct, kernel_cmd_line=line))
    devices = machine.devices
    console = ""
    if devices:
        ports = _with_pipes(system_id, devices.com_ports)
        console = ports[_CONSOLE].named_pipe if _CONSOLE in ports else ""
        devices = replace(devices, com_ports=ports)
    machine = replace(machine, chipset=chipset, devices=devices)
    return HcsDocument(replace(document, virtual_machine=machine), files, console)


def _with_pipes(system_id: str, ports: Mapping[str, ComPort]) -> dict[str, ComPort]:
    return {
        number: port
        if not port.named_pipe or port.named_pipe.startswith(_PIPE)
        else replace(port, named_pipe=f"{_PIPE}lcowlab-{system_id}-{number}")
        for number, port in ports.items()
    }
