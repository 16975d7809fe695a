"""Fixtures of the fault tests. The helpers are `tests/faults/*.py`; they need no pytest."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A private home with a session to break; fails the test if a process outlives it."""
    bench = Bench(tmp_path)
    try:
        yield bench
        left = bench.clear()
    finally:
        bench.close()
    assert not left, f"processes left behind: {left}"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB. Root only: without, the test is skipped."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "disk"
    place.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"tmpfs cannot be mounted here: {done.stderr}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def fill(small_disk: Path) -> Callable[[], Path]:
    """`fill()` takes all the room of the small disk; returns the file to remove."""

    def fill_it() -> Path:
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue
        return ballast

    return fill_it


class FailingDisk:
    """A small ext4 on a loop device that can be told to have had an error."""

    def __init__(self, image: Path, place: Path) -> None:
        self.place = place
        self._image = image

    def mount(self) -> None:
        options = "loop,errors=remount-ro"
        subprocess.run(["mount", "-o", options, str(self._image), str(self.place)], check=True)

    def trigger(self) -> Path:
        """The kernel's own switch for an error of this file system (Linux 5.0 and newer)."""
        device = os.stat(self.place).st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        return Path(f"/sys/fs/ext4/{name}/trigger_fs_error")

    def fail(self) -> None:
        """From now on every write ends with EROFS, also through what is open."""
        self.trigger().write_text("1")

    def mend(self) -> None:
        """What an administrator does: unmount, check, mount."""
        # A process that was just killed gives up its memory, by which a bench finds it, before
        # its files, by which the mount is busy.
        deadline = time.monotonic() + 20
        unmount = ["umount", str(self.place)]
        while subprocess.run(unmount, check=False).returncode != 0:
            assert time.monotonic() < deadline, "the mount stays busy"
            time.sleep(0.05)
        subprocess.run(["e2fsck", "-fy", str(self._image)], check=False, capture_output=True)
        self.mount()


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[FailingDisk]:
    """Root and loop devices only: without, the test is skipped (an error with CI set)."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir(mode=0o700)
    with image.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    disk = FailingDisk(image, place)
    try:
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
        disk.mount()
        place.chmod(0o700)
        disk.trigger().stat()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no ext4 on a loop device here: {error}")
    yield disk
    subprocess.run(["umount", "-l", str(place)], check=True)
