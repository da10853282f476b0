"""The small initrd in front of a root disk: loads the disk's driver, finds it, and goes there.

A kernel whose SCSI driver is built in (Microsoft's) mounts `root=` itself. Distributions ship the
drivers as modules, so this initrd, busybox and a script, does what the kernel would: it mounts
the root read-only and runs its init.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from harness.errors import ImageBuildError
from harness.hcs.document import SCSI_CONTROLLER_GUIDS
from harness.image.cpio import Entry
from harness.image.initrd import BUSYBOX, MODULE_FOLDER
from harness.image.layout import Layout
from harness.image.modules import HYPERV, QEMU

_APPEAR_S = 20
# Names such as sda follow the order of discovery, which is no order once a machine has several
# disks (hcsshim #2215): the root is the disk of controller 0, LUN 0, as hcsshim reserves it.
_INIT = f"""\
#!/bin/busybox sh
b=/bin/busybox
for mount in proc:/proc sysfs:/sys devtmpfs:/dev; do
    $b mkdir -p "${{mount#*:}}"
    $b mount -t "${{mount%:*}}" "${{mount%:*}}" "${{mount#*:}}"
done
fail() {{
    echo "lcowlab: no root: $*" >/dev/console
    $b reboot -f # the machine ends with that line, not with the registers of a panic
}}
root='' init=/init
for word in $($b cat /proc/cmdline); do
    case $word in
    root=*) root=${{word#root=}} ;;
    init=*) init=${{word#init=}} ;;
    --) break ;;
    esac
done
machine=qemu
for device in /sys/bus/acpi/devices/*; do
    case ${{device##*/}} in VMBUS:* | VMBus:* | MSFT1000:*) machine=hyperv ;; esac
done
for module in $($b cat {MODULE_FOLDER}/$machine.root); do
    $b insmod {MODULE_FOLDER}/$module || fail "module $module"
done
controller=/sys/bus/vmbus/devices/{SCSI_CONTROLLER_GUIDS[0]}
find_disk() {{
    disk=
    case $root in
    /dev/sd?) ;;
    *)
        [ ! -b "$root" ] || disk=$root
        return 0
        ;;
    esac
    host=0
    if [ $machine = hyperv ]; then
        host=$(echo $controller/host*)
        host=${{host##*/host}}
    fi
    for entry in /sys/bus/scsi/devices/$host:0:0:0/block/*; do
        [ ! -b "/dev/${{entry##*/}}" ] || disk=/dev/${{entry##*/}}
    done
}}
tries=0
find_disk
until [ -n "$disk" ]; do
    [ $tries -lt {_APPEAR_S * 100} ] || fail "$root did not appear in {_APPEAR_S} s"
    tries=$((tries + 1))
    $b usleep 10000
    find_disk
done
$b mkdir -p /new
$b mount -t ext4 -o ro,noload "$disk" /new || fail "$disk cannot be mounted"
[ -x "/new$init" ] || fail "$disk has no $init"
$b umount /proc /sys /dev
exec $b switch_root /new "$init" "$@"
"""


def write_bootstrap(out: BinaryIO, root: Iterable[Entry], *, modules: Path) -> None:
    """Write the initrd: busybox is the root's, `modules` has the kernel's files and lists.

    Raises ImageBuildError.
    """
    layout = Layout()
    layout.character_device("/dev/console", major=5, minor=1)
    layout.character_device("/dev/null", major=1, minor=3)
    layout.file("/init", _INIT.encode(), mode=0o755)
    busybox = next((each.content for each in root if f"/{each.name}" == BUSYBOX), None)
    if busybox is None:
        raise ImageBuildError(f"the root file system has no {BUSYBOX}")
    layout.file(BUSYBOX, busybox, mode=0o755)
    for machine in (QEMU, HYPERV):
        listed = (modules / f"{machine.name}.root").read_bytes()
        layout.file(f"{MODULE_FOLDER}/{machine.name}.root", listed)
        for name in listed.decode().split():
            layout.file(f"{MODULE_FOLDER}/{name}", (modules / name).read_bytes())
    layout.write(out)
