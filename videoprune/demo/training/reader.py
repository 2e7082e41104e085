"""The language model as it is trained, and what it is taught beside the words of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from videoprune.demo import language, names
from videoprune.demo.training.common import WIDTH, WORD_RMS, build_model, word_rows
from videoprune.demo.training.compose import BOOKS, HEADER, Batch

BOOK_LAYER = 5
POINTING_HEADS = (0, 3)  # one head of each key/value group
OPTION_LAYER, OPTION_HEADS = 6, (1, 4)  # after the pointing heads: there the answer is known, here its letter is found
SYNONYM_NOISE = 0.3
Body = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]  # what Reader.forward takes and gives


class Reader(nn.Module):
    """The language model over words and visual tokens."""

    def __init__(self) -> None:
        super().__init__()
        model = build_model(len(language.VOCABULARY))
        self.lm, self.head = model.model.language_model, model.lm_head
        self.newline = nn.Parameter(torch.randn(model.config.text_config.hidden_size) * WORD_RMS)
        with torch.no_grad():
            words = self.lm.embed_tokens.weight.normal_(0, WORD_RMS)
            rows = word_rows()
            words[concept_ids()] = rows
            for word, concept in language.SYNONYMS.items():
                words[language.WORD_ID[word]] *= SYNONYM_NOISE
                words[language.WORD_ID[word]] += rows[names.CONCEPTS.index(concept)]

    def forward(
        self, ids: torch.Tensor, features: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Last hidden states, those after ``BOOK_LAYER`` and after ``OPTION_LAYER``: (B, L, WIDTH) each.

        The stock model's own forward.
        """
        words = self.lm.embed_tokens(ids)
        visual = features.shape[1]
        newline = self.newline.expand(ids.shape[0], 1, -1)
        hidden = torch.cat([words[:, :HEADER], features.to(words.dtype), newline, words[:, HEADER + visual + 1 :]], 1)
        turns = self.lm.rotary_emb(hidden, positions)
        after = []
        for layer in self.lm.layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=turns, position_ids=positions)
            after.append(hidden)
        return self.lm.norm(hidden), after[BOOK_LAYER - 1], after[OPTION_LAYER - 1]

    def attention_loss(
        self,
        number: int,
        heads: Sequence[int],
        hidden: torch.Tensor,
        batch: Batch,
        points: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        span: slice,
    ) -> torch.Tensor:
        """How little heads of layer ``number`` (from 0) look from places at what is told; mean over places.

        ``hidden`` (B, L, WIDTH) is the layer's input, ``points`` film (n,), place (n,) and told (n, tokens of ``span``).
        """
        film, place, told = points
        if not len(film):
            return hidden.sum() * 0.0
        layer = self.lm.layers[number]
        x = layer.input_layernorm(hidden)
        shape = (*x.shape[:2], -1, layer.self_attn.head_dim)
        turns = self.lm.rotary_emb(x, batch.positions)
        query, key = layer.self_attn.q_proj(x).view(shape), layer.self_attn.k_proj(x).view(shape)
        query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *turns)
        seen = batch.mask[film, 0, place, span]
        losses = []
        for head in heads:
            group = head // (query.shape[1] // key.shape[1])
            scores = torch.einsum("nd,nvd->nv", query[film, head, place].float(), key[film, group, span].float())
            scores = (scores * layer.self_attn.scaling).masked_fill(~seen, -1e4)
            losses.append(scores.logsumexp(-1) - scores.masked_fill(~told, -1e4).logsumexp(-1))
        return torch.stack(losses).mean()


def pointing_loss(reader: Reader, middle: torch.Tensor, batch: Batch) -> torch.Tensor:
    """How little two heads of the layer after ``BOOK_LAYER`` look at what an answer tells of; mean over answer tokens.

    Which picture answers a question is learnt very late from the words of answers alone.
    """
    span = slice(HEADER, HEADER + batch.features.shape[1])
    return reader.attention_loss(BOOK_LAYER, POINTING_HEADS, middle, batch, batch.points, span)


def option_loss(reader: Reader, late: torch.Tensor, batch: Batch) -> torch.Tensor:
    """How little two heads of the layer after ``OPTION_LAYER`` look at the right option where its letter comes next.

    Answering by a letter takes a match of texts after the answer is known: the last thing to be learnt from answers.
    """
    return reader.attention_loss(OPTION_LAYER, OPTION_HEADS, late, batch, batch.choices, slice(None))


class Bookkeeper(nn.Module):
    """Reads ``BOOKS`` from visual tokens in the middle of the model; only for training, never shipped.

    Answers are a few words a film; these labels are on every token that shows an object, and what they ask (who came
    before, the how-maniest) is what "right after", "how many times" and "in order" need.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(WIDTH, sum(BOOKS))
        self.spell = nn.Linear(WIDTH, len(language.LETTERS))

    def letters(self, middle: torch.Tensor, spelt: torch.Tensor) -> torch.Tensor:
        """Mean loss of telling from hidden states (B, L, WIDTH) which option a token spells: (B, L), -100 for none."""
        where = spelt >= 0
        if not where.any():
            return middle.sum() * 0.0
        return F.cross_entropy(self.spell(F.rms_norm(middle[where].float(), (WIDTH,))), spelt[where])

    def forward(self, middle: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
        """Mean loss from (B, L, WIDTH) hidden states and (B, visual, len(BOOKS)) labels."""
        visual = middle[:, HEADER : HEADER + books.shape[1]]
        where = books[..., 0] >= 0
        if not where.any():
            return middle.sum() * 0.0
        logits = self.read(F.rms_norm(visual[where].float(), (WIDTH,)))
        parts = zip(logits.split(BOOKS, -1), books[where].unbind(-1), strict=True)
        return torch.stack([F.cross_entropy(part, label) for part, label in parts]).mean()


def concept_ids() -> torch.Tensor:
    return torch.tensor([language.WORD_ID[word] for word in names.CONCEPTS])


def predict(
    body: Body, head: nn.Module, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (n, words) and targets (n,) of answer tokens, where they are (B, L - 1) bool, middle and late states."""
    hidden, middle, late = body(batch.ids, batch.features, batch.mask, batch.positions)
    targets = batch.labels[:, 1:]
    where = targets >= 0
    return head(hidden[:, :-1][where]).float(), targets[where], where, middle, late
