"""`jobflow`: the daemon and a view of it in one terminal, full-screen where that is possible.

The daemon runs in a process session of its own, so closing the terminal, or killing this wrapper,
leaves the run alive. The wrapper owns nothing but the view: it learns the session from the line
that the daemon writes when it is ready, shows progress, passes `q` and Ctrl-C on as signals, and
returns the daemon's exit code.

    once     q or Ctrl-C: a graceful end, and what is still being waited for
    twice    stop now
    thrice   leave the daemon to it and return

`jobflowd start --dashboard auto|on` becomes this wrapper at a terminal; the daemon itself is then
its child with `--dashboard off`. Its own arguments are read first; all others go to
`jobflowd start` unchanged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final

from jobflowctl import errors
from jobflowctl.client import Client
from jobflowctl.helm import STOPPING, STOPPING_NOW, Helm
from jobflowctl.output import Output
from jobflowctl.text import count, duration, safe, safe_lines, seconds
from jobflowctl.waiting import recorded
from jobflowctl.watch import can_draw, has_textual
from jobflowd import api, exitcodes

_READY_VARIABLE: Final = "JOBFLOW_READY_FD"
#: Without a terminal a line is written at this pace, or when the state changes.
_SPARSE_S: Final = 60.0
#: The daemon's last words, shown when it fails.
_LAST_WORDS: Final = 20
_CALL_TIMEOUT_S: Final = 2.0
_WAITED_FOR_MAX: Final = 3
_SIGNAL_GAP_S: Final = 0.2
#: Without the current directory on the path, from which `-c` would import before anything else.
_STARTER: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "from jobflowd.cli import main; sys.exit(main())"
)


_EPILOG: Final = f"""All other arguments are those of `jobflowd start`: see jobflowd start --help.

Examples:
  jobflow --program convert.py --program-args '{{"input_dir": "in"}}' --workers 4
  jobflow --session-id convert      goes on with what is recorded

{exitcodes.table("jobflow")}"""


@dataclass(frozen=True, slots=True)
class Wishes:
    """The wrapper's own arguments. Times in seconds."""

    view: bool
    refresh_s: float
    stale_s: float
    verbose: bool
    forwarded: tuple[str, ...]
    log_lines: int = 500


def parse(arguments: Sequence[str], *, terminal: bool) -> Wishes:
    """Split the command line. Exits (2) for a bad value, (0) for --help."""
    parser = argparse.ArgumentParser(
        prog="jobflow",
        allow_abbrev=False,
        description="Start a daemon and follow it in this terminal. q or Ctrl-C ends the run\n"
        "gracefully, a second one at once; closing the terminal leaves it running.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    parser.add_argument("--external-dashboard", choices=("auto", "on", "off"), default="on")
    parser.add_argument("--external-dashboard-refresh", type=seconds, default=2.0, metavar="TIME")
    parser.add_argument(
        "--external-dashboard-stale-timeout", type=seconds, default=10.0, metavar="TIME"
    )
    parser.add_argument("--external-dashboard-log-lines", type=int, default=500, metavar="N")
    parser.add_argument(
        "--supervisor-log-level",
        type=str.upper,
        choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
        default="WARNING",
        help="INFO and DEBUG also show what the daemon prints while it runs",
    )
    own, rest = parser.parse_known_args(list(arguments))
    if "--detach" in rest:
        parser.error("jobflow stays in the terminal; to detach, use: jobflowd start --detach")
    if rest[:1] == ["start"]:
        rest = rest[1:]
    wish = own.external_dashboard
    return Wishes(
        view=wish == "on" or (wish == "auto" and terminal),
        refresh_s=max(0.1, own.external_dashboard_refresh),
        stale_s=own.external_dashboard_stale_timeout,
        verbose=own.supervisor_log_level in ("DEBUG", "INFO"),
        forwarded=tuple(rest),
        log_lines=max(1, own.external_dashboard_log_lines),
    )


def daemon_command(wishes: Wishes) -> list[str]:
    """The daemon's command line. Ours come last, because the last one of a flag counts."""
    script = Path(sys.executable).parent / "jobflowd"
    start = [str(script)] if script.is_file() else ["-c", _STARTER]
    command = [sys.executable, *start, "start", *wishes.forwarded, "--dashboard", "off"]
    asked = any(word.split("=")[0] == "--telemetry-mode" for word in wishes.forwarded)
    return [*command, "--telemetry-mode", "file"] if wishes.view and not asked else command


class Supervisor:
    """One daemon process and the view of it. `run` does everything."""

    def __init__(
        self, command: Sequence[str], wishes: Wishes, output: Output, *, terminal: bool
    ) -> None:
        self._command = list(command)
        self._wishes = wishes
        self._output = output
        self._terminal = terminal
        self._place: api.SessionPlace | None = None
        self._log = ""
        self._client: Client | None = None
        self._ready = b""
        self._announced: dict[str, Any] = {}
        self._stops = self._stops_passed_on = 0
        self._terminated = self._terminations_passed_on = 0
        self._signal_at = 0.0
        self._full_screen = False
        self._hung_up = False
        self._last_words: list[str] = []
        self._shown_state: object = None
        self._last_state: object = None
        self._wakeup = -1
        self._show_at = 0.0
        self._sparse_at = 0.0
        self._heard_at = time.monotonic()
        self._stale_said = False

    def run(self) -> int:
        """Start the daemon, follow it to its end, return its exit code."""
        read_fd, write_fd = os.pipe()
        with tempfile.TemporaryFile() as printed, open(read_fd, "rb", buffering=0) as ready:
            # Appending, so that what was read can be cut off the front by truncating.
            words_fd = os.open(f"/proc/self/fd/{printed.fileno()}", os.O_WRONLY | os.O_APPEND)
            try:
                process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=words_fd,
                    stderr=words_fd,
                    start_new_session=True,
                    pass_fds=(write_fd,),
                    env={**os.environ, _READY_VARIABLE: str(write_fd)},
                )
            finally:
                os.close(write_fd)
                os.close(words_fd)
            with self._signals():
                left = self._watch(process, ready, printed)
        if self._client is not None:
            self._client.close()
        if left:
            # The interpreter would warn about a child that is still running; that is meant.
            process.returncode = 0
            return errors.EXIT_INTERRUPTED
        code = process.wait()
        return self._farewell(128 - code if code < 0 else code)

    # --- the loop ---------------------------------------------------------------------------

    def _watch(
        self, process: subprocess.Popen[bytes], ready: IO[bytes], printed: IO[bytes]
    ) -> bool:
        """Until the daemon ends (False) or we are to leave it (True)."""
        if not (self._terminal and self._wishes.view and can_draw() and has_textual()):
            with self._keys() as keys:
                return self._follow(process, ready, printed, keys)
        with self._keys() as keys:
            if self._follow(process, ready, printed, keys, until_ready=True):
                return True
        if self._place is not None and process.poll() is None:
            self._draw(process, printed)
        # The view may have failed; the run has not.
        with self._keys() as keys:
            return self._follow(process, ready, printed, keys)

    def _draw(self, process: subprocess.Popen[bytes], printed: IO[bytes]) -> None:
        """The full-screen view, until the daemon ends or is left."""
        from jobflowctl.watch.app import Dashboard
        from jobflowctl.watch.source import LiveSource

        assert self._place is not None
        helm = Helm(self, process, printed)
        self._full_screen = True
        try:
            Dashboard(
                LiveSource(self._place),
                interval_s=self._wishes.refresh_s,
                log_lines=self._wishes.log_lines,
                steering=helm,
            ).run()
        finally:
            self._full_screen = False

    def heed(self, process: subprocess.Popen[bytes], printed: IO[bytes]) -> bool:
        """Pass on what was asked for since the last time; True if the daemon is to be left."""
        if self._hung_up or self._stops > 2:
            return True
        if self._stops > self._stops_passed_on and time.monotonic() >= self._signal_at:
            # Two signals at once would arrive as one.
            self._signal_at = time.monotonic() + _SIGNAL_GAP_S
            self._stops_passed_on += 1
            self._stop(process, self._stops_passed_on)
        if self._terminated > self._terminations_passed_on:
            self._terminations_passed_on += 1
            process.send_signal(signal.SIGTERM)
        self._relay(printed)
        return False

    @property
    def hung_up(self) -> bool:
        """The terminal was closed."""
        return self._hung_up

    def ask_to_stop(self) -> int:
        """As if Ctrl-C had been pressed once more; how often that makes."""
        self._stops += 1
        return self._stops

    def _follow(
        self,
        process: subprocess.Popen[bytes],
        ready: IO[bytes],
        printed: IO[bytes],
        keys: IO[bytes] | None,
        *,
        until_ready: bool = False,
    ) -> bool:
        """Until the daemon ends (False) or we are to leave it (True), or until it is ready."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            selector.register(ready, selectors.EVENT_READ)
            if keys is not None:
                selector.register(keys, selectors.EVENT_READ)
            while process.poll() is None and not (until_ready and self._place is not None):
                pause = 0.2 if self._place is None else min(1.0, self._wishes.refresh_s)
                for key, _ in selector.select(pause):
                    if key.fileobj is ready and not self._read_ready(ready):
                        selector.unregister(ready)
                    elif key.fileobj is keys and keys is not None and not self._read_key(keys):
                        selector.unregister(keys)
                    elif key.fileobj == self._wakeup:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wakeup, 512)
                if self.heed(process, printed):
                    self._leave()
                    return True
                self._view()
        if until_ready:
            return False
        while self._read_ready(ready):
            pass
        self._relay(printed)
        return False

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Count signals instead of dying of them; a pipe wakes the loop."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = read_fd

        def note(number: int, _: FrameType | None) -> None:
            if number == signal.SIGINT:
                self._stops += 1
            elif number == signal.SIGTERM:
                self._terminated += 1
            elif number == signal.SIGHUP:
                self._hung_up = True

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
        before = [signal.signal(number, note) for number in numbers]
        wakeup = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            os.close(read_fd)
            os.close(write_fd)

    @contextlib.contextmanager
    def _keys(self) -> Iterator[IO[bytes] | None]:
        """The keyboard, key by key, if there is one; the terminal is put back in any case."""
        if not self._terminal:
            yield None
            return
        import termios
        import tty

        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
        tty.setcbreak(keyboard)
        try:
            with open(keyboard, "rb", buffering=0, closefd=False) as keys:
                yield keys
        finally:
            # A terminal that is gone needs no putting back.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(keyboard, termios.TCSADRAIN, before)

    # --- what comes in ----------------------------------------------------------------------

    def _read_ready(self, ready: IO[bytes]) -> bool:
        """Take lines of the daemon's start; False at their end."""
        data = ready.read(65536)
        if not data:
            return False
        *lines, self._ready = (self._ready + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    self._announce(message)
        return True

    def _announce(self, message: dict[str, Any]) -> None:
        if "waiting" in message:
            self._output.say(f"jobflow: waiting for {message['waiting']} ...")
            return
        self._announced = message
        if "session" not in message:
            return
        session, directory = str(message["session"]), Path(str(message.get("dir", "")))
        pid = message.get("pid")
        self._place = api.SessionPlace(
            session, directory, api.this_host(), pid if isinstance(pid, int) else None, None
        )
        self._client = Client(self._place)
        self._log = str(message.get("log", ""))
        self._output.session = session
        self._heard_at = time.monotonic()
        self._output.say(f"session  {session}  in {directory}")
        self._output.say(f"pid      {pid}, log {self._log}")
        self._output.say(f"more     jobflowctl -s {session} status | tasks | workers | scale N")
        how = "q or Ctrl-C" if self._terminal else "Ctrl-C"
        self._output.say(f"{how} ends the run; closing this terminal leaves it running")

    def _read_key(self, keys: IO[bytes]) -> bool:
        try:
            pressed = keys.read(64)
        except OSError:
            pressed = b""
        if not pressed:
            return False
        if b"q" in pressed.lower() and self._stops == 0:
            # A second q may be an echo of impatience; only Ctrl-C stops now.
            self._stops += 1
        return True

    def _relay(self, printed: IO[bytes]) -> None:
        """What the daemon prints: shown while it starts and if wished, kept for its end."""
        size = os.fstat(printed.fileno()).st_size
        if not size:
            return
        data = os.pread(printed.fileno(), size, 0)
        # What it prints between these two lines is lost; its log has everything.
        os.ftruncate(printed.fileno(), 0)
        lines = safe_lines(data.decode("utf-8", "replace"))
        if self._wishes.verbose and not self._full_screen:
            for line in lines:
                self._output.say(line)
        else:
            self._last_words = [*self._last_words, *lines][-_LAST_WORDS:]

    # --- what goes out ----------------------------------------------------------------------

    def _stop(self, process: subprocess.Popen[bytes], times: int) -> None:
        if not self._full_screen:
            self._output.say(STOPPING if times == 1 else STOPPING_NOW)
        self._shown_state = None
        process.send_signal(signal.SIGINT)

    def _leave(self) -> None:
        name = self._place.session if self._place else "the daemon"
        self._output.say(f"leaving {name} running")

    def _view(self) -> None:
        """A line per interval; without a terminal only now and then."""
        now = time.monotonic()
        if self._client is None or not self._wishes.view or now < self._show_at:
            return
        self._show_at = now + self._wishes.refresh_s
        try:
            body = self._client.call("status", timeout_s=_CALL_TIMEOUT_S)
        except errors.CtlError:
            self._silence(now)
            return
        self._heard_at, self._stale_said = now, False
        state = (body.get("state"), body.get("state_reason") if self._stops else None)
        drawn = {key: body.get(key) for key in ("state", "tasks", "workers")}
        if drawn == self._shown_state:
            return
        if not self._terminal and now < self._sparse_at and not self._state_moved(state):
            return
        self._shown_state, self._sparse_at = drawn, now + _SPARSE_S
        from jobflowctl.statusscreen import status_line

        self._output.line("watch", body, status_line(body, self._output.style()))
        if self._stops:
            self._show_waited_for()

    def _state_moved(self, state: object) -> bool:
        moved = state != self._last_state
        self._last_state = state
        return moved

    def _silence(self, now: float) -> None:
        silent = now - self._heard_at
        if silent >= self._wishes.stale_s and not self._stale_said:
            self._stale_said = True
            self._output.say(f"no answer from the daemon for {duration(silent)}; log {self._log}")

    def _show_waited_for(self) -> None:
        if self._client is None:
            return
        try:
            found = self._client.call("workers", {"limit": 1000}, timeout_s=_CALL_TIMEOUT_S)
        except errors.CtlError:
            return
        busy = [one for one in found.get("workers") or [] if one.get("running")]
        for one in busy[:_WAITED_FOR_MAX]:
            names = [safe(name) for name in one["running"][:_WAITED_FOR_MAX]]
            more = len(one["running"]) - len(names)
            text = ", ".join(names) + (f" and {more} more" if more else "")
            self._output.say(f"  waiting for {one.get('worker_id')} on {one.get('host')}: {text}")
        if len(busy) > _WAITED_FOR_MAX:
            self._output.say(f"  and for {count(len(busy) - _WAITED_FOR_MAX, 'worker')} more")

    def _farewell(self, code: int) -> int:
        """The last lines: the outcome, or why it failed."""
        outcome = recorded(self._place) if self._place is not None else None
        if outcome is not None:
            self._output.data("wait", outcome.body())
        if "error" in self._announced:
            self._output.say(str(self._announced["error"]))
        elif code not in (0, errors.EXIT_TASKS_FAILED, errors.EXIT_WORK_LEFT):
            for line in self._last_words:
                self._output.say(line)
            if self._log:
                self._output.say(f"the daemon ended with code {code}; its log: {self._log}")
        if self._place is not None:
            name = self._place.session
            if code == errors.EXIT_TASKS_FAILED:
                self._output.say(f"see why: jobflowctl -s {name} failures   (log: {self._log})")
            elif code == errors.EXIT_WORK_LEFT:
                self._output.say(f"go on with: jobflowd start --session-id {name}")
        return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Console script `jobflow`; returns the daemon's exit code."""
    terminal = sys.stdin.isatty() and sys.stderr.isatty()
    wishes = parse(sys.argv[1:] if arguments is None else arguments, terminal=terminal)
    return Supervisor(daemon_command(wishes), wishes, Output(), terminal=terminal).run()
