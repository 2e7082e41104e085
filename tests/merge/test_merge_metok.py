"""METok's event-aware pooling."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from videoprune.errors import UsageError
from videoprune.merge.metok import METok
from videoprune.models.framing import with_rows
from videoprune.run import Events, Run
from videoprune.tokens import VisualTokens


def film(frames, grid, dtype=torch.float32):
    rows = torch.randn(frames * grid[0] * grid[1], 5, generator=torch.Generator().manual_seed(3)).to(dtype)
    return VisualTokens.from_frames(rows, torch.arange(frames, dtype=torch.float64), grid)


def run(lengths, relevance=None, key_events=1, **published):
    frames = sum(lengths)
    relevance = torch.linspace(1, 0, frames) if relevance is None else torch.tensor(relevance)
    events = Events(torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)))
    return Run(events.ranked(relevance, key_events), relevance, published=published)


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (1, 1), (3, 8)])
def test_pooling_is_the_average_over_each_block(grid):
    tokens = film(6, grid)
    # event 0 is key: frames 0 (key) and 1, 2; event 1: frame 3 (top) and 4; event 2 has the one frame 5
    pooled = METok(key_frames=1)(tokens, run([3, 2, 1])).check()
    for frame, stride in enumerate([1, 2, 2, 2, 4, 2]):
        image = tokens.features[tokens.frame == frame].T.reshape(1, 5, *grid)
        want = avg_pool2d(image, stride, ceil_mode=True, count_include_pad=False)[0].flatten(1).T
        mine = pooled.frame == frame
        assert torch.allclose(pooled.features[mine], want, atol=1e-5)
        assert bool((pooled.cell[mine] % stride == 0).all())
    assert pooled.position.tolist() == list(range(len(pooled)))
    assert int(pooled.weight.sum()) == len(tokens)


def test_key_frames_are_the_most_relevant_of_each_event():
    relevance = [0.1, 0.9, 0.9, 0.3, 0.2, 0.8, 0.8, 0.8]
    pooled = METok(key_frames=2)(film(8, (4, 4)), run([4, 4], relevance))
    assert torch.bincount(pooled.frame).tolist() == [4, 16, 16, 4, 1, 4, 4, 1]


def test_newlines_end_every_event_but_the_last():
    newline = torch.arange(5.0)
    pooled = METok()(film(6, (4, 4)), run([3, 2, 1], newline=newline)).check()
    added = (pooled.weight == 0).nonzero()[:, 0]
    assert len(added) == 2
    assert torch.equal(pooled.features[added], newline.expand(2, -1))
    assert pooled.frame[added].tolist() == [2, 4]
    assert pooled.frame[added + 1].tolist() == [3, 5]
    assert len(METok(newline=False)(film(6, (4, 4)), run([3, 2, 1], newline=newline))) == pooled.count


@pytest.mark.parametrize("at_most", [200, 90, 60, 37, 12, 11, 5, 1])
def test_the_cap_holds_and_hits_the_least_relevant_first(at_most):
    tokens = film(12, (4, 4))
    whole = METok(key_frames=2)(tokens, run([4, 4, 4]))
    capped = METok(key_frames=2, at_most=at_most)(tokens, run([4, 4, 4], newline=torch.ones(5))).check()
    assert capped.count <= at_most
    before, after = (torch.bincount(t.frame[t.weight > 0], minlength=12) for t in (whole, capped))
    assert bool((after <= before).all())
    if at_most >= whole.count:
        assert torch.equal(before, after)
    elif at_most >= 12:
        assert int(after.min()) >= 1
        assert int(after[0]) == int(before[0]) or at_most < 40  # the best frame of the key event goes last
    else:
        assert capped.count == at_most
        assert after[:1].tolist() == [1]


def test_a_share_is_a_limit_too():
    assert METok(keep=0.25)(film(12, (4, 4)), run([4, 4, 4])).count <= 48
    assert METok(keep=1).identity


def test_half_precision():
    pooled = METok()(film(6, (4, 4), torch.bfloat16), run([3, 2, 1], newline=torch.ones(5)))
    assert pooled.features.dtype == torch.bfloat16


def test_grids_that_are_not_full_are_refused():
    tokens = film(3, (4, 4))
    with pytest.raises(UsageError, match="put it before"):
        METok()(tokens.keep(torch.arange(40)), run([2, 1]))


@pytest.mark.parametrize("options", [{"key_frames": 1}, {"at_most": 2}])
def test_added_rows_stay_between_pooled_grids(options):
    """A [CLS] before each frame changes no pooled token, and leads its frame afterwards too."""
    tokens, question = film(4, (4, 4)), run([3, 1], [0.1, 0.9, 0.3, 0.5])
    cls = torch.randn(4, 5, generator=torch.Generator().manual_seed(4))
    mixed = METok(**options)(with_rows(tokens, list(cls[:, None])), question).check()
    alone = METok(**options)(tokens, question).check()
    added = mixed.weight == 0
    assert torch.equal(mixed.features[added], cls)
    assert torch.equal(mixed.features[~added], alone.features)
    assert torch.equal(mixed.frame[~added], alone.frame)
    assert mixed.frame.tolist() == sorted(mixed.frame.tolist())
    leads = torch.cat((torch.tensor([True]), mixed.frame[1:] != mixed.frame[:-1]))
    assert torch.equal(leads, added)
    assert mixed.position.tolist() == list(range(len(mixed)))


def test_a_question_is_needed():
    with pytest.raises(ValueError, match="relevance"):
        METok()(film(3, (2, 2)), Run(Events.single(3)))
    with pytest.raises(ValueError, match="film of 3"):
        METok()(film(3, (2, 2)), run([2, 2]))


@pytest.mark.parametrize(
    "bad", [{"strides": (1, 2)}, {"strides": (4, 2, 1)}, {"strides": (0, 1, 2)}, {"strides": "124"}, {"key_frames": 0}]
)
def test_refusals(bad):
    with pytest.raises(UsageError, match="given"):
        METok(**bad)


def test_strides_from_yaml():
    assert METok(strides=[1, 2, 2]).strides == (1, 2, 2)
