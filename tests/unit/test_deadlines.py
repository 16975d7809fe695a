"""Deadlines against a dict, and that renewing is cheap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobflowd.deadlines import Deadlines

KEYS = st.sampled_from(["a", "b", "c", "d"])
TIMES = st.integers(0, 20).map(float)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, TIMES),
        st.tuples(st.just("drop"), KEYS, st.none()),
        st.tuples(st.just("due"), st.none(), TIMES),
    ),
    max_size=60,
)


@given(STEPS)
def test_they_behave_as_a_dict_of_times(steps: list[tuple[str, str | None, float | None]]) -> None:
    real, model = Deadlines(), {}
    for what, key, at in steps:
        if what == "set":
            real.set(key, at)  # type: ignore[arg-type]
            model[key] = at
        elif what == "drop":
            real.drop(key)
            model.pop(key, None)
        else:
            taken = real.due(at)  # type: ignore[arg-type]
            expected = {key for key, one in model.items() if one <= at}
            assert set(taken) == expected
            assert [model[key] for key in taken] == sorted(model[key] for key in taken)
            for key in taken:
                del model[key]
        assert real.next() == min(model.values(), default=None)
        assert {key: real.get(key) for key in model} == model


def test_a_lease_renewed_a_thousand_times_costs_one_entry() -> None:
    deadlines = Deadlines()
    for at in range(1000):
        deadlines.set("lease", float(at))
    assert len(deadlines._heap) == 1
    assert deadlines.due(998.0) == []
    assert deadlines.due(999.0) == ["lease"]
