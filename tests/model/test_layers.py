"""Feed-forward network and block against the plain reference."""

import math

import torch

from model import DecoderBlock, FeedForward
from tests.support import reference_decoder


def test_feed_forward_uses_the_exact_gelu() -> None:
    torch.manual_seed(0)
    ff = FeedForward(6, 0.0).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    parameters = dict(ff.named_parameters())
    middle = reference_decoder.gelu(reference_decoder.linear(x, parameters, "linear_in"))
    expected = reference_decoder.linear(middle, parameters, "linear_out")
    torch.testing.assert_close(ff(x), expected, rtol=1e-12, atol=1e-12)
    assert ff.linear_in.weight.shape == (24, 6)


def test_feed_forward_drops_its_output_only() -> None:
    torch.manual_seed(0)
    p = 0.2
    ff = FeedForward(64, p).double()
    x = torch.randn(300, 64, dtype=torch.float64)
    dropped = ff(x)
    ff.eval()
    kept = dropped != 0
    # Each output is 0 or scaled up: dropout inside the network would change the kept ones.
    torch.testing.assert_close(dropped, kept * ff(x) / (1 - p))
    assert abs(kept.double().mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / kept.numel())


def test_block_is_pre_norm_with_two_residuals() -> None:
    torch.manual_seed(0)
    block = DecoderBlock(8, 2, 0.0).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    p = dict(block.named_parameters())
    for ours, row in zip(block(x), x, strict=True):
        normed = reference_decoder.layer_norm(row, p, "ln_1")
        y = row + reference_decoder.attention(normed, p, "mha", 2, reference_decoder.keep_all)
        middle = reference_decoder.gelu(
            reference_decoder.linear(reference_decoder.layer_norm(y, p, "ln_2"), p, "ff.linear_in")
        )
        expected = y + reference_decoder.linear(middle, p, "ff.linear_out")
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
