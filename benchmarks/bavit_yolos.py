"""BAViT before transformers' YOLOS and DETR: throughput and box AP on generated pictures, with and without fine-tuning.

    pip install 'videoprune[detection]'
    python benchmarks/bavit_yolos.py --detector yolos --out runs/yolos
    python benchmarks/bavit_yolos.py --detector detr --out runs/detr

Stock classes, small, trained here: there is no checkpoint of that size. YOLOS' trunk starts from the demo model's vision tower
(`--start random` does without), as the authors' starts from DeiT; DETR starts from random weights. Both find one to three shapes
in generated pictures of 112 pixels. Training begins with the object of each query given (`by_cell`), then goes on with the stock
loss, which matches them by cost. What is dropped is decided by the classifiers that ship for the demo model, which have
never seen these pictures. Fine-tuning goes on with the pruning on; the same steps without pruning are the control.

Throughput is process CPU time on held-out pictures, in pairs that run in turn with the stock model; the classifier is in it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detection import HELD_OUT, Picture, average_precision, draw_pictures, labels_of, pixels_of
from torch import Tensor
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import generalized_box_iou

from videoprune import demo
from videoprune.demo import names, scenes
from videoprune.encode.bavit import BAViT, foreground
from videoprune.encode.random import draw
from videoprune.models.detectors import Detections, PrunedDetector, PrunedDetr, PrunedYolos, detector_facts
from videoprune.models.preprocess import CLIP_MEAN, CLIP_STD

PATCH, QUERIES = 14, scenes.GRID**2
KEEPS = (0.75, 0.5)
# a threshold's counts are rounded up to these, of 64 and 196 cells, so that more pictures run together
ROUNDED = {"yolos": 8, "detr": 28}
PAIR_PICTURES = 32

Choose = Callable[[Tensor, tuple[int, int]], Tensor]


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------------- detectors


def make_yolos(start: str) -> PrunedDetector:
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(
        hidden_size=128, num_hidden_layers=5, num_attention_heads=4, intermediate_size=512, hidden_act="quick_gelu",
        image_size=[scenes.SIZE, scenes.SIZE], patch_size=PATCH, num_detection_tokens=QUERIES, num_labels=len(names.SHAPES),
        use_mid_position_embeddings=True, layer_norm_eps=1e-5,
    )  # fmt: skip
    detector = YolosForObjectDetection(config)
    torch.nn.init.normal_(detector.vit.embeddings.detection_tokens, std=0.5)
    if start == "tower":
        start_from_tower(detector)
    look_in_place(detector)
    return PrunedYolos(detector)


@torch.no_grad()
def look_in_place(detector: Any) -> None:
    """Let detection tokens begin by looking at their own cell in the last layer, which no tower has trained.

    Places as 2-D sines are added before it, and its queries and keys are one projection, so that what stands near is most
    alike. Detection tokens that look everywhere alike learn a mean box each and stay there: that was tried.
    """
    vit, side = detector.vit, scenes.SIZE // PATCH
    added = vit.encoder.interpolation.mid_position_embeddings.zero_()[-1, 0]
    hidden = vit.embeddings(pixels_of(draw_pictures(64, 0)))
    for layer in vit.encoder.layer[:-1]:
        hidden = layer(hidden)
    cells, queries = torch.arange(side**2), torch.arange(QUERIES)
    width = side / math.isqrt(QUERIES)
    rows, columns = queries // math.isqrt(QUERIES) * width, queries % math.isqrt(QUERIES) * width
    scale = 2 * math.sqrt(2) * hidden[:, 1:-QUERIES].std()  # sines are half as strong as their peak: twice the content
    added[1:-QUERIES] = scale * sines(cells // side, cells % side, side, added.shape[1])
    added[-QUERIES:] = scale * sines(rows + (width - 1) / 2, columns + (width - 1) / 2, side, added.shape[1])
    last = vit.encoder.layer[-1].attention
    torch.nn.init.normal_(last.attention.query.weight, std=0.075)
    last.attention.key.weight.copy_(last.attention.query.weight)
    for linear in (last.attention.value, last.output.dense):
        torch.nn.init.xavier_uniform_(linear.weight)


def sines(row: Tensor, column: Tensor, side: int, width: int) -> Tensor:
    """(N, width) sines and cosines of places on a grid of `side` x `side`, with periods from 2.5 cells to twice the side."""
    rate = 2 * math.pi / torch.logspace(math.log2(2 * side), math.log2(2.5), width // 4, base=2)
    return torch.cat([wave(at[:, None] * rate) for at in (row, column) for wave in (torch.sin, torch.cos)], dim=1)


def start_from_tower(detector: Any) -> None:
    """Copy the demo model's CLIP tower into the trunk; its first norm, which YOLOS lacks, is folded in at its mean scale.

    A detection token begins as the mean patch at the middle of one cell of a 4x4 grid, which the tower knows how to read.
    """
    from transformers import LlavaOnevisionForConditionalGeneration

    model = LlavaOnevisionForConditionalGeneration.from_pretrained(demo.weights_path(), dtype=torch.float32)
    tower, vit = model.model.vision_tower, detector.vit
    tower = getattr(tower, "vision_model", tower)
    embeddings, norm = tower.embeddings, tower.pre_layrnorm
    with torch.no_grad():
        rows = embeddings(pixels_of(draw_pictures(64, 0)))
        mean, gain = rows.mean(), norm.weight / rows.std(dim=-1).mean()
        position = (embeddings.position_embedding.weight - mean) * gain + norm.bias
        cells = vit.embeddings.patch_embeddings.projection
        cells.weight.copy_(embeddings.patch_embedding.weight * gain[:, None, None, None])
        cells.bias.zero_()
        vit.embeddings.cls_token.copy_((embeddings.class_embedding * gain)[None, None])
        vit.embeddings.position_embeddings[:, : len(position)] = position
        grid = position[1:].view(scenes.GRID, 2, scenes.GRID, 2, -1).mean(dim=(1, 3)).flatten(0, 1)
        vit.embeddings.position_embeddings[:, len(position) :] = grid
        patch = embeddings.patch_embedding(pixels_of(draw_pictures(64, 0))).mean(dim=(0, 2, 3))
        vit.embeddings.detection_tokens.copy_((patch * gain).expand(QUERIES, -1)[None])
        for ours, theirs in zip(vit.encoder.layer[:-1], tower.encoder.layers, strict=True):
            attention = ours.attention.attention
            for to, source in (
                (attention.query, theirs.self_attn.q_proj), (attention.key, theirs.self_attn.k_proj),
                (attention.value, theirs.self_attn.v_proj), (ours.attention.output.dense, theirs.self_attn.out_proj),
                (ours.layernorm_before, theirs.layer_norm1), (ours.layernorm_after, theirs.layer_norm2),
                (ours.intermediate.dense, theirs.mlp.fc1), (ours.output.dense, theirs.mlp.fc2),
            ):  # fmt: skip
                to.load_state_dict(source.state_dict())


def make_detr(start: str) -> PrunedDetector:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[24, 48], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, d_model=64, encoder_layers=3, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, dropout=0.0,
        num_queries=QUERIES, num_labels=len(names.SHAPES),
    )  # fmt: skip
    detector = DetrForObjectDetection(config)
    detector.model.unfreeze_backbone()
    return PrunedDetr(detector)


Loss = Callable[[PrunedDetector, Detections, Sequence[dict[str, Tensor]]], Tensor]


def stock(model: PrunedDetector, found: Detections, labels: Sequence[dict[str, Tensor]]) -> Tensor:
    """The model's own loss, which matches queries and objects by what they cost."""
    return model.loss(found, list(labels))


def by_cell(model: PrunedDetector, found: Detections, labels: Sequence[dict[str, Tensor]]) -> Tensor:
    """The terms and weights of the stock loss with the matching given: a query has the object whose middle lies in its cell.

    Matching by cost starts from chance, so that on so few pictures every query learns the mean box and stays there.
    """
    config, side = model.detector.config, math.isqrt(QUERIES)
    kind = torch.full(found.logits.shape[:2], config.num_labels)
    boxes = torch.zeros(found.boxes.shape)
    for number, each in enumerate(labels):
        cell = (each["boxes"][:, :2].clamp(0, 0.999) * side).long() @ torch.tensor([1, side])
        kind[number, cell], boxes[number, cell] = each["class_labels"], each["boxes"]
    there = kind < config.num_labels
    weight = torch.ones(config.num_labels + 1)
    weight[-1] = config.eos_coefficient
    got, wanted = found.boxes[there], boxes[there]
    overlap = generalized_box_iou(center_to_corners_format(got), center_to_corners_format(wanted)).diag()
    return (
        torch.nn.functional.cross_entropy(found.logits.transpose(1, 2), kind, weight)
        + config.bbox_loss_coefficient * (got - wanted).abs().sum() / len(wanted)
        + config.giou_loss_coefficient * (1 - overlap).mean()
    )


def fit(
    model: PrunedDetector,
    pictures: Sequence[Picture],
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    loss_of: Loss = stock,
) -> float:
    """Train in place; pictures and their mirror images. Returns the mean loss of the last tenth."""
    generator = torch.Generator().manual_seed(seed)
    labels = labels_of(pictures)
    optimizer = torch.optim.AdamW(model.detector.parameters(), lr=rate, weight_decay=1e-4)
    warm = max(1, steps // 30)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / warm) * (0.02 + 0.98 * (1 + math.cos(math.pi * s / steps)) / 2)
    )
    model.train()
    losses: list[float] = []
    for step in range(steps):
        rows = torch.randint(len(pictures), (batch,), generator=generator).tolist()
        shown, wanted = pixels_of([pictures[row] for row in rows]), [labels[row] for row in rows]
        if step % 2:
            shown = shown.flip(3)
            wanted = [{**one, "boxes": (one["boxes"] * _MIRROR).add(_SHIFT)} for one in wanted]
        loss = loss_of(model, model(shown), wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.detector.parameters(), 1.0)
        optimizer.step()
        falling.step()
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            tell(f"step {step + 1}/{steps}, loss {sum(losses[-50:]) / 50:.3f}, {time.process_time():.0f} s of CPU")
    model.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


_MIRROR, _SHIFT = torch.tensor([-1.0, 1, 1, 1]), torch.tensor([1.0, 0, 0, 0])

# ----------------------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def measure(model: PrunedDetector, pictures: Sequence[Picture]) -> dict[str, float]:
    """Box AP, the share of cells dropped, and the share of cells with an object that stayed."""
    found = [model(pixels_of(pictures[start : start + 50])) for start in range(0, len(pictures), 50)]
    logits, boxes = torch.cat([one.logits for one in found]), torch.cat([one.boxes for one in found])
    kept = torch.cat([one.kept for one in found])
    side = math.isqrt(kept.shape[1])
    masks = torch.stack([torch.from_numpy(picture.mask) for picture in pictures]).float()[:, None]
    shown = torch.nn.functional.adaptive_max_pool2d(masks, side).flatten(1) > 0
    return {
        **average_precision(pictures, logits, boxes),
        "dropped": 1 - float(kept.float().mean()),
        "recall": float((kept & shown).sum() / shown.sum()),
    }


@torch.no_grad()
def speed(model: PrunedDetector, pictures: Sequence[Picture], pairs: int) -> tuple[float, float, float]:
    """Pictures a second of CPU time over the stock model's: median of pairs that run in turn, lowest and highest quarter."""
    pixels, ratios = pixels_of(pictures[:PAIR_PICTURES]), []

    def spent(run: Callable[[Tensor], Any]) -> float:
        begun = time.process_time()
        for part in pixels.split(16):
            run(part)
        return time.process_time() - begun

    for pair in range(pairs + 1):
        order = (model.detector, model) if pair % 2 else (model, model.detector)
        seconds = {id(run): spent(run) for run in order}
        if pair:  # the first warms up
            ratios.append(seconds[id(model.detector)] / seconds[id(model)])
    ratios.sort()
    return ratios[pairs // 2], ratios[pairs // 4], ratios[3 * pairs // 4]


def classifier(depth: int, keep: float | None) -> BAViT:
    method = BAViT(depth=depth, keep=keep)
    method.bind(detector_facts("detector", PATCH, scenes.SIZE, CLIP_MEAN, CLIP_STD))
    return method


def at_random(keep: float, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """As many cells as the classifier keeps, drawn; a control."""
    cells = torch.arange(grid[0] * grid[1]).repeat(len(pixels), 1)
    picture = (pixels.flatten(1).sum(dim=1) * 1000).long()  # a picture draws the same in any batch
    return foreground(
        draw(picture, cells, 0).double(), torch.ones_like(cells, dtype=torch.bool), round(keep * cells.shape[1])
    )


def settings(detector: str) -> list[tuple[str, Choose]]:
    """Name and choice of each pruned row."""
    rows: list[tuple[str, Choose]] = []
    for depth in (2, 10):
        rows.append(
            (f"BAViT-{depth}, threshold 0.5", partial(classifier(depth, None).cells, multiple=ROUNDED[detector]))
        )
        rows += [(f"BAViT-{depth}, keep {keep}", classifier(depth, keep).cells) for keep in KEEPS]
    return rows + [(f"random, keep {keep}", partial(at_random, keep)) for keep in KEEPS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=("yolos", "detr"), default="yolos")
    parser.add_argument("--start", choices=("tower", "random"), default="tower", help="of YOLOS' trunk")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained detector and the table")
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--cell-steps", type=int, default=2500, help="with the object of each query given; 0 for none")
    parser.add_argument("--steps", type=int, default=300, help="with the stock loss, at a fifth of the rate")
    parser.add_argument("--tune-steps", type=int, default=300, help="of fine-tuning; 0 leaves those rows out")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=11, help="runs beside the stock model, for the times")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    model = (make_yolos if options.detector == "yolos" else make_detr)(options.start)
    pruned = settings(options.detector)  # before any training: weights may be missing
    pictures, held = draw_pictures(options.pictures, 0), draw_pictures(options.held_out, HELD_OUT)
    file = options.out / f"{options.detector}.pt"
    if file.exists():
        model.detector.load_state_dict(torch.load(file, weights_only=True))
        model.eval()
        tell(f"{file} is there and taken; remove it to train again")
    else:
        if options.cell_steps:
            fit(model, pictures, options.cell_steps, options.batch, options.learning_rate, options.seed, by_cell)
        fit(model, pictures, options.steps, options.batch, options.learning_rate / 5, options.seed + 2)
        torch.save(model.detector.state_dict(), file)
    rows: list[dict[str, Any]] = []

    def row(name: str, choose: Choose | None, tuned: bool) -> None:
        one = type(model)(copy.deepcopy(model.detector), choose)
        one.eval()
        if tuned:
            fit(one, pictures, options.tune_steps, options.batch, options.learning_rate / 5, options.seed + 1)
        middle, low, high = speed(one, held, options.pairs) if choose is not None else (1.0, 1.0, 1.0)
        rows.append({"name": name, "tuned": tuned, **measure(one, held), "speed": middle, "low": low, "high": high})
        tell(json.dumps(rows[-1]))
        (options.out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")

    row("unpruned", None, False)
    for name, choose in pruned:
        row(name, choose, False)
    if options.tune_steps:
        row("unpruned", None, True)
        for name, choose in pruned[: 1 + len(KEEPS)]:
            row(name, choose, True)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {json.dumps(vars(options), default=str)}")
    print(table(rows))


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| before the detector | fine-tuned | cells dropped | object cells kept | AP | AP50 | pictures a CPU second |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        times = f"×{row['speed']:.2f} ({row['low']:.2f} – {row['high']:.2f})" if row["name"] != "unpruned" else "×1"
        lines.append(
            f"| {row['name']} | {'yes' if row['tuned'] else 'no'} | {row['dropped']:.1%} | {row['recall']:.1%} | "
            f"{100 * row['AP']:.1f} | {100 * row['AP50']:.1f} | {times} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
