"""Video-LLaVA: a CLIP-like video tower of its own, projector, Vicuna; each frame's [CLS] stays, before its 256 patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from videoprune.models.host import Host, even_units
from videoprune.models.llava15 import VICUNA, dense, tower_type
from videoprune.models.tower import TowerOutput
from videoprune.report.flops import Cost
from videoprune.tokens import VisualTokens


class VideoLlava(Host):
    """Stock VideoLlavaForConditionalGeneration.

    The [CLS] rows are added rows: weight 0, no cell, no part in any count. Merge methods leave them alone; what needs
    whole grids and nothing else (METok's pooling) refuses.
    """

    family = "video-llava"
    accepts = "video_llava (Video-LLaVA)"
    stock = "VideoLlavaForConditionalGeneration"
    source = (
        "transformers' VideoLlavaForConditionalGeneration.get_video_features and VideoLlavaProcessor; prompt of the model "
        "card LanguageBind/Video-LLaVA-7B-hf; 8 frames: PKU-YuanGroup/Video-LLaVA, languagebind/video/processing_video.py"
    )
    default_recipe = dense(frames=8)
    placeholder = "<video>"

    @classmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        if config.get("model_type") == "video_llava" and tower_type(config) == "clip_vision_model":
            return "model_type is video_llava"
        return None

    def vision_tower(self) -> Any:
        return self.model.model.video_tower

    def token_grid(self) -> tuple[int, int]:
        return self.patch_side, self.patch_side

    def unit_of_patch(self) -> Tensor:
        return even_units(self.patch_side, 1)

    def project(self, hidden: Tensor) -> Tensor:
        features: Tensor = self.model.model.multi_modal_projector(hidden)
        return features

    def projector_cost(self, rows: int) -> Cost:
        return super().projector_cost(rows + rows // self.tower.patches)  # one [CLS] a frame

    def _tokens(self, features: Tensor, out: TowerOutput, seconds: Tensor) -> VisualTokens:
        tokens = super()._tokens(features, out, seconds)
        if out.cls is None:
            raise ValueError("a Video-LLaVA tower has a [CLS] row")
        return lead_frames(tokens, self.project(out.cls))

    def template(self) -> tuple[str, str]:
        """From the checkpoint's chat template where it knows videos, else Vicuna's short form."""
        return self.chat("video") or VICUNA


def lead_frames(tokens: VisualTokens, features: Tensor) -> VisualTokens:
    """Add one row of weight 0 without a cell before each frame's rows, features (F, D).

    `tokens` are as the tower gave them, in order of their positions. Each added row takes a position of its own, as in the
    unpruned prompt, whether or not rows of its frame are left.
    """
    frames, device = tokens.frames, tokens.frame.device
    number = torch.arange(frames, device=device)
    lead = number * (tokens.per_frame + 1)
    position = torch.cat((lead, tokens.position + tokens.frame + 1))
    order = torch.argsort(position)
    moved = torch.argsort(order)[frames:]  # where each row of `tokens` stands now

    def joined(added: Tensor, own: Tensor) -> Tensor:
        return torch.cat((added.to(own), own))[order]

    none = torch.full((frames,), -1, device=device)
    return replace(
        tokens,
        features=joined(features, tokens.features),
        frame=joined(number, tokens.frame),
        cell=joined(none[:, None].expand(-1, 2), tokens.cell),
        event=joined(none, tokens.event),
        seconds=joined(tokens.frame_seconds, tokens.seconds),
        weight=joined(torch.zeros_like(number), tokens.weight),
        owner=torch.where(tokens.owner >= 0, moved[tokens.owner.clamp(min=0)], tokens.owner),
        position=position[order],
        extent=frames * (tokens.per_frame + 1),
    ).check()
