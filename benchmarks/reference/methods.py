"""What each method chooses, as its paper or its released code goes about it, in plain vectorised torch.

Films are (F, N, D): F frames of N tokens on a square grid; `event` (F,) is each frame's event, ascending. Prefill functions
see one decoder layer: query (H, S, d), key (Hkv, S, d), the visual rows first..last, all rows behind them text.
"""

from __future__ import annotations

import math

import primitives as p
import torch
from torch import Tensor
from torch.nn import functional

# ------------------------------------------------------------------------------------------------------------ merge


def aim(film: Tensor) -> Tensor:
    """Two halvings of each frame."""
    for _ in range(2):
        film = p.merge_mean(film, p.bipartite(film, film.shape[1] // 2))
    return film


def divprune(film: Tensor, count: int) -> Tensor:
    """Max-min diversity over the whole film."""
    return p.farthest(film.flatten(0, 1), count)


def dycoke(film: Tensor, drop: float) -> list[Tensor]:
    """Windows of four frames: 1 and 3 against 0 and 2, then 2 against 0."""
    kept, stays = [], int(film.shape[1] * (1 - drop))
    for start in range(0, len(film) - 3, 4):
        one, two, three, four = film[start : start + 4]
        for frame, other in ((two, one), (four, three), (three, one)):
            alike = functional.cosine_similarity(frame, other, dim=-1)
            kept.append(frame[alike.topk(stays, largest=False).indices])
        kept.append(one)
    return kept


def evs(film: Tensor, count: int) -> Tensor:
    """The tokens that changed most."""
    score = torch.cat((torch.full(film.shape[1:2], 255.0), (1 - p.adjacent_cosine(film)).flatten()))
    return score.argsort(descending=True, stable=True)[:count].sort().values


def fastvid(film: Tensor, event: Tensor, keep: float, context: float = 0.4, period: int = 4) -> list[Tensor]:
    """Salient tokens of each frame, and anchors of every fourth frame that gather their event."""
    frames, tokens, width = film.shape
    budget = int(tokens * keep)
    anchors = int(budget * context)
    attention = (p.cosine(film, film.mean(1, keepdim=True))[..., 0] / 0.1).softmax(-1)
    salient = attention.topk(budget - anchors, dim=1).indices
    out = [film.gather(1, salient[..., None].expand(-1, -1, width)).flatten(0, 1)]
    distance = torch.cdist(film, film) / width**0.5
    density = (-distance.topk(4, dim=-1, largest=False).values.square().mean(-1)).exp() + torch.rand(
        frames, tokens
    ) * 1e-6
    denser = (density[:, None] > density[:, :, None]).float()
    largest = distance.flatten(1).amax(1)[:, None, None]
    score = (distance * denser + largest * (1 - denser)).amin(-1) * density
    for number in range(int(event[-1]) + 1):
        here = (event == number).nonzero()[:, 0]
        chosen = here.flip(0)[::period]
        rest = torch.ones(len(here), tokens, dtype=torch.bool).scatter_(1, salient[here], False)
        others = film[here][rest]
        each = max(1, anchors * len(here) // len(chosen))
        for frame in chosen.tolist():
            anchor = film[frame][score[frame].topk(min(each, tokens)).indices]
            slot = p.nearest(others, anchor)
            count = torch.bincount(slot, minlength=len(anchor)).float()
            share = (1 / (1 + count)).clamp(min=0.6)[:, None]
            out.append(share * anchor + (1 - share) * p.group_means(others, slot, len(anchor)))
    return out


def geo3dpruner(film: Tensor, points: Tensor, size: float, count: int) -> Tensor:
    """The whole attention between features, summed inside voxels and between them; then voxels in turn, eight a round."""
    rows = film.flatten(0, 1)
    attention = (p.cosine(rows, rows) / 0.1).softmax(1)
    voxel = (points / size).floor().long().unique(dim=0, return_inverse=True)[1]
    number = int(voxel.max()) + 1
    inside = (attention * (voxel[:, None] == voxel)).sum(0)
    chosen = torch.zeros(len(rows), dtype=torch.bool)
    for each in range(number):
        member = (voxel == each).nonzero()[:, 0]
        chosen[member[inside[member].topk(max(1, len(member) // 2)).indices]] = True
    index = chosen.nonzero()[:, 0]
    onto = torch.zeros(len(index), number).index_add_(1, voxel[index], attention[index][:, index])
    between = torch.zeros(number, number).index_add_(0, voxel[index], onto)
    left, order = torch.ones(number, dtype=torch.bool), []
    while left.any():
        total = between[left].sum(0).masked_fill(~left, -torch.inf)
        taken = total.topk(min(8, int(left.sum()))).indices
        left[taken] = False
        order.append(taken)
    rank = torch.empty(number, dtype=torch.int64)
    rank[torch.cat(order)] = torch.arange(number)
    return index[rank[voxel[index]].argsort()][:count]


def holitom(film: Tensor, event: Tensor, keep: float, threshold: float = 0.65) -> list[Tensor]:
    """Static places averaged over their event and clustered, moving ones by the attention that they receive."""
    tokens = film.shape[1]
    received = (p.cosine(film, film) / 0.1).softmax(-1).mean(1)
    out = []
    for number in range(int(event[-1]) + 1):
        part, weight = film[event == number], received[event == number]
        static = (p.adjacent_cosine(part) > threshold).all(0)
        still, moving = part[:, static].mean(0), part[:, ~static]
        count = math.ceil(keep * tokens)
        if still.shape[0]:
            clusters = max(1, round(keep * still.shape[0]))
            labels, centres = p.dpc_knn(still[None], clusters, min(7, still.shape[0]))
            out.append(0.6 * still[centres[0]] + 0.4 * p.group_means(still, labels[0], clusters))
        if moving.shape[1]:
            best = weight[:, ~static].topk(min(count, moving.shape[1]), dim=1).indices
            out.append(moving.gather(1, best[..., None].expand(-1, -1, film.shape[2])).flatten(0, 1))
    return out


def lrcp(film: Tensor, rank: int, count: int) -> Tensor:
    """What the leading components of a singular value decomposition explain least."""
    rows = film.flatten(0, 1)
    directions = p.principal_directions(rows, rank)
    centred = rows - rows.mean(0)
    return p.top((centred - centred @ directions @ directions.T).square().sum(1), count)


def metok_merge(
    film: Tensor, event: Tensor, relevance: Tensor, key_events: int = 3, key_frames: int = 6
) -> list[Tensor]:
    """Average pooling of each frame at the stride of its kind."""
    side = math.isqrt(film.shape[1])
    score = torch.stack([relevance[event == number].max() for number in range(int(event[-1]) + 1)])
    keys = set(score.topk(min(key_events, len(score))).indices.tolist())
    out = []
    for number in range(len(score)):
        frames = (event == number).nonzero()[:, 0]
        best = set(frames[relevance[frames].topk(min(key_frames, len(frames))).indices].tolist())
        for frame in frames.tolist():
            stride = 2 ** (2 - (number in keys) - (frame in best))
            grid = film[frame].T.reshape(1, -1, side, side)
            out.append(functional.avg_pool2d(grid, stride, ceil_mode=True, count_include_pad=False))
    return out


def prunevid(film: Tensor, event: Tensor, threshold: float = 0.8) -> list[Tensor]:
    """Places static over all pairs of frames of an event are averaged; static and moving sets are clustered to a half."""
    out = []
    for number in range(int(event[-1]) + 1):
        part = film[event == number]
        unit = part / part.norm(dim=-1, keepdim=True)
        pairs = torch.einsum("fnd,gnd->nfg", unit, unit)
        frames = len(part)
        mean = (pairs.sum((1, 2)) - frames) / max(1, frames * (frames - 1))
        static = (mean > threshold) & (frames > 1)
        sets = [part[:, static].mean(0), *part[:, ~static]]
        for tokens in sets:
            if len(tokens) <= 14:
                out.append(tokens)
            else:
                clusters = len(tokens) // 2
                labels = p.dpc_knn(tokens[None], clusters, 7)[0][0]
                out.append(p.group_means(tokens, labels, clusters))
    return out


def vflowopt_merge(film: Tensor, keep: float, threshold: float = 34.76, cell: float = 15.581) -> list[Tensor]:
    """Attention of each frame's context tokens; the least important merge cell by cell."""
    frames, tokens, _ = film.shape
    attention = (p.cosine(film, film) / 0.1).softmax(-1)
    received = attention.mean(1)
    context = received > threshold * received.mean(1, keepdim=True)
    context |= (received == received.amax(1, keepdim=True)) & ~context.any(1, keepdim=True)
    importance = ((attention * context[..., None]).sum(1) / context.sum(1, keepdim=True)).flatten()
    reduce = round(frames * tokens * (1 - keep))
    candidate = importance.topk(reduce + int(frames * tokens / cell**2), largest=False).indices
    side = math.isqrt(tokens)
    row, column = (candidate % tokens) // side, candidate % side
    number = (candidate // tokens * side + (row / cell).long()) * side + (column / cell).long()
    rows, out = film.flatten(0, 1), []
    for each in number.unique():
        member = candidate[number == each]
        weight = importance[member]
        out.append((weight[:, None] * rows[member]).sum(0) / weight.sum())
    return out


# ---------------------------------------------------------------------------------------------------------- prefill


def head_mean(query: Tensor, key: Tensor) -> Tensor:
    """(S, S) mean of the eager matrix over heads."""
    return p.eager_attention(query, key, query.shape[2] ** -0.5).mean(0)


def aim_prefill(query: Tensor, key: Tensor, first: int, last: int, count: int) -> Tensor:
    """PageRank on the sharpened matrix."""
    flow = p.pagerank(query, key, query.shape[2] ** -0.5 / 0.1, 5)
    return p.top(flow.square().mean(0).sqrt()[first:last], count)


def dart(hidden: Tensor, key: Tensor, first: int, last: int, count: int) -> Tensor:
    """Pivots by key norm; for each of them, in turn, the tokens least like it."""
    norm = key.transpose(0, 1).flatten(1).abs().sum(1)
    images = norm[first:last].topk(4).indices + first
    texts = norm[last:].topk(min(4, len(norm) - last)).indices + last
    taken, each = set(images.tolist()), (count - 4) // (4 + len(texts))
    for pivot in [*images.tolist(), *texts.tolist()]:
        alike = functional.cosine_similarity(hidden[pivot][None], hidden[first:last], dim=-1)
        for row in (alike.argsort() + first).tolist():
            if len(taken) - 4 >= each * 8:
                break
            if row not in taken:
                taken.add(row)
                each_left = len(taken) - 4
                if each_left % each == 0:
                    break
    return torch.tensor(sorted(taken))


def entropyprune(query: Tensor, first: int, last: int, count: int) -> Tensor:
    """Matrix entropy of every token's query heads by their singular values."""
    heads = query[:, first:last].transpose(0, 1)
    centred = heads - heads.mean(1, keepdim=True)
    spectrum = (torch.linalg.svdvals(centred).square() / heads.shape[1]).clamp(min=1e-10)
    return p.top(-(spectrum * spectrum.log()).sum(1), count)


def fastv(query: Tensor, key: Tensor, first: int, last: int, count: int) -> Tensor:
    """The last row of the eager matrix."""
    return p.top(head_mean(query, key)[-1, first:last], count)


def lvpruning(film: Tensor, text: Tensor, weights: dict[str, Tensor], heads: int, count: int) -> Tensor:
    """Two blocks of cross-attention from the film (N, D) to the text (T, D), each with a perceptron; keep minus remove."""
    rows, text = functional.layer_norm(film, film.shape[-1:]), functional.layer_norm(text, text.shape[-1:])
    for block in ("first", "second"):
        w = {name.removeprefix(f"{block}."): value for name, value in weights.items() if name.startswith(block)}
        query, key, value = (
            each @ w[f"{name}.weight"].T + w[f"{name}.bias"]
            for name, each in (("query", rows), ("key", text), ("value", text))
        )
        parts = []
        for part in range(heads):
            own = slice(part * query.shape[1] // heads, (part + 1) * query.shape[1] // heads)
            share = (query[:, own] @ key[:, own].T / (own.stop - own.start) ** 0.5).softmax(-1)
            parts.append(share @ value[:, own])
        rows = torch.cat(parts, dim=1) + query
        rows = functional.layer_norm(rows, rows.shape[-1:], w["feed.0.weight"], w["feed.0.bias"])
        rows = functional.silu(rows @ w["feed.1.weight"].T + w["feed.1.bias"]) @ w["feed.3.weight"].T + w["feed.3.bias"]
        rows = functional.layer_norm(rows, rows.shape[-1:], w["feed.4.weight"], w["feed.4.bias"])
    decided = rows @ weights["out.weight"].T + weights["out.bias"]
    return p.top(decided[:, 0] - decided[:, 1], count)


def atp(
    query: Tensor, key: Tensor, cell: Tensor, strides: tuple[int, ...], perceptron: object, first: int, last: int
) -> Tensor:
    """Mean logits of the film on itself and mean attention of the text on it, each by its z-score; even samples; thresholds."""
    wide = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    own = (query[:, first:last] @ wide[:, first:last].transpose(1, 2) * query.shape[2] ** -0.5).mean((0, 1))
    cross = p.eager_attention(query, key, query.shape[2] ** -0.5)[:, last:, first:last].mean((0, 1))
    scores = [((each - each.mean()) / each.std(correction=0)).sigmoid() for each in (own, cross)]
    redundancy = (scores[0] + scores[1]) / 2
    place = torch.zeros(last - first)
    for number, (row, column) in enumerate(cell.tolist()):
        for stride in strides:
            if (row - stride // 2) % stride == 0 and (column - stride // 2) % stride == 0:
                place[number] = 1 - 3 / stride**2
                break
    bounds = perceptron(torch.stack((own.mean(), cross.sum())))  # type: ignore[operator]
    return ((redundancy > bounds[0]) | (place > bounds[1])).nonzero()[:, 0]


def holitom_prefill(query: Tensor, key: Tensor, hidden: Tensor, first: int, last: int, count: int) -> Tensor:
    """FastV's choice; what is dropped joins the kept token most like it."""
    kept = fastv(query, key, first, last, count)
    states = hidden[first:last]
    slot = p.nearest(states, states[kept])
    slot[kept] = torch.arange(count)
    return p.group_means(states, slot, count)


def metok_prefill(query: Tensor, key: Tensor, event: Tensor, quota: Tensor, first: int, last: int) -> Tensor:
    """Mean of the text's rows of the eager matrix, the best of each event."""
    return p.top_per_group(head_mean(query, key)[last:, first:last].mean(0), event, quota)


def prunevid_prefill(query: Tensor, key: Tensor, frame: Tensor, quota: Tensor, first: int, last: int) -> Tensor:
    """Largest attention over heads and text rows, without a causal mask; the best of each frame."""
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    rows = (query[:, last:] @ key.transpose(1, 2) * query.shape[2] ** -0.5).softmax(-1)
    return p.top_per_group(rows[..., first:last].amax((0, 1)), frame, quota)


def pyramiddrop(query: Tensor, key: Tensor, first: int, last: int, count: int) -> Tensor:
    """One row, computed by itself."""
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    row = (query[:, -1:] @ key.transpose(1, 2) * query.shape[2] ** -0.5).softmax(-1)
    return p.top(row.mean((0, 1))[first:last], count)


def lazyllm(query: Tensor, key: Tensor, first: int, last: int, percentile: float) -> Tensor:
    """One row, computed by itself, and its percentile over the rows first..last."""
    score = p.attention_rows_alone(query, key, key.shape[1] - 1).mean((0, 1))[first:last]
    return (score >= score.quantile(percentile / 100)).nonzero()[:, 0]


def sparsevlm(query: Tensor, key: Tensor, hidden: Tensor, first: int, last: int, count: int) -> Tensor:
    """Raters among the text, their rows of the eager matrix, and the clustering of a third of what is dropped."""
    share = (hidden[first:last] @ hidden[last:].T).softmax(1).mean(0)
    raters = (share > share.mean()).nonzero()[:, 0] + last
    score = head_mean(query, key)[raters, first:last].mean(0)
    order = score.argsort(descending=True)
    pool = order[count : count + int(0.3 * (len(order) - count)) + 1]
    clusters = len(pool) // 10 + 1
    states = hidden[first:last]
    labels = p.dpc_knn(states[pool][None], clusters, 5)[0][0]
    return torch.cat((states[order[:count].sort().values], p.group_means(states[pool], labels, clusters)))


def topv(source: Tensor, target: Tensor, cell: Tensor, count: int, iterations: int = 1) -> Tensor:
    """Optimal transport of each frame: source, target (F, N, D), cell (N, 2)."""
    distance = torch.cdist(source, target)
    low, high = distance.amin((1, 2), keepdim=True), distance.amax((1, 2), keepdim=True)
    gap = torch.cdist(cell, cell).square()
    away = (cell - cell.mean(0)).norm(dim=1)
    cost = (distance - low) / (high - low) + 1 - (-gap / 200).exp() + 0.01 * (away / away.max())[:, None]
    ones = torch.ones(source.shape[:2])
    return p.top(p.sinkhorn(cost, ones, ones, 0.1, iterations).flatten(), count)


def transprune(
    query: Tensor, key: Tensor, pairs: list[tuple[Tensor, Tensor]], layers: int, first: int, last: int, count: int
) -> Tensor:
    """Transition variation of two modules in some layers, and the text's attention."""
    total = torch.zeros(len(pairs[0][0]))
    for _ in range(layers):
        for before, after in pairs:
            size = after.norm(dim=-1) / before.norm(dim=-1)
            total = total + size * (1 - functional.cosine_similarity(after, before, dim=-1)).softmax(0)
    changed = total[first:last]
    rows = p.attention_rows_alone(query, key, last).mean((0, 1))[first:last]
    return p.top(changed / changed.sum() + rows / rows.sum(), count)


# ----------------------------------------------------------------------------------------------------------- decode


def a2sf(query: Tensor, key: Tensor, forgetting: float, recent: int, count: int) -> Tensor:
    """Every row's attention with its forgetting factor, a choice a head."""
    matrix = p.eager_attention(query, key, query.shape[2] ** -0.5)
    weights = forgetting ** torch.arange(key.shape[1] - 1, -1, -1.0)
    score = (weights[:, None] * matrix).sum(1).view(key.shape[0], -1, key.shape[1]).sum(1)
    score[:, -recent:] = torch.inf
    return score.topk(count, dim=1).indices.sort(1).values


def h2o(query: Tensor, key: Tensor, count: int) -> Tensor:
    """Column sums of the eager matrix, half of the budget for the last entries."""
    matrix = p.eager_attention(query, key, query.shape[2] ** -0.5)
    score = matrix.sum(1).view(key.shape[0], -1, key.shape[1]).sum(1)
    score[:, -(count // 2) :] = torch.inf
    return score.topk(count, dim=1).indices.sort(1).values


def snapkv(query: Tensor, key: Tensor, window: int, kernel: int, count: int) -> Tensor:
    """The window's rows by themselves, pooled along the entries."""
    rows = p.attention_rows_alone(query, key, key.shape[1] - window)
    score = rows[..., :-window].mean(1).view(key.shape[0], -1, key.shape[1] - window).mean(1)
    score = functional.avg_pool1d(score, kernel, 1, kernel // 2)
    best = score.topk(count - window, dim=1).indices.sort(1).values
    return torch.cat((best, torch.arange(key.shape[1] - window, key.shape[1]).expand(len(best), -1)), 1)


def pagedeviction(keys: Tensor, values: Tensor, count: int) -> Tensor:
    """Value norm over key norm."""
    return p.top((values.norm(dim=-1) / keys.norm(dim=-1)).mean(0), count)


def dycoke_decode(query: Tensor, key: Tensor, text: Tensor, count: int) -> Tensor:
    """The last row of one layer for the layers behind it."""
    row = p.attention_rows_alone(query, key, key.shape[1] - 1).mean((0, 1))
    return p.top(row.masked_fill(text, torch.inf), count)


# ----------------------------------------------------------------------------------------------------------- encode


def bavit(pixels: Tensor, weights: dict[str, Tensor], depth: int, heads: int, threshold: float) -> list[Tensor]:
    """A vision transformer without [CLS] on pixels (F, 3, H, W), frame by frame; patches whose background is not above it."""
    patch = weights["embed.weight"].shape[-1]
    cells = functional.conv2d(pixels, weights["embed.weight"], weights["embed.bias"], stride=patch)
    kept = []
    for rows in (cells + weights["position"]).flatten(2).transpose(1, 2):
        width = rows.shape[1]
        for layer in range(depth):
            w = {
                name.removeprefix(f"layers.{layer}."): value
                for name, value in weights.items()
                if f"layers.{layer}." in name
            }
            entered = functional.layer_norm(rows, (width,), w["norm1.weight"], w["norm1.bias"])
            query, key, value = (entered @ w["qkv.weight"].T + w["qkv.bias"]).split(width, dim=1)
            parts = []
            for part in range(heads):
                own = slice(part * width // heads, (part + 1) * width // heads)
                parts.append((query[:, own] @ key[:, own].T / (width // heads) ** 0.5).softmax(-1) @ value[:, own])
            rows = rows + torch.cat(parts, dim=1) @ w["out.weight"].T + w["out.bias"]
            entered = functional.layer_norm(rows, (width,), w["norm2.weight"], w["norm2.bias"])
            inner = functional.gelu(entered @ w["mlp.0.weight"].T + w["mlp.0.bias"])
            rows = rows + inner @ w["mlp.2.weight"].T + w["mlp.2.bias"]
        rows = functional.layer_norm(rows, (width,), weights["norm.weight"], weights["norm.bias"])
        background = (rows @ weights["head.weight"].T + weights["head.bias"]).softmax(-1)[:, 0]
        kept.append((background <= threshold).nonzero()[:, 0])
    return kept


def fastervlm(attention: Tensor, count: int) -> Tensor:
    """The units that [CLS] attends to most: (F, U) -> (F, count)."""
    return attention.topk(count, dim=1).indices.sort(1).values


def visionzip(attention: Tensor, keys: Tensor, hidden: Tensor, dominant: int, contextual: int) -> Tensor:
    """Dominant units, and evenly spaced others that the rest is added to."""
    frames, units, width = hidden.shape
    best = attention.topk(dominant, dim=1).indices
    rest = torch.ones(frames, units, dtype=torch.bool).scatter_(1, best, False)
    keys = keys / keys.norm(dim=-1, keepdim=True)
    other, states = keys[rest].view(frames, -1, keys.shape[2]), hidden[rest].view(frames, -1, width)
    step = max(1, other.shape[1] // contextual)
    place = torch.arange(0, other.shape[1], step)[:contextual]
    merged = torch.ones(other.shape[1], dtype=torch.bool).index_fill_(0, place, False)
    slot = (other[:, merged] @ other[:, place].transpose(1, 2)).argmax(2)
    table = functional.one_hot(slot, contextual).to(states)
    mean = (table.transpose(1, 2) @ states[:, merged]) / table.sum(1).clamp(min=1)[..., None]
    return states[:, place] + mean


def tome(keys: Tensor, hidden: Tensor, remove: int) -> Tensor:
    """One layer's matching on keys."""
    return p.merge_mean(hidden, p.bipartite(keys, remove))


def sta(hidden: Tensor, keys: Tensor, drop: int) -> Tensor:
    """Accumulation through the frames: the first by matching, the others one after another."""
    strength = hidden.abs().sum(2)
    strength = (strength - strength.amin(1, keepdim=True)) / (strength.amax(1) - strength.amin(1))[:, None]
    unit = keys / keys.norm(dim=-1, keepdim=True)
    _, merged, _ = p.bipartite(keys[:1], drop)
    kept = [torch.ones(keys.shape[1], dtype=torch.bool).index_fill_(0, 2 * merged[0, :, 0], False)]
    carried = torch.ones(keys.shape[1])
    for frame in range(1, len(keys)):
        received = (unit[frame] @ unit[frame - 1].T).softmax(0) @ carried
        gone = (received * (1 - strength[frame])).topk(drop).indices
        kept.append(torch.ones(keys.shape[1], dtype=torch.bool).index_fill_(0, gone, False))
        carried = received * kept[-1]
        carried = carried / carried.sum()
    return hidden[torch.stack(kept)].view(len(hidden), -1, hidden.shape[2])


def lvtp(keys: Tensor, pixels: Tensor, count: int) -> Tensor:
    """Tsallis entropies of the units' attention and their edges."""
    share = (keys @ keys.transpose(1, 2) * keys.shape[2] ** -0.5).softmax(-1)
    total = torch.zeros(keys.shape[:2])
    for order in (0.5, 2.0, 3.0):
        value = (1 - share.pow(order).sum(-1)) / (order - 1)
        total += (value - value.amin(1, keepdim=True)) / (value.amax(1) - value.amin(1))[:, None] / 3
    grey = functional.pad(pixels.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    slope = functional.conv2d(grey, torch.stack((across, across.T))[:, None]).square().sum(1).sqrt()
    edge = functional.adaptive_avg_pool2d(slope, math.isqrt(keys.shape[1])).flatten(1)
    edge = (edge - edge.amin(1, keepdim=True)) / (edge.amax(1) - edge.amin(1))[:, None]
    keep = (total + edge).topk(count, dim=1).indices
    alike = p.cosine(keys, keys)
    return alike.gather(2, keep[:, None].expand(-1, keys.shape[1], -1)).argmax(2)


# ---------------------------------------------------------------------------------------------------------- segment


def segment_metok(features: Tensor, cuts: int) -> Tensor:
    """The lowest cosines, out of the whole matrix as in the released code."""
    alike = p.cosine(features, features).diagonal(1)
    return alike.topk(cuts, largest=False).indices.sort().values


def segment_fastvid(features: Tensor, segments: int, threshold: float) -> Tensor:
    """The lowest cosines, and all below a threshold."""
    alike = functional.cosine_similarity(features[:-1], features[1:], dim=-1)
    lowest = alike.topk(segments - 1, largest=False).indices
    return torch.cat((lowest, (alike < threshold).nonzero()[:, 0])).unique()


def segment_holitom(features: Tensor, threshold: float) -> list[tuple[int, int]]:
    """One place a frame."""
    alike = functional.cosine_similarity(features[:-1], features[1:], dim=-1)
    return p.static_windows(alike[:, None] > threshold)


def segment_dpc_knn(features: Tensor, clusters: int, neighbors: int) -> list[int]:
    """Clusters of frames, each cut to its longest run."""
    labels = p.dpc_knn(features[None], clusters, neighbors)[0][0].tolist()
    runs: dict[int, tuple[int, int]] = {}
    start = 0
    for frame in range(1, len(labels) + 1):
        if frame == len(labels) or labels[frame] != labels[start]:
            if frame - start > runs.get(labels[start], (0, 0))[0]:
                runs[labels[start]] = (frame - start, start)
            start = frame
    return sorted(first for _, first in runs.values())
