"""Hostile bytes for every parser of what others wrote.

    python -m tests.security.fuzz --minutes 10          all parsers, reports inputs per second
    python -m tests.security.fuzz --only codec --seed 7
    python -m tests.security.fuzz --atheris -- -runs=1000000      guided by coverage, if installed

A parser must return or refuse by its own exception; anything else, more than a second for one
input, or memory that grows, is a finding, printed with the input in hex. `test_fuzz.py` runs a
fixed small number of each in every test run.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

if __package__:  # `python -m` from the root of the checkout
    sys.path.insert(0, str(Path(__file__).parent))

from peers import ID, beat, register

from jobflow_worker.codec import decode_frame, encode_frame
from jobflow_worker.messages import (
    MANAGER,
    WORKER,
    Ack,
    Assign,
    Assignment,
    Envelope,
    Failed,
    Finished,
    Held,
    Message,
    Register,
    Reject,
    Report,
    RequestWork,
    Returned,
    Shutdown,
    TaskFailed,
    TaskFinished,
    TaskReturned,
    Usage,
    Verdict,
    Welcome,
)
from jobflow_worker.sessionfiles import Beacon
from jobflow_worker.transport import mailfile
from jobflowd import api

SLOW_S = 1.0
#: What one input may add to the peak of memory at most.
GROWTH_BYTES_MAX = 256 * 1024 * 1024

#: Bytes that mean something to msgpack, JSON or a length field.
_SPICE = (
    b"\x00", b"\xff", b"\x80", b"\x90", b"\xa0", b"\xc0", b"\xc1", b"\xc4\xff",
    b"\xc6\x7f\xff\xff\xff", b"\xc7", b"\xc9\xff\xff\xff\xff", b"\xcb\x7f\xf0\0\0\0\0\0\0",
    b"\xcb\x7f\xf8\0\0\0\0\0\0",
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\0" * 7, b"\xdb\xff\xff\xff\xff", b"\xdc\xff\xff",
    b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xd4", b"\x91" * 40,
    b"\x81\xa0" * 20, b"[" * 40, b"{" * 40, b"\\ud800", b"1e999", b"-", b"\n", b"\x1b[31m", b"NaN",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A parser, what it may be given in good faith, and the exceptions that are its answers."""

    name: str
    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    refusals: tuple[type[BaseException], ...] = ()


class Finding(AssertionError):
    """A parser did something else than to answer or to refuse."""


def _frames(role: str, *messages: Message) -> tuple[bytes, ...]:
    sender, recipient = (ID, "") if role == WORKER else (MANAGER, ID)
    made = [
        Envelope(role, sender, recipient, number, 1.5, message)
        for number, message in enumerate(messages, 1)
    ]
    return (*(encode_frame([one]) for one in made), encode_frame(made))


def targets() -> list[Target]:
    """Everything that reads bytes of others."""
    usage = Usage(1.0, 0.5, 1024)
    held = (Held("t1", 1), Held("t2", 3))
    report = Report(1, 2, 3, 0, 4, running=held, waiting=held, settled=held, leaving="walltime")
    from_worker = _frames(
        WORKER,
        register("jf-1"),
        Register(1, 1, "1", "3", "h", 1, 2, "fs", "x" * 64, 3, "l", "j", held, 9.5),
        beat(),
        RequestWork(report),
        TaskFinished(0, (Finished("t1", 1, b"\x80", None, usage, "tail"),)),
        TaskFailed(0, (_failed(usage),)),
        TaskReturned(0, (Returned("t1", 1, "walltime", False),)),
    )
    from_manager = _frames(
        MANAGER,
        Welcome(1, 1, 0, "s", 10.0, 60.0),
        Assign(1, 2, 1, (Assignment("t1", 1, b"\x80", 5.0, None),)),
        Ack(1, 2, 1, 3, (Verdict(1, "accepted"),)),
        Shutdown(1, 3, 2, "done", False, 5.0),
        Reject(1, 0, 0, "version", "no"),
    )
    mail = tuple(
        mailfile.pack(list(frames), 7, mailfile.FLOW)
        for frames in ((), from_worker[:1], from_worker)
    )
    sealed = (*(_SEAL.put(one, "in/x") for one in mail), *mail)
    beacon = Beacon(1, "open", ("tcp://[::1]:5", "tcp://h:1"), "k" * 40, "p", 1.5, 9).encode()
    calls = (
        api.encode_call(1, "ping", {}),
        api.encode_call(2, "tasks", {"state": "failed", "limit": 10}),
        api.encode_call(3, "cancel", {"task_ids": ["a", "b"]}),
        api.encode_call("x", "scale", {"n": 5}),
    )
    return [
        Target("codec-worker", lambda data: decode_frame(data, sent_by=WORKER), from_worker),
        Target("codec-manager", lambda data: decode_frame(data, sent_by=MANAGER), from_manager),
        Target("mailbox", mailfile.unpack, mail, (mailfile.Torn,)),
        Target("mailbox-sealed", _sealed, mail, (mailfile.Torn,)),
        Target("mailbox-seal", _seal_opened, sealed, (mailfile.Torn, mailfile.Forged)),
        Target("admin", api.parse_call, calls, (api.BadRequest,)),
        Target("beacon", Beacon.decode, (beacon,), (ValueError,)),
    ]


def _failed(usage: Usage) -> Failed:
    """A failure with whatever fields the class has now."""
    values = {
        "task_id": "t1", "attempt": 1, "cause": "error", "error": "E: x", "traceback": "tb",
        "usage": usage, "output_tail": "out", "retryable": True, "exit_signal": "SIGSEGV",
        "exit_code": 3,
    }  # fmt: skip
    return Failed(**{name: values[name] for name in Failed._fields if name in values})


_SEAL = mailfile.Seal(b"0123456789abcdef")


def _seal_opened(data: bytes) -> object:
    """A mailbox as it is read: nothing that the seal's holder did not write may come out."""
    content = _SEAL.open(data, "in/x")
    if _SEAL.put(content, "in/x") != data:
        raise Finding(f"a seal was opened that is not ours\ninput {data.hex()}")
    return content


def _sealed(data: bytes) -> object:
    """A mailbox with a right checksum: the frames inside are what is tried."""
    mail = mailfile.unpack(mailfile.pack([data], 3, mailfile.BUSY))
    return [decode_frame(frame, sent_by=WORKER) for frame in mail.frames]


# --- mutation ---------------------------------------------------------------------------------


def mutated(rng: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """One of the seeds, spoiled in one to eight ways; sometimes nothing but noise."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 9)):
        at = rng.randrange(len(data) + 1)
        way = rng.randrange(7)
        if way == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif way == 1 and data:
            data[at % len(data)] = rng.randrange(256)
        elif way == 2:
            data[at:at] = rng.choice(_SPICE)
        elif way == 3:
            data[at : at + rng.randrange(1, 9)] = rng.choice(_SPICE)
        elif way == 4:
            del data[at : at + rng.randrange(1, 30)]
        elif way == 5:
            other = rng.choice(seeds)
            start = rng.randrange(len(other) + 1)
            data[at:at] = other[start : start + rng.randrange(60)]
        else:
            data[at:at] = data[max(0, at - rng.randrange(1, 40)) : at] * rng.randrange(1, 6)
    return bytes(data[:100_000])


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """The seeds as they are, then mutations without end."""
    yield from target.seeds
    rng = random.Random(f"{target.name}:{seed}")
    while True:
        yield mutated(rng, target.seeds)


def check(target: Target, data: bytes) -> None:
    """Raises `Finding` unless the parser answers or refuses, and soon."""
    begun = time.perf_counter()
    try:
        target.parse(data)
    except target.refusals:
        pass
    except Exception as error:
        raise Finding(
            f"{target.name}: {type(error).__name__}: {error}\ninput {data.hex()}"
        ) from error
    took = time.perf_counter() - begun
    if took > SLOW_S:
        raise Finding(f"{target.name}: {took:.1f} s for one input\ninput {data.hex()[:4000]}")


def run(
    target: Target, *, seed: int, count: int | None = None, seconds: float | None = None
) -> int:
    """Try inputs until the count or the time is used up; returns how many."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    give_up_at = time.monotonic() + seconds if seconds is not None else None
    tried = 0
    for data in inputs(target, seed):
        check(target, data)
        tried += 1
        if count is not None and tried >= count:
            break
        if give_up_at is not None and tried % 256 == 0 and time.monotonic() >= give_up_at:
            break
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    if grown > GROWTH_BYTES_MAX:
        raise Finding(f"{target.name}: the peak of memory grew by {grown / 2**20:.0f} MiB")
    return tried


def _guided(chosen: list[Target], rest: list[str]) -> int:
    try:
        import atheris  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        sys.stderr.write("atheris is not installed; run without --atheris\n")
        return 69

    def one(data: bytes) -> None:
        if data:
            check(chosen[data[0] % len(chosen)], data[1:])

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *rest], one)
    atheris.Fuzz()
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Hostile bytes for every parser.")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", default="", help="part of a target's name")
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("rest", nargs="*")
    args = parser.parse_args()
    chosen = [one for one in targets() if args.only in one.name]
    if args.atheris:
        return _guided(chosen, args.rest)
    seed = args.seed if args.seed is not None else random.randrange(1 << 32)
    sys.stdout.write(json.dumps({"seed": seed, "targets": [one.name for one in chosen]}) + "\n")
    for target in chosen:
        begun = time.monotonic()
        tried = run(target, seed=seed, seconds=60 * args.minutes / len(chosen))
        took = time.monotonic() - begun
        sys.stdout.write(f"{target.name:<16} {tried:>10,} inputs  {tried / took:>9,.0f}/s\n")
        sys.stdout.flush()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"no finding; peak of memory {peak_mib:.0f} MiB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
