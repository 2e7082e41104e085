"""What every host family shares: frames in, visual tokens out, a prompt around them, and stock `generate()` under a session."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from videoprune.errors import EnvironmentProblem, UsageError
from videoprune.method import EncodeMethod
from videoprune.models.answering import Answering
from videoprune.models.framing import between
from videoprune.models.generation import check_text
from videoprune.models.preprocess import Preprocess, square_side
from videoprune.models.prompt import Encoded, Prompt, Sampling
from videoprune.models.session import VisualBlock
from videoprune.models.tower import DenseTower, TowerOutput
from videoprune.report.flops import Cost, TransformerShape, mlp_cost, patch_embed_cost, tower_cost
from videoprune.tokens import VisualTokens

QUESTION = "\N{REPLACEMENT CHARACTER}question\N{REPLACEMENT CHARACTER}"  # stands for the question while the template is rendered


class Host(Answering, ABC):
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
        next_turn: text between an answer and the next where no chat template says it, the end of the turn included.
        unused_weights: weights of a checkpoint that the stock class has no place for.
        video_processor: whether the family reads films with a video processor of its own, rather than as images.
        any_shape: whether frames of any shape are taken whole, so that there is nothing to fit.
        native_fit: how a frame that is not square is fitted where the checkpoint's processor does not decide; None leaves
            it to the processor.
        mean_std: normalisation of a checkpoint without a processor's settings; None is the tower's family's.
        model, tokenizer: stock transformers objects.
        pair: sampled frames that the tower reads as one frame of the ledger.
        grid: (rows, columns) of language-model tokens a frame; (0, 0) where it follows the film.
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
    pair: ClassVar[int] = 1
    video_processor: ClassVar[bool] = True
    native_fit: ClassVar[str | None] = None
    any_shape: ClassVar[bool] = False
    mean_std: ClassVar[tuple[tuple[float, ...], tuple[float, ...]] | None] = None
    next_turn: ClassVar[str] = f"<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
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
        self.vocabulary = int(text.vocab_size)
        self.tower = self.adopt_tower(vision)
        if self.placeholder is not None and self.placeholder not in tokenizer.tokenize(self.placeholder):
            raise EnvironmentProblem(
                f"model {name}: its tokenizer has no token {self.placeholder}; the checkpoint is incomplete"
            )

    def adopt_tower(self, vision: Any) -> Any:
        """The vision tower's loop for a vision config; sets what is known of the tower: `grid`, `tower_shape`."""
        self.patch_side = square_side(vision.image_size) // square_side(vision.patch_size)
        self.grid = self.token_grid()
        self.tower_shape = TransformerShape(
            layers=vision.num_hidden_layers,
            width=vision.hidden_size,
            mlp=vision.intermediate_size,
            heads=vision.num_attention_heads,
            kv_heads=vision.num_attention_heads,
            head_dim=vision.hidden_size // vision.num_attention_heads,
            gated_mlp=False,
        )
        return DenseTower(self.vision_tower(), self.tower_stop(), self.unit_of_patch(), self.tower_has_cls())

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

    @classmethod
    def own_preprocess(
        cls, read: Callable[[str], Mapping[str, Any]], config: Any, choices: list[dict[str, str]]
    ) -> Any:
        """Frames to pixels, where the family does it in a way of its own; None where `Preprocess` serves.

        Args:
            read: gives a JSON file of the checkpoint, empty where it has none. config: the loaded model's.
            choices: automatic choices are added here.
        """
        return None

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

    def separator(self) -> Tensor | None:
        """(D,) embedding behind each frame, where the family has one."""
        return None

    def added_rows(self, frames: int) -> int:
        """Rows of the ledger that stand for no token of a grid ([CLS], newlines), in a dense run over `frames` frames."""
        return 0

    def frame_texts(self, tokens: VisualTokens) -> Sequence[Tensor]:
        """Token ids (n,) of the text before each of the F frames inside the visual block; nothing where there is none."""
        return ()

    def step_seconds(self, times: Tensor) -> Tensor:
        """(F,) time of each frame of the ledger from those of the sampled frames that it is made of, (F, pair)."""
        return times[:, 0]

    def seconds_of_steps(self, seconds: np.ndarray) -> Tensor:
        """(F,) float64 time of each frame of the ledger from sampled frames shown at `seconds`, an odd last one repeated."""
        times = torch.as_tensor(seconds, dtype=torch.float64, device=self.device)
        return self.step_seconds(torch.cat((times, times[-1:].expand(-len(times) % self.pair))).view(-1, self.pair))

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
        self,
        images: np.ndarray,
        seconds: np.ndarray,
        first: int,
        methods: Sequence[EncodeMethod] = (),
        film: Sampling | None = None,
    ) -> Encoded:
        """Encode a chunk of frames (F, H, W, 3) uint8 shown at `seconds` (F,); `first` is its first frame's number.

        `film` says how many frames the whole film gives, for hosts whose pictures' size follows it; None where these are all.
        """
        pixels = self.preprocess(images).to(self.device, self.dtype)
        frame = torch.arange(first, first + len(images), device=self.device)
        out = self.tower(pixels, frame, methods)
        features = self.project(out.hidden)
        tokens = self._tokens(features, out, torch.as_tensor(seconds, dtype=torch.float64, device=self.device))
        return Encoded(tokens, self.encode_cost(out))

    def _tokens(self, features: Tensor, out: TowerOutput, seconds: Tensor) -> VisualTokens:
        if bool(out.kept.all()):
            return VisualTokens.from_frames(features.flatten(0, 1), seconds, self.grid, scores=out.scores_of())
        place, owner = out.ledger()
        return VisualTokens.from_frames(
            features.flatten(0, 1)[place], seconds, self.grid, owner, {"place": place, **out.scores_of(place)}
        )

    def encode_cost(self, out: TowerOutput) -> Cost:
        """FLOPs of one encoded chunk: patch embedding, tower layers, projector."""
        config = self.model.config.vision_config
        frames, patches = len(out.kept), len(self.tower.unit_of_patch)
        cost = patch_embed_cost(patches, 3 * square_side(config.patch_size) ** 2, config.hidden_size, frames)
        for count, lengths in out.lengths:
            cost = cost + tower_cost(self.tower_shape, lengths, count)
        return cost + Cost(linear=out.counted) + self.projector_cost(frames * patches)

    def projector_cost(self, rows: int) -> Cost:
        width = self.decoder_shape.width
        return mlp_cost(rows, (self.tower_shape.width, width, width))

    def dense_encode_cost(self, frames: int, grid: tuple[int, int] | None = None) -> Cost:
        """FLOPs of encoding `frames` frames with nothing dropped; `grid` is the film's, on hosts where it follows the film."""
        config, patches = self.model.config.vision_config, len(self.tower.unit_of_patch)
        lengths = [patches + int(self.tower.has_cls)] * self.tower.stop
        embed = patch_embed_cost(patches, 3 * square_side(config.patch_size) ** 2, config.hidden_size, frames)
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
        check_text(self.tokenizer, question, "question")
        before, behind = self.prompt_ids(question)
        return self.lay_out(before, behind, tokens, self.question_ids(question))

    def lay_out(
        self, before: Tensor, behind: Tensor, tokens: VisualTokens, question: Tensor
    ) -> tuple[Prompt, list[dict[str, str]]]:
        """Text ids (n,), the visual tokens, text ids (m,): embeddings and positions, and the choices that this took.

        Raises:
            UsageError: more tokens than the trained context.
        """
        newline = self.newline()
        closing = [] if newline is None else [newline[None].to(self.dtype)]
        texts = self.frame_texts(tokens)
        counts = torch.tensor([len(ids) for ids in texts] or [0] * tokens.frames, device=self.device)
        inner = self.embed(torch.cat([*texts, before[:0]]))
        rows, start = len(before) + len(inner) + len(tokens) + len(closing) + len(behind), len(before)
        self.check_context(rows)
        tail = torch.arange(len(closing) + len(behind), device=self.device)
        choices: list[dict[str, str]] = []
        if start + tokens.extent + len(inner) + len(tail) > self.context:
            tokens = tokens.compacted()
            choices.append(self._renumbered())
        inside, inside_position, end = between(tokens.to(self.device), counts)
        visual = torch.zeros(len(inside_position), inner.shape[1], dtype=inner.dtype, device=self.device)
        is_text = torch.ones(len(visual), dtype=torch.bool, device=self.device).index_fill_(0, inside, False)
        visual[inside], visual[is_text] = tokens.features.to(visual), inner
        embeddings = torch.cat([self.embed(before), visual, *closing, self.embed(behind)])
        position = torch.cat((torch.arange(start, device=self.device), start + inside_position, start + end + tail))
        block = VisualBlock(start, start + len(visual), start + inside)
        dense_rows = rows - len(tokens) + len(tokens.owner) + self.added_rows(tokens.frames)
        return Prompt(embeddings[None], position[None], block, question, dense_rows), choices

    def check_context(self, rows: int) -> None:
        """Refuse more rows than the language model was trained for.

        Raises:
            UsageError: with how to have fewer.
        """
        if rows > self.context:
            raise UsageError(
                f"{rows} tokens would enter the language model, whose context is {self.context}: "
                "sample fewer frames (--max-frames) or keep less (--set merge.keep=…, merge.at_most)",
                stage="prompt",
            )

    def _renumbered(self) -> dict[str, str]:
        reason = f"the largest original position passes the trained context of {self.context}"
        return {"name": "positions", "value": "compact", "reason": reason}

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

    def chat(self, medium: str, mark: str | None = None) -> tuple[str, str] | None:
        """The tokenizer's chat template with one `medium` ("video", "image") and the question, split at the former.

        The template writes it as `mark`, the placeholder where None is given. None where there is no template, or one that
        knows no such medium.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        content = [{"type": medium}, {"type": "text", "text": QUESTION}]
        try:
            text: str = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template for text alone fails on such content in a way of its own
            return None
        before, token, behind = text.partition(mark or self.placeholder or f"<{medium}>")
        return (before, behind) if token and token not in behind and QUESTION in behind else None

    def _placeholder_id(self) -> int:
        token: int = self.tokenizer.convert_tokens_to_ids(self.placeholder)
        return token

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(
            self.tokenizer(text, add_special_tokens=False)["input_ids"], device=self.device, dtype=torch.int64
        )


def even_units(side: int, stride: int) -> Tensor:
    """(side*side,) unit of every patch where stride x stride patches become one token; side must divide evenly."""
    rows = torch.arange(side) // stride
    columns = (side + stride - 1) // stride
    return (rows[:, None] * columns + rows[None, :]).flatten()
