"""YOLOS and DETR with cells dropped: stock where nothing is, the masked reading where something is."""

import pytest
import torch
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
)

from tests.tiny import spread
from videoprune.errors import UsageError
from videoprune.models.detectors import PrunedDetr, PrunedYolos

SIZE, QUERIES, CLASSES = (32, 48), 5, 3
LABELS = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 3


def yolos(middle=False):
    config = YolosConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=list(SIZE), patch_size=8,
        num_detection_tokens=QUERIES, num_labels=CLASSES, use_mid_position_embeddings=middle,
    )  # fmt: skip
    return spread(YolosForObjectDetection(config)).eval()


def detr(positions="sine"):
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=backbone, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=QUERIES,
        num_labels=CLASSES, position_embedding_type=positions,
    )  # fmt: skip
    return DetrForObjectDetection(config).eval()


@pytest.fixture
def pixels():
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def choose(counts):
    """Different cells of each picture, as many as `counts` says."""

    def chosen(pixels, grid):
        keep = torch.zeros(len(pixels), grid[0] * grid[1], dtype=torch.bool)
        for row, count in enumerate(counts):
            generator = torch.Generator().manual_seed(row)
            keep[row, torch.randperm(keep.shape[1], generator=generator)[:count]] = True
        return keep

    return chosen


@torch.no_grad()
@pytest.mark.parametrize("make", [yolos, lambda: yolos(True), detr], ids=["yolos", "yolos-middle", "detr"])
def test_nothing_dropped_equals_stock(make, pixels):
    model = make()
    stock = model(pixels, labels=LABELS)
    pruned = (PrunedDetr if isinstance(model, DetrForObjectDetection) else PrunedYolos)(model)
    for found in (pruned(pixels), type(pruned)(model, choose((24, 24, 24)))(pixels)):
        torch.testing.assert_close(found.logits, stock.logits, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.boxes, stock.pred_boxes, atol=1e-6, rtol=0)
        assert found.kept.shape == (3, 24)
        torch.testing.assert_close(pruned.loss(found, LABELS), stock.loss)


@torch.no_grad()
@pytest.mark.parametrize("counts", [(7, 7, 7), (24, 3, 1)])
@pytest.mark.parametrize("middle", [False, True])
def test_yolos_equals_a_masked_reading(counts, middle, pixels):
    """All rows go through every layer; those that were dropped are hidden from everyone."""
    model = yolos(middle)
    found = PrunedYolos(model, choose(counts))(pixels)
    assert found.kept.sum(dim=1).tolist() == list(counts)
    hidden = model.vit.embeddings(pixels)
    ends = torch.ones(3, 1, dtype=torch.bool), torch.ones(3, QUERIES, dtype=torch.bool)
    seen = torch.cat((ends[0], found.kept, ends[1]), dim=1)
    added = model.vit.encoder.interpolation(SIZE) if middle else None
    for number, layer in enumerate(model.vit.encoder.layer):
        inner, normed = layer.attention.attention, layer.layernorm_before(hidden)
        q, k, v = (
            part(normed).unflatten(-1, (2, 16)).transpose(1, 2) for part in (inner.query, inner.key, inner.value)
        )
        share = (q @ k.transpose(2, 3) / 4).masked_fill(~seen[:, None, None], -torch.inf).softmax(dim=-1)
        hidden = hidden + layer.attention.output.dense((share @ v).transpose(1, 2).flatten(2))
        hidden = layer.output(layer.intermediate(layer.layernorm_after(hidden)), hidden)
        if middle and number < 2:
            hidden = hidden + added[number]
    rows = model.vit.layernorm(hidden)[:, -QUERIES:]
    torch.testing.assert_close(found.logits, model.class_labels_classifier(rows), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes, model.bbox_predictor(rows).sigmoid(), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("counts", [(7, 7, 7), (24, 3, 1)])
def test_detr_equals_the_stock_model_with_a_pixel_mask(counts, pixels):
    """Learned positions do not depend on the mask, as sine ones do."""
    model = detr("learned")
    found = PrunedDetr(model, choose(counts))(pixels)
    mask = found.kept.view(3, 4, 6).repeat_interleave(8, 1).repeat_interleave(8, 2).long()
    stock = model(pixels, pixel_mask=mask)
    torch.testing.assert_close(found.logits, stock.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes, stock.pred_boxes, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("make", [yolos, detr])
def test_a_picture_alone_is_as_in_a_batch(make, pixels):
    model = make()
    pruned = PrunedDetr if make is detr else PrunedYolos
    together = pruned(model, choose((5, 9, 5)))(pixels)
    alone = pruned(model, lambda one, grid: choose((5, 9, 5))(pixels, grid)[1:2])(pixels[1:2])
    torch.testing.assert_close(alone.logits[0], together.logits[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [yolos, detr])
def test_the_detector_learns_through_what_is_kept(make, pixels):
    model = make().train()
    pruned = (PrunedDetr if make is detr else PrunedYolos)(model, choose((5, 9, 5)))
    pruned.loss(pruned(pixels), LABELS).backward()
    grad = (
        model.model.encoder.layers[0].mlp.fc1 if make is detr else model.vit.encoder.layer[0].output.dense
    ).weight.grad
    assert grad is not None
    assert float(grad.abs().sum()) > 0


def test_a_picture_without_cells_is_refused(pixels):
    with pytest.raises(UsageError, match="keeps no cell"):
        PrunedYolos(yolos(), choose((5, 0, 5)))(pixels)
