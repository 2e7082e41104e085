"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: pairs of frames as one temporal step, a packed tower, M-RoPE.

A frame of the ledger is a temporal step: the tower's patches span two sampled frames, an odd last one is repeated. The grid
follows the film's shape. Position ids come from the stock class's own `get_rope_index` on the unpruned prompt, of which the
columns of what is left are taken; "compact" is the prompt of a film that had only the frames with tokens left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from videoprune.method import EncodeMethod
from videoprune.models.host import QUESTION, Encoded, Host, Prompt, Sampling
from videoprune.models.llava15 import dense
from videoprune.models.packed_tower import PackedTower
from videoprune.models.patches import PatchPreprocess, patchify
from videoprune.models.preprocess import CLIP_MEAN, CLIP_STD, square_side
from videoprune.models.session import VisualBlock
from videoprune.report.flops import Cost, TransformerShape
from videoprune.tokens import VisualTokens

VIDEO = 2  # what get_rope_index calls a row of a video
DEEPSTACK = "deepstack"  # score of the ledger, (T, K, D)


class QwenVL(Host):
    """A stock Qwen-VL model.

    Attributes:
        preprocess: which also knows the grid of a film.
        fixed_system: text before the user's turn where the checkpoint has no chat template.
    """

    placeholder = "<|video_pad|>"
    pair = 2
    any_shape = True
    default_recipe = dense(fps=2, max=768)
    unused_weights = rf"{Host.unused_weights}|(^|\.)visual\.rotary_pos_emb\..*$"
    preprocess: Any
    tower: PackedTower
    mean: ClassVar[tuple[float, ...]] = CLIP_MEAN
    std: ClassVar[tuple[float, ...]] = CLIP_STD
    units: ClassVar[tuple[int, int]] = (128, 768)  # least and most of a frame, in units, where no file says
    together: ClassVar[bool] = False  # whether the limits of pixels are for a whole film
    fixed_system: ClassVar[str] = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"

    @classmethod
    def own_preprocess(
        cls, read: Callable[[str], Mapping[str, Any]], config: Any, choices: list[dict[str, str]]
    ) -> PatchPreprocess:
        """From the video processor's settings, and from the image processor's for what they lack but the limits, which are
        those of images there; `read` gives a file of the checkpoint, empty where it has none."""
        both = read("processor_config.json")
        video = both.get("video_processor") or read("video_preprocessor_config.json")
        image = both.get("image_processor") or read("preprocessor_config.json")
        vision = config.vision_config
        patch, merge = square_side(vision.patch_size), int(vision.spatial_merge_size)
        unit, edges = (patch * merge) ** 2, video.get("size") or {}
        least = video.get("min_pixels") or edges.get("shortest_edge") or cls.units[0] * unit
        most = video.get("max_pixels") or edges.get("longest_edge") or cls.units[1] * unit
        context = int(config.get_text_config().max_position_embeddings)
        given = {**image, **video}
        made = PatchPreprocess(
            patch=patch,
            mean=tuple(given.get("image_mean") or cls.mean),
            std=tuple(given.get("image_std") or cls.std),
            least=int(least),
            most=int(most),
            merge=merge,
            pair=int(vision.temporal_patch_size),
            film_tokens=min(context, PatchPreprocess.film_tokens),
            together=cls.together,
        )
        whose = "the checkpoint's video processor" if video else "the family's video processor"
        choices.append(
            {
                "name": "pixels",
                "value": f"{made.least} to {made.most} {'a film' if made.together else 'a frame'}",
                "reason": f"limits of {whose}, capped by frame and film as the authors' qwen-vl-utils does",
            }
        )
        return made

    def adopt_tower(self, vision: Any) -> PackedTower:
        if not isinstance(self.preprocess, PatchPreprocess):  # nothing but a config is known
            self.preprocess = self.own_preprocess(lambda _: {}, self.model.config, self.choices)
        self.grid = (0, 0)
        width = int(getattr(vision, "embed_dim", vision.hidden_size))  # Qwen2-VL calls the output's width hidden_size
        mlp = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
        heads = int(vision.num_heads)
        gated = hasattr(self.vision_tower().blocks[0].mlp, "gate_proj")
        self.tower_shape = TransformerShape(int(vision.depth), width, int(mlp), heads, heads, width // heads, gated)
        return PackedTower(self.vision_tower(), self.tower_shape, self.decoder_shape.width)

    def vision_tower(self) -> Any:
        return self.model.model.visual

    def token_grid(self) -> tuple[int, int]:
        return self.grid

    def unit_of_patch(self) -> Tensor:
        """Patches of a unit lie together."""
        return torch.arange(self.preprocess.merge**2) // self.preprocess.merge**2

    def project(self, hidden: Tensor) -> Tensor:
        """The tower's merger has projected already."""
        return hidden

    # ------------------------------------------------------------------ encoding

    @torch.no_grad()
    def encode(
        self,
        images: np.ndarray,
        seconds: np.ndarray,
        first: int,
        methods: Sequence[EncodeMethod] = (),
        film: Sampling | None = None,
    ) -> Encoded:
        """As for every host; a chunk but the last has an even number of frames, and `first` is even."""
        if first % self.pair:
            raise ValueError(
                f"a chunk begins at frame {first}, but {self.pair} frames are one step: chunks are whole steps"
            )
        sampling = film or Sampling(len(images))
        pixels = self.preprocess(images, sampling.frames).to(self.device, self.dtype)
        grid = pixels.shape[2] // self.preprocess.factor, pixels.shape[3] // self.preprocess.factor
        steps = len(pixels) // self.pair
        frame = torch.arange(first // self.pair, first // self.pair + steps, device=self.device)
        patches = patchify(pixels, self.preprocess.patch, self.preprocess.merge, self.pair)
        shown = pixels.unflatten(0, (steps, self.pair))
        out = self.tower(patches, grid, frame, lambda: shown.mean(dim=1), methods)
        place, owner = out.ledger()
        scores = {"place": place, **out.scores_of(place)}
        if out.deepstack is not None:
            scores[DEEPSTACK] = out.deepstack.flatten(0, 1)[place]
        tokens = VisualTokens.from_frames(
            out.hidden.flatten(0, 1)[place],
            self.seconds_of_steps(seconds),
            grid,
            owner,
            scores,
            mrope=True,
            interval=None if sampling.interval is None else sampling.interval * self.pair,
        )
        return Encoded(tokens, out.cost + Cost(linear=out.counted))

    def dense_encode_cost(self, frames: int, grid: tuple[int, int] | None = None) -> Cost:
        if grid is None:
            raise ValueError("what a film costs on this host depends on its grid: give (rows, columns)")
        return self.tower.dense_cost(grid, frames)

    # ------------------------------------------------------------------ the prompt

    def template(self) -> tuple[str, str]:
        """From the checkpoint's chat template, else the family's own."""
        before = f"{self.fixed_system}<|im_start|>user\n<|vision_start|>"
        return self.chat("video") or (before, f"<|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n")

    def step_texts(self, seconds: Sequence[float]) -> tuple[list[Tensor], Tensor]:
        """Token ids (n,) before the tokens of each step, and (m,) behind each; the block is one without any."""
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        return [none] * len(seconds), none

    def rope_index(self, ids: Tensor, kind: Tensor, grid: Tensor, interval: float) -> Tensor:
        """(3, S) position ids by the stock class, for a prompt's ids (S,) with `kind` VIDEO at visual rows.

        Args:
            grid: (1, 3) steps, rows and columns of patches. interval: seconds from a step to the next.
        """
        given = {"mm_token_type_ids": kind[None], "video_grid_thw": grid}
        position, _ = self.model.model.get_rope_index(ids[None], **given)
        return position[:, 0]

    def lay_out(
        self, before: Tensor, behind: Tensor, tokens: VisualTokens, question: Tensor
    ) -> tuple[Prompt, list[dict[str, str]]]:
        """See `Host.lay_out`. Where every token of a step is gone, its time goes too."""
        tokens = tokens.to(self.device)
        choices: list[dict[str, str]] = []
        prompt, largest = self._laid(before, behind, tokens, question)
        if largest >= self.context:
            prompt, _ = self._laid(before, behind, tokens.compacted(), question)
            choices.append(self._renumbered())
        return prompt, choices

    def _laid(self, before: Tensor, behind: Tensor, tokens: VisualTokens, question: Tensor) -> tuple[Prompt, int]:
        """The prompt, and its largest position id."""
        steps, per_step, device = tokens.extent, tokens.per_frame, self.device
        step, row, column = tokens.position
        leads, close = self.step_texts(_times(tokens))
        lead = torch.tensor([len(ids) for ids in leads], device=device, dtype=torch.int64)
        # the unpruned prompt, of which columns are taken
        pad = torch.full((per_step,), self._placeholder_id(), device=device)
        pieces = [piece for ids in leads for piece in (ids, pad, close)]
        ids = torch.cat((before, *pieces, behind))
        width = lead + per_step + len(close)
        start = len(before) + width.cumsum(0) - width + lead  # (steps,) first token of each
        kind = torch.zeros_like(ids)
        kind[(start[:, None] + torch.arange(per_step, device=device)).flatten()] = VIDEO
        grid = torch.tensor([[steps, *(side * self.preprocess.merge for side in tokens.grid)]], device=device)
        position = self.rope_index(ids, kind, grid, _interval(tokens)).to(device)
        shown = torch.zeros(steps, dtype=torch.bool, device=device).index_fill_(0, step, True)
        inside = torch.arange(steps, device=device).repeat_interleave(width)
        stays = torch.ones(len(ids), dtype=torch.bool, device=device)
        stays[len(before) : len(ids) - len(behind)] = shown[inside]
        text = (stays & (kind != VIDEO)).nonzero()[:, 0]
        taken = torch.cat((text, start[step] + row * tokens.grid[1] + column))
        order = torch.argsort(taken, stable=True)  # rows that a method added stand behind the token that they follow
        self.check_context(len(order))
        embeddings = torch.cat((self.embed(ids[text]), tokens.features.to(self.dtype)))[order]
        rows = torch.argsort(order)[len(text) :]
        if not bool((rows[1:] > rows[:-1]).all()):
            raise ValueError("visual tokens are out of order: methods keep the order of what survives")
        dense_text = sum(len(lead) + len(close) for lead in self.step_texts(tokens.frame_seconds.tolist())[0])
        deepstack = tokens.scores.get(DEEPSTACK)
        prompt = Prompt(
            embeddings=embeddings[None],
            position_ids=position[:, None, taken[order]],
            visual=VisualBlock(len(before), len(order) - len(behind), rows, deepstack),
            question=question,
            dense_rows=len(before) + dense_text + len(tokens.owner) + len(behind),
        )
        return prompt, int(position.max())


def _times(tokens: VisualTokens) -> list[float]:
    """Seconds of every step of the visual block: the film's frames, or those that were left when they were renumbered."""
    if tokens.extent == tokens.frames:
        return list(tokens.frame_seconds.tolist())
    times = tokens.frame_seconds.new_zeros(tokens.extent)
    times[tokens.position[0]] = tokens.frame_seconds[tokens.frame]
    return list(times.cummax(0).values.tolist())  # a step that lost its tokens since takes the time before


def _interval(tokens: VisualTokens) -> float:
    """Seconds from a step to the next: as asked for, else the mean."""
    if tokens.interval is not None:
        return tokens.interval
    times = tokens.frame_seconds
    return round(float(times[-1] - times[0]) / max(len(times) - 1, 1), 3)
