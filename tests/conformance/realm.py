"""A Kerberos realm of our own on loopback: MIT's KDC, its database and keytab in one folder."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REALM = "LAB.TEST"
HOST = "localhost"  # tickets are for names
USER = "labadmin"
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_START_S = 20.0


@dataclass(frozen=True, slots=True)
class Realm:
    """A running KDC; `environment` is what makes Kerberos of this process use it."""

    keytab: Path
    password: str
    environment: Mapping[str, str]


def lacking() -> str:
    """Return what a realm needs and is not here; empty when all of it is."""
    for program, package in (
        ("krb5kdc", "krb5-kdc"),
        ("kdb5_util", "krb5-kdc"),
        ("kadmin.local", "krb5-admin-server"),
    ):
        if shutil.which(program, path=_PATH) is None:
            return f"{program} is not installed: apt-get install {package}"
    for module in ("gssapi", "krb5"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install lcowlab[kerberos]"
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def realm(folder: Path) -> Iterator[Realm]:
    """Give a realm with one user, and the keys of WSMAN, HTTP and host of this machine."""
    folder.mkdir()
    port = _free_port()
    (folder / "krb5.conf").write_text(
        f"""[libdefaults]
default_realm = {REALM}
dns_lookup_kdc = false
dns_lookup_realm = false
dns_canonicalize_hostname = false
rdns = false
[realms]
{REALM} = {{
    kdc = 127.0.0.1:{port}
}}
[domain_realm]
{HOST} = {REALM}
"""
    )
    (folder / "kdc.conf").write_text(
        f"""[realms]
{REALM} = {{
    database_name = {folder}/principal
    key_stash_file = {folder}/stash
    kdc_listen = 127.0.0.1:{port}
    kdc_tcp_listen = 127.0.0.1:{port}
}}
"""
    )
    keytab = folder / "keytab"
    password = secrets.token_urlsafe(16)
    environment = {
        "KRB5_CONFIG": str(folder / "krb5.conf"),
        "KRB5_KDC_PROFILE": str(folder / "kdc.conf"),
        "KRB5CCNAME": f"FILE:{folder}/tickets",
    }
    inside = {**os.environ, "PATH": _PATH, **environment}

    def run(*argv: str, said: str) -> None:
        subprocess.run(
            argv, input=said, env=inside, check=True, capture_output=True, text=True, timeout=60
        )

    master = secrets.token_urlsafe(16)
    run("kdb5_util", "create", "-s", "-r", REALM, said=f"{master}\n{master}\n")
    services = " ".join(f"{service}/{HOST}" for service in ("WSMAN", "HTTP", "host"))
    lines = [f"addprinc -randkey {each}" for each in services.split()]
    lines.append(f"ktadd -k {keytab} {services}")
    run("kadmin.local", "-r", REALM, said="\n".join([*lines, ""]))
    run("kadmin.local", "-r", REALM, "addprinc", USER, said=f"{password}\n{password}\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["krb5kdc", "-n", "-r", REALM],
            env=inside,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Realm(keytab, password, environment)
    finally:
        process.terminate()
        process.wait(timeout=20)
