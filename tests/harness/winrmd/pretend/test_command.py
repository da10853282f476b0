"""`lcowlab winrmd` serves a whole pretend host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from pypsrp.powershell import PowerShell, RunspacePool
from pypsrp.wsman import WSMan

from harness.winrmd.host import STATE_FILE


def test_the_command_serves_powershell_tools_and_facts(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "from harness.cli import main; main()", "winrmd"),
            *("--root", str(tmp_path), "--listen", "127.0.0.1:0", "--machine", "LAB7"),
            *("--user", "joe", "--password-env", "WORD"),
        ],
        env={**os.environ, "WORD": "secret word"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        port = int(url.removeprefix("http://127.0.0.1:").removesuffix("/wsman"))
        with (
            WSMan(
                "127.0.0.1",
                port=port,
                username="joe",
                password="secret word",
                auth="ntlm",
                ssl=False,
                no_proxy=True,
            ) as client,
            RunspacePool(client) as pool,
        ):
            shell = PowerShell(pool)
            shell.add_cmdlet("Get-Acl").add_parameter("LiteralPath", ["C:\\Windows"])
            (acl,) = shell.invoke()
            assert acl.adapted_properties["Sddl"].startswith("O:BAG:SYD:AI(")
        assert (tmp_path / "Windows" / "System32" / "icacls.exe").exists()
        assert '"LAB7"' in (tmp_path / STATE_FILE).read_text()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)
        assert not (tmp_path / "Windows" / "System32" / "icacls.exe").exists()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
