from hypothesis import given
from hypothesis import strategies as st

from otkd.core.trial import Data, Model, Train, Trial
from otkd.sweep.cohorts import cohorts

TRAIN = Train(epochs=1)


def trials(seeds, methods):
    return [
        Trial(
            data=Data(name="digits"),
            student=Model(name="m"),
            objective={"ce": {"weight": float(m)}},
            train=TRAIN,
            seed=seed,
        )
        for seed in range(seeds)
        for m in range(methods)
    ]


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 5), st.one_of(st.just("auto"), st.integers(1, 8)))
def test_every_trial_is_in_one_cohort_of_its_own_kind(seeds, methods, slots, most):
    planned = trials(seeds, methods)
    made = cohorts(planned, slots, most)
    assert sorted(t.key for part in made for t in part) == sorted(t.key for t in planned)
    assert all(len({t.cohort for t in part}) == 1 for part in made)
    if most != "auto":
        assert max(map(len, made)) <= most


def test_auto_keeps_slots_busy():
    assert [len(part) for part in cohorts(trials(3, 6), 2)] == [3] * 6
    assert [len(part) for part in cohorts(trials(2, 6), 2)] == [6, 6]
    assert [len(part) for part in cohorts(trials(1, 6), 1)] == [6]
    assert cohorts([], 2) == []
