"""What every host family shares: frames in, visual tokens out, a prompt around them, and stock `generate()` under a session."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.method import EncodeMethod
from videoprune.models.decoder import compressed
from videoprune.models.session import Session, Trace
from videoprune.models.tower import DenseTower, TowerOutput
from videoprune.report.flops import Cost, TransformerShape, mlp_cost, patch_embed_cost, tower_cost
from videoprune.tokens import VisualTokens

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
QUESTION = "\N{REPLACEMENT CHARACTER}question\N{REPLACEMENT CHARACTER}"  # stands for the question while the template is rendered


@dataclass(frozen=True)
class Preprocess:
    """How a frame becomes the tower's pixels: shortest edge to `size`, centre crop, scale to 0..1, normalise."""

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    crop: bool = True  # False squeezes the whole frame into the square, as SigLIP hosts do
    resample: int = int(Image.Resampling.BICUBIC)

    def __call__(self, images: np.ndarray) -> Tensor:
        """(F, H, W, 3) uint8 -> (F, 3, size, size) float32."""
        frames, height, width = images.shape[:3]
        out = np.empty((frames, self.size, self.size, 3), dtype=np.uint8)
        if self.crop:
            scale = self.size / min(height, width)
            wide, high = max(self.size, round(width * scale)), max(self.size, round(height * scale))
        else:
            wide = high = self.size
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        for number, image in enumerate(images):
            if (width, height) == (wide, high):
                resized = image
            else:
                resized = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling(self.resample)))
            out[number] = resized[top : top + self.size, left : left + self.size]
        pixels = torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255.0
        mean, std = torch.tensor(self.mean).view(1, 3, 1, 1), torch.tensor(self.std).view(1, 3, 1, 1)
        return (pixels - mean) / std


@dataclass(eq=False)
class Prompt:
    """A prompt ready for the language model.

    Attributes:
        embeddings: (1, S, D).
        position_ids: (1, S).
        visual: (start, stop) rows of the visual block.
        question: (Q,) ids of the question's tokens.
    """

    embeddings: Tensor
    position_ids: Tensor
    visual: tuple[int, int]
    question: Tensor


@dataclass(eq=False)
class Generation:
    """What `generate` gave: the answer's text and token ids, logits (steps, vocabulary) if asked for, and times in seconds."""

    text: str
    ids: list[int]
    trace: Trace
    logits: Tensor | None
    prefill_seconds: float
    decode_seconds: float


@dataclass(eq=False)
class Encoded:
    """One encoded chunk: its tokens, what it cost, and patches (+[CLS]) that ran through the tower."""

    tokens: VisualTokens
    cost: Cost = field(default_factory=Cost)


class Host(ABC):
    """A model of one family behind the interface that the pipeline uses.

    A family is a subclass in a file of its own: it says which checkpoints are its own, how its grid is pooled, and how a
    prompt looks.

    Attributes:
        family: the family's name.
        accepts: the checkpoints that it takes, for the message that refuses another.
        stock: name of the transformers class that loads them.
        default_recipe: what is used where nothing is asked for: a shipped recipe, or one with the authors' frame rule.
        placeholder: token that stands for the visual block in the family's text. Given, the prompt is tokenised in one
            piece around it, begin token included, as the stock processor does; None tokenises the two sides apart.
        unused_weights: weights of a checkpoint that the stock class has no place for.
        model, tokenizer: stock transformers objects.
        grid: (rows, columns) of language-model tokens a frame.
        tower: the vision tower's loop.
        preprocess: frames to pixels.
        context: positions that the language model was trained for.
        choices: automatic choices made while loading, each {name, value, reason}.
    """

    family: ClassVar[str]
    accepts: ClassVar[str]
    stock: ClassVar[str]
    source: ClassVar[str]  # where template, preprocessing and frame rule come from
    default_recipe: ClassVar[str | Mapping[str, Any]] = "dense"
    placeholder: ClassVar[str | None] = None
    unused_weights: ClassVar[str] = r"(rotary_emb\.inv_freq|position_ids|vision_tower.*\.head\..*)$"

    def __init__(
        self, model: Any, tokenizer: Any, name: str, preprocess: Preprocess, choices: Sequence[dict[str, str]] = ()
    ) -> None:
        self.model, self.tokenizer, self.name, self.preprocess = model, tokenizer, name, preprocess
        self.choices = list(choices)
        self.lock = threading.Lock()
        self.decoder = model.get_decoder()
        config, text = model.config, self.decoder.config
        vision = config.vision_config
        self.device, self.dtype = self.decoder.embed_tokens.weight.device, self.decoder.embed_tokens.weight.dtype
        self.context = int(text.max_position_embeddings)
        self.patch_side = vision.image_size // vision.patch_size
        self.grid = self.token_grid()
        heads = text.num_attention_heads
        self.decoder_shape = TransformerShape(
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            mlp=text.intermediate_size,
            heads=heads,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            gated_mlp=True,
        )
        self.tower_shape = TransformerShape(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            mlp=vision.intermediate_size,
            heads=vision.num_attention_heads,
            kv_heads=vision.num_attention_heads,
            head_dim=vision.hidden_size // vision.num_attention_heads,
            gated_mlp=False,
        )
        self.vocabulary = int(text.vocab_size)
        self.tower = DenseTower(self.vision_tower(), self.tower_stop(), self.unit_of_patch(), self.tower_has_cls())
        if self.placeholder is not None and self.placeholder not in tokenizer.tokenize(self.placeholder):
            raise EnvironmentProblem(
                f"model {name}: its tokenizer has no token {self.placeholder}; the checkpoint is incomplete"
            )

    # ------------------------------------------------------------------ what a family says

    @classmethod
    @abstractmethod
    def matches(cls, config: Mapping[str, Any]) -> str | None:
        """Why a config.json is of this family, None where it is not."""

    @classmethod
    def loading(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """What `from_pretrained` needs beyond the common settings.

        Raises:
            EnvironmentProblem: for a variant of the family that is not supported.
        """
        return {}

    @abstractmethod
    def token_grid(self) -> tuple[int, int]:
        """(rows, columns) of language-model tokens a frame."""

    @abstractmethod
    def unit_of_patch(self) -> Tensor:
        """(N,) the unit, a cell of `token_grid` in raster order, of each patch in raster order."""

    @abstractmethod
    def project(self, hidden: Tensor) -> Tensor:
        """(F, N, C) patches of full grids -> (F, rows*columns, D) language-model tokens."""

    @abstractmethod
    def template(self) -> tuple[str, str]:
        """Prompt text before the visual block, and behind it with `QUESTION` where the question goes."""

    def newline(self) -> Tensor | None:
        """(D,) embedding that closes the visual block, where the family has one."""
        return None

    def phrase(self, question: str) -> str:
        """The question as this model is used to reading it."""
        return question

    def notice(self, question: str, metadata: Mapping[str, str]) -> str | None:
        """One line where the model cannot know the answer; `metadata` are the film's container tags."""
        return None

    def vision_tower(self) -> Any:
        """The stock vision tower that reads frames."""
        return self.model.model.vision_tower

    def tower_has_cls(self) -> bool:
        return (
            hasattr(self.model.config.vision_config, "projection_dim")
            and "clip" in self.model.config.vision_config.model_type
        )

    def tower_stop(self) -> int:
        """Tower layers that run: those up to the selected hidden state."""
        selected = self.model.config.vision_feature_layer
        depth = self.model.config.vision_config.num_hidden_layers
        if not isinstance(selected, int):
            raise UsageError(f"{self.name} selects several vision layers ({selected}); one is supported")
        return selected if selected >= 0 else depth + 1 + selected

    # ------------------------------------------------------------------ encoding

    @torch.no_grad()
    def encode(
        self, images: np.ndarray, seconds: np.ndarray, first: int, methods: Sequence[EncodeMethod] = ()
    ) -> Encoded:
        """Encode a chunk of frames (F, H, W, 3) uint8 shown at `seconds` (F,); `first` is its first frame's number."""
        pixels = self.preprocess(images).to(self.device, self.dtype)
        frame = torch.arange(first, first + len(images), device=self.device)
        out = self.tower(pixels, frame, methods)
        features = self.project(out.hidden)
        tokens = self._tokens(features, out, torch.as_tensor(seconds, dtype=torch.float64, device=self.device))
        return Encoded(tokens, self.encode_cost(out))

    def _tokens(self, features: Tensor, out: TowerOutput, seconds: Tensor) -> VisualTokens:
        if bool(out.kept.all()):
            return VisualTokens.from_frames(features.flatten(0, 1), seconds, self.grid)
        frames, units = out.kept.shape
        flat = out.kept.flatten()
        place = flat.nonzero()[:, 0]
        slot = torch.full((frames * units,), -1, dtype=torch.int64, device=flat.device)
        slot[place] = torch.arange(len(place), device=flat.device)
        base = torch.arange(frames, device=flat.device)[:, None] * units
        absorbed = torch.where(out.absorbed_by >= 0, out.absorbed_by + base, -1).flatten()
        owner = torch.where(absorbed >= 0, slot[absorbed.clamp(min=0)], -1)
        return VisualTokens.from_frames(features.flatten(0, 1)[place], seconds, self.grid, owner, {"place": place})

    def encode_cost(self, out: TowerOutput) -> Cost:
        """FLOPs of one encoded chunk: patch embedding, tower layers, projector."""
        config = self.model.config.vision_config
        frames, patches = len(out.kept), len(self.tower.unit_of_patch)
        cost = patch_embed_cost(patches, 3 * config.patch_size**2, config.hidden_size, frames)
        for count, lengths in out.lengths:
            cost = cost + tower_cost(self.tower_shape, lengths, count)
        return cost + Cost(linear=out.counted) + self.projector_cost(frames * patches)

    def projector_cost(self, rows: int) -> Cost:
        width = self.decoder_shape.width
        return mlp_cost(rows, (self.tower_shape.width, width, width))

    def dense_encode_cost(self, frames: int) -> Cost:
        """FLOPs of encoding `frames` frames with nothing dropped."""
        config, patches = self.model.config.vision_config, len(self.tower.unit_of_patch)
        lengths = [patches + int(self.tower.has_cls)] * self.tower.stop
        embed = patch_embed_cost(patches, 3 * config.patch_size**2, config.hidden_size, frames)
        return embed + tower_cost(self.tower_shape, lengths, frames) + self.projector_cost(frames * patches)

    # ------------------------------------------------------------------ the prompt

    def question_ids(self, question: str) -> Tensor:
        """(Q,) token ids of the bare question."""
        return torch.tensor(
            self.tokenizer(question, add_special_tokens=False)["input_ids"], device=self.device, dtype=torch.int64
        )

    def embed(self, ids: Tensor) -> Tensor:
        """(Q, D) word embeddings of token ids."""
        return self.model.get_input_embeddings()(ids)

    def prompt(self, question: str, tokens: VisualTokens) -> tuple[Prompt, list[dict[str, str]]]:
        """Put the question and the visual tokens into the family's prompt; also returns the choices that this took.

        Raises:
            UsageError: for a special token inside the question, or more tokens than the trained context.
        """
        for special in self.tokenizer.all_special_tokens:
            if special in question:
                raise UsageError(f"the question contains {special!r}, a control token of this model: leave it out")
        pieces = self.prompt_ids(question)
        newline = self.newline()
        closing = [] if newline is None else [newline[None].to(self.dtype)]
        visual = tokens.features.to(self.device, self.dtype)
        embeddings = torch.cat([self.embed(pieces[0]), visual, *closing, self.embed(pieces[1])])
        rows, start = len(embeddings), len(pieces[0])
        if rows > self.context:
            raise UsageError(
                f"{rows} tokens would enter the language model, whose context is {self.context}: "
                "sample fewer frames (--max-frames) or keep less (--set merge.keep=…, merge.at_most)",
                stage="prompt",
            )
        tail = torch.arange(len(closing) + len(pieces[1]), device=self.device)
        choices: list[dict[str, str]] = []
        if start + tokens.extent + len(tail) > self.context:
            tokens = tokens.compacted()
            reason = f"the largest original position passes the trained context of {self.context}"
            choices.append({"name": "positions", "value": "compact", "reason": reason})
        position = torch.cat(
            (
                torch.arange(start, device=self.device),
                start + tokens.position.to(self.device),
                start + tokens.extent + tail,
            )
        )
        asked = self.question_ids(question)
        return Prompt(embeddings[None], position[None], (start, start + len(tokens)), asked), choices

    def prompt_ids(self, question: str) -> tuple[Tensor, Tensor]:
        """Token ids before and behind the visual block.

        Raises:
            UsageError: the question contains the placeholder.
        """
        before, behind = self.template()
        behind = behind.replace(QUESTION, question)
        if self.placeholder is None:
            return self._ids(before), self._ids(behind)
        begun = bool(self.tokenizer.bos_token) and before.startswith(self.tokenizer.bos_token)
        ids = self.tokenizer(f"{before}{self.placeholder}{behind}", add_special_tokens=not begun)["input_ids"]
        whole = torch.tensor(ids, device=self.device, dtype=torch.int64)
        places = (whole == self._placeholder_id()).nonzero()[:, 0].tolist()
        if len(places) != 1:
            raise UsageError(f"the question contains {self.placeholder!r}, a control token of this model: leave it out")
        return whole[: places[0]], whole[places[0] + 1 :]

    def chat(self, medium: str) -> tuple[str, str] | None:
        """The tokenizer's chat template with one `medium` ("video", "image") and the question, split at the former; None
        where it has none, or one that knows no such medium."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        content = [{"type": medium}, {"type": "text", "text": QUESTION}]
        try:
            text: str = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template for text alone fails on such content in a way of its own
            return None
        before, token, behind = text.partition(f"<{medium}>")
        return (before, behind) if token and token not in behind and QUESTION in behind else None

    def _placeholder_id(self) -> int:
        token: int = self.tokenizer.convert_tokens_to_ids(self.placeholder)
        return token

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(
            self.tokenizer(text, add_special_tokens=False)["input_ids"], device=self.device, dtype=torch.int64
        )

    # ------------------------------------------------------------------ answering

    @torch.no_grad()
    def generate(self, prompt: Prompt, session: Session, max_new_tokens: int = 64, logits: bool = False) -> Generation:
        """Greedy stock `generate()` under the session; one at a time on one model."""
        with self.lock, compressed(self.model, session) as trace:
            begun = time.perf_counter()
            out = self.model.generate(
                inputs_embeds=prompt.embeddings,
                attention_mask=torch.ones(prompt.embeddings.shape[:2], dtype=torch.int64, device=self.device),
                position_ids=prompt.position_ids,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,  # checkpoints that sample by default leave warnings behind otherwise
                top_p=None,
                top_k=None,
                return_dict_in_generate=True,
                output_logits=logits,
            )
            ended = time.perf_counter()
        ids = out.sequences[0].tolist()
        first = trace.marks[0] if trace.marks else ended
        return Generation(
            text=self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            ids=ids,
            trace=trace,
            logits=torch.stack([step[0] for step in out.logits]) if logits else None,
            prefill_seconds=first - begun,
            decode_seconds=ended - first,
        )


def even_units(side: int, stride: int) -> Tensor:
    """(side*side,) unit of every patch where stride x stride patches become one token; side must divide evenly."""
    rows = torch.arange(side) // stride
    columns = (side + stride - 1) // stride
    return (rows[:, None] * columns + rows[None, :]).flatten()
