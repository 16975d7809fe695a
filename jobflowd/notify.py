"""Messages to systemd: one datagram to the socket it names, nothing without one.

Rule: never raises and never blocks; a daemon must not die of its supervisor. Called by the
daemon's loop (a watchdog ping from anywhere else would prove nothing) and by `detach.py`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(*lines: str, environ: Mapping[str, str] | None = None) -> bool:
    """Send `KEY=value` lines. True if systemd took them, False if there is no one to tell."""
    address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        # The abstract namespace is written with @ in the variable and NUL in the address.
        address = "\0" + address[1:]
    # A value with a line break would be a second message.
    text = "\n".join(line.replace("\n", " ") for line in lines)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode("utf-8", "replace"), address)
    except OSError:
        return False
    return True


def ready(status: str) -> bool:
    """The daemon serves: its database is open and its sockets are bound."""
    return notify("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")


def status(text: str) -> bool:
    """One line for `systemctl status`."""
    return notify(f"STATUS={text}")


def stopping(reason: str) -> bool:
    """First thing of a shutdown."""
    return notify("STOPPING=1", f"STATUS={reason}")


def alive(text: str) -> bool:
    """The loop turned, and one line for `systemctl status`."""
    return notify("WATCHDOG=1", f"STATUS={text}")


def extend_timeout(seconds: float) -> bool:
    """A long start or stop goes on for at least this long."""
    return notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")


def watchdog_interval_s(environ: Mapping[str, str] | None = None) -> float | None:
    """How often to call `watchdog`: a third of what systemd allows, None if it does not watch."""
    environ = os.environ if environ is None else environ
    limit, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (limit.isascii() and limit.isdigit() and int(limit) > 0):
        return None
    if pid and pid != str(os.getpid()):
        return None
    return int(limit) / 1e6 / 3
