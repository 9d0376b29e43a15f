"""The default chunk of the loss."""

import pytest

from model.cpu.block_sizes import CPU_CHUNK_LOGITS, CUDA_CHUNK_LOGITS, loss_chunk_tokens


@pytest.mark.parametrize("n_vocab", [1, 257, 50257, 50304, 1 << 20, 1 << 24])
@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_chunk_fits_its_size_and_is_a_multiple_of_32(n_vocab: int, kind: str) -> None:
    size = CUDA_CHUNK_LOGITS if kind == "cuda" else CPU_CHUNK_LOGITS
    chunk = loss_chunk_tokens(n_vocab, kind)
    assert chunk % 32 == 0
    assert chunk == 32 or chunk * n_vocab <= size < (chunk + 32) * n_vocab


def test_gpt2_on_a_cpu() -> None:
    assert loss_chunk_tokens(50257) == loss_chunk_tokens(50257, "cpu") == 640
