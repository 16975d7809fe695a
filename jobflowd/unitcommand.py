"""`jobflowd install-unit`: the systemd units, for this user and for a whole machine.

The units are templates whose instance is a session's name: `jobflowd@NAME` goes on with the
session NAME as it was recorded by its first start. The files in `systemd/` are these texts with
usual paths; here they get the path of this installation. Returns texts; `cli.py` prints them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

UNIT_NAME: Final = "jobflowd@.service"
USER_COMMAND: Final = "%h/.local/bin/jobflowd"
SYSTEM_COMMAND: Final = "/usr/local/bin/jobflowd"

_HEAD: Final = """\
[Unit]
Description=jobflowd session %i
Documentation=man:systemd.service(5)
After=network-online.target
# Five crashes in ten minutes are no accident.
StartLimitIntervalSec=10min
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} start --session-id %i --dashboard off
# 3: some tasks failed, 4: stopped with work left. Both are ends, not accidents.
SuccessExitStatus=3 4
Restart=on-failure
RestartSec=5s
# What another start would only repeat: usage, program, session, permissions, configuration.
RestartPreventExitStatus=2 3 65 66 75 77 78
# The main loop answers; a daemon that hangs is killed, restarted, and loses nothing.
WatchdogSec=60s
# A session that another host holds may be waited for.
TimeoutStartSec=infinity
TimeoutStopSec=3min
# Local workers outlive their daemon and report to the next one.
KillMode=process
UMask=0077
LimitNOFILE=65536
"""

_USER_REST: Final = """\
# Not set on purpose: NoNewPrivileges, since the authentication of some batch systems is a setuid
# program; ProtectHome and PrivateTmp, since keys are at home and batch commands read /tmp.

[Install]
WantedBy=default.target
"""

_SYSTEM_REST: Final = """\

User=jobflow
StateDirectory=jobflow
StateDirectoryMode=0700
Environment=JOBFLOW_STATE_DIR=%S/jobflow
# Where inputs and outputs are; add yours with `systemctl edit jobflowd@NAME`. The control socket
# of a user without a runtime directory is in /tmp.
ReadWritePaths=/tmp

# Local workers run your program under these rules, too. With a batch system whose authentication
# is a setuid program (LSF: eauth), set NoNewPrivileges=no and RestrictSUIDSGID=no.
NoNewPrivileges=yes
ProtectSystem=strict
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
PrivateDevices=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
# Netlink tells ZeroMQ the addresses of this host; it aborts without.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
CapabilityBoundingSet=
AmbientCapabilities=

[Install]
WantedBy=multi-user.target
"""


def unit_text(*, system: bool, command: str) -> str:
    """The unit, with `command` as the path of jobflowd."""
    return _HEAD.format(command=command) + (_SYSTEM_REST if system else _USER_REST)


def this_command() -> str:
    """The path of this installation's jobflowd, as systemd wants it written."""
    script = Path(sys.executable).parent / "jobflowd"
    found = script if script.is_file() else Path(sys.argv[0])
    # Specifiers begin with a percent sign; blanks and quotes would end the word.
    text = str(found.absolute()).replace("%", "%%")
    return f'"{text}"' if any(char in text for char in " \t'\"\\") else text


def unit_path(*, system: bool) -> Path:
    """Where systemd looks for it."""
    if system:
        return Path("/etc/systemd/system") / UNIT_NAME
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home) / "systemd" / "user" / UNIT_NAME


def install(*, system: bool) -> Path:
    """Write the unit where systemd looks for it; returns the path. Raises OSError."""
    path = unit_path(system=system)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    with open(fd, "w", encoding="utf-8") as stream:
        # systemd reads units of other users' making only if everybody may.
        os.fchmod(stream.fileno(), 0o644)
        stream.write(unit_text(system=system, command=this_command()))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, path)
    return path


def next_steps(*, system: bool) -> list[str]:
    """What to type after the unit is in its place."""
    ctl = "systemctl" if system else "systemctl --user"
    steps = [
        f"{ctl} daemon-reload",
        f"{ctl} enable --now jobflowd@NAME      NAME: a session that was started once",
    ]
    if not system:
        steps.append("loginctl enable-linger              so that it lives on after your logout")
    return steps
