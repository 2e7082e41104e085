"""What the training stages share: the model's sizes, the optimizer, pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

from videoprune.demo import names, scenes

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
TOWER_WIDTH, WIDTH, LAYERS, MLP, HEADS, KV_HEADS = 128, 192, 8, 384, 6, 2
CELLS = scenes.GRID**2  # visual tokens a frame
WORD_RMS = 0.5  # of rows of the word embedding; visual tokens have RMS 1


def build_model(vocabulary: int) -> LlavaOnevisionForConditionalGeneration:
    """The demo model with random weights: stock classes only."""
    vision = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=4 * TOWER_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=scenes.SIZE,
        patch_size=scenes.SIZE // (2 * scenes.GRID),
        projection_dim=TOWER_WIDTH,
    )
    text = Qwen2Config(
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=4,
        pad_token_id=0,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=1,
        video_token_index=2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_grid_pinpoints=[[scenes.SIZE, scenes.SIZE]],
        vision_aspect_ratio="anyres_max_1",
        tie_word_embeddings=False,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def concept_vectors() -> torch.Tensor:
    """Fixed orthonormal directions, one for each word of ``names.CONCEPTS``: (concepts, WIDTH).

    The tower learns to point a visual token along the words for what it shows; the language model starts with
    (a multiple of) the same vectors as these words' embeddings.
    """
    generator = torch.Generator().manual_seed(20)
    full, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))
    return full[: len(names.CONCEPTS)].contiguous()


def pixels(images: np.ndarray) -> torch.Tensor:
    """(F, SIZE, SIZE, 3) uint8 to normalised (F, 3, SIZE, SIZE) float32."""
    mean, std = torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), torch.tensor(IMAGE_STD).view(1, 3, 1, 1)
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


class MasterWeights:
    """Trains a bf16 model through fp32 master weights: Muon for the matrices inside layers, AdamW for the rest.

    bf16 alone loses small updates; fp32 alone is half as fast on a CPU with AMX.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], muon_lr: float, adam_lr: float) -> None:
        self.names = [name for name, _ in named]
        self.working = [p for _, p in named]
        self.master = [p.detach().float().clone().requires_grad_(True) for p in self.working]
        inside = [p.ndim == 2 and "layers." in name and "embed" not in name for name, p in named]
        matrices = [m for m, use in zip(self.master, inside, strict=True) if use]
        rest = [m for m, use in zip(self.master, inside, strict=True) if not use]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
            torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        ]
        self.base = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    def step(self, scale: float, clip: float = 1.0) -> float:
        """One update with the learning rates times ``scale``; returns the gradient's norm."""
        for p, m in zip(self.working, self.master, strict=True):
            m.grad = None if p.grad is None else p.grad.float()
            p.grad = None
        norm = nn.utils.clip_grad_norm_([m for m in self.master if m.grad is not None], clip)
        for optimizer, base in zip(self.optimizers, self.base, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * scale
            optimizer.step()
        with torch.no_grad():
            for p, m in zip(self.working, self.master, strict=True):
                p.copy_(m)
        return float(norm)

    def state(self) -> dict[str, torch.Tensor]:
        """The fp32 weights by name."""
        return {name: m.detach().clone() for name, m in zip(self.names, self.master, strict=True)}


def schedule(step: int, total: int, warm: int, hold: float, floor: float = 0.01) -> float:
    """Learning-rate factor: linear warm-up, constant until ``hold`` of the steps, then linear to ``floor``."""
    rising = min(1.0, (step + 1) / warm)
    done = step / max(1, total)
    return rising * (1.0 if done < hold else max(floor, (1 - done) / (1 - hold)))


def word_rows() -> torch.Tensor:
    """The concept directions at the size of embedding rows: (concepts, WIDTH)."""
    return concept_vectors() * WORD_RMS * math.sqrt(WIDTH)
