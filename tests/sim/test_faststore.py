"""The fast store is the real one, as far as anybody can see: compared after every operation."""

from __future__ import annotations

from typing import Any

import pytest

from jobflowd.model import Changes, Questions, Snapshot
from jobflowd.store import Store
from tests.sim.faststore import FastStore
from tests.sim.run import Simulation
from tests.sim.swarm import profile_of


class Both:
    """Does everything twice and compares the answers."""

    def __init__(self) -> None:
        self.fast = FastStore()
        self.real = Store(":memory:")
        self.real.open()
        self.compared = 0

    def _same(self, one: Any, other: Any) -> Any:
        assert one == other
        self.compared += 1
        return one

    def commit(self, changes: Changes) -> None:
        self.real.commit(changes)
        self.fast.commit(changes)

    def begin_epoch(self, recovery: Any = "adopt", *, wall: float) -> Snapshot:
        real = self.real.begin_epoch(recovery, wall=wall)
        return self._same(self.fast.begin_epoch(recovery, wall=wall), real)

    def load(self) -> Snapshot:
        return self._same(self.fast.load(), self.real.load())  # type: ignore[no-any-return]

    def lookup(self, questions: Questions) -> Any:
        return self._same(self.fast.lookup(questions), self.real.lookup(questions))

    def specs(self, task_rows: list[int]) -> Any:
        return self._same(self.fast.specs(task_rows), self.real.specs(task_rows))

    def close(self) -> None:
        self.real.close()


@pytest.mark.parametrize("seed", range(0, 60, 2))
def test_both_stores_tell_the_same_history(seed: int) -> None:
    profile = profile_of(seed)
    profile.sqlite = False
    simulation = Simulation(profile)
    both = simulation.manager.store = Both()
    try:
        simulation.run()
    finally:
        both.close()
    assert both.compared > 5
