"""Question relevance from embeddings, against a plain loop."""

from __future__ import annotations

import numpy as np
import torch

from videoprune.relevance.embedding import frame_relevance


def by_loops(features: np.ndarray, frame: np.ndarray, frames: int, words: np.ndarray, mean: np.ndarray, power: float):
    visual = features - features.mean(axis=0)
    out = np.zeros(frames)
    for word in words - mean:
        best = np.full(frames, np.nan)
        for number in range(frames):
            rows = visual[frame == number]
            if len(rows):
                norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(word)
                best[number] = max((row @ word) / norm for row, norm in zip(rows, norms, strict=True))
        excess = np.maximum(best - np.nanmean(best), 0)
        out += np.where(np.isnan(excess), 0, excess) ** power
    return out


def test_equals_the_loop_and_misses_no_frame() -> None:
    rng = np.random.default_rng(0)
    features, words, mean = rng.normal(size=(40, 8)), rng.normal(size=(5, 8)), rng.normal(size=8)
    frame = np.sort(rng.choice([0, 1, 2, 4, 5], size=40))  # frame 3 lost all its tokens
    for power in (1.0, 2.0):
        got = frame_relevance(
            torch.tensor(features), torch.tensor(frame), 6, torch.tensor(words), torch.tensor(mean), power
        )
        np.testing.assert_allclose(got.numpy(), by_loops(features, frame, 6, words, mean, power), atol=1e-5)
        assert float(got[3]) == 0


def test_a_word_that_one_frame_shows_wins() -> None:
    generator = torch.Generator().manual_seed(1)
    words = torch.randn(3, 16, generator=generator)
    features = torch.randn(30, 16, generator=generator) * 0.3
    features[17] += 3 * words[1]
    relevance = frame_relevance(features, torch.arange(30) // 5, 6, words, torch.zeros(16))
    assert int(relevance.argmax()) == 3
