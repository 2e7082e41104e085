import itertools

import pytest
import torch

from tests.decode.fakes import checked, view
from videoprune.decode.metok import METok
from videoprune.errors import UsageError
from videoprune.run import Events, Run

TEXT = [*range(6), *range(30, 40)]


def run(layers=None):
    return Run(Events.single(4), published={} if layers is None else {"metok.layers": layers})


def views(depth, alive):
    made = [view(layer, layers=depth) for layer in range(depth)]
    for one in made:
        one.alive = torch.tensor(alive)
    return made


@pytest.mark.parametrize(
    ("published", "depth", "middle"), [((1, 3, 5), 8, range(1, 5)), (None, 28, range(3, 19)), (None, 6, range(1, 4))]
)
def test_the_middle_layers_keep_what_is_alive(published, depth, middle):
    decided = METok().start(run(published), depth).finish(views(depth, TEXT))
    for layer, kept in enumerate(decided):
        if layer in middle:
            assert checked(kept, 40).tolist() == [TEXT, TEXT]
        else:
            assert kept is None


def test_behind_another_prefill_method_its_survivors_stay():
    decided = METok().start(run((1, 3, 5)), 8).finish(views(8, sorted([*TEXT, 7, 12])))
    assert decided[1].index[0].tolist() == sorted([*TEXT, 7, 12])


def test_text_stays_even_where_alive_leaves_it_out():
    assert METok().start(run((1, 3)), 4).finish(views(4, [8]))[1].index[0].tolist() == sorted([*TEXT, 8])


def test_keep_thins_the_first_layers_evenly():
    decided = METok(keep=24).start(run((1, 3, 5)), 8).finish(views(8, TEXT))
    index = checked(decided[0], 40)[0].tolist()
    assert len(index) == 24
    assert set(TEXT) <= set(index)
    visual = [i for i in index if i not in TEXT]
    assert {b - a for a, b in itertools.pairwise(visual)} == {3}
    assert decided[1].index[0].tolist() == TEXT
    assert METok(at_most=4).start(run((1, 3)), 4).finish(views(4, TEXT))[0].index[0].tolist() == TEXT
    free = METok(at_most=4, protect_text=False).start(run((1, 3)), 4).finish(views(4, TEXT))
    assert [len(kept.index[0]) for kept in free] == [4] * 4
    assert all(kept.index[0, -1] == 39 for kept in free)


def test_it_acts_once():
    state = METok().start(run(), 28)
    assert state.after(view()) is None


@pytest.mark.parametrize(
    "settings", [{"layers": [3]}, {"layers": [9, 3]}, {"layers": [3, 28]}, {"layers": "39"}, {"keep": 0}]
)
def test_refusals(settings):
    with pytest.raises(UsageError):
        METok(**settings)
    with pytest.raises(UsageError, match="collide"):
        METok().start(run(), 2)
