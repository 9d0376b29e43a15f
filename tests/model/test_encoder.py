"""The encoder against the plain float64 reference, and masked-token training."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import CrossAttention, DecoderLM, EncoderLM, MultiHeadAttention
from model.config import ModelConfig
from model.encoder import CorruptedTokens, EncoderBlock, corrupt_tokens, masked_token_loss
from tests.support import reference_encoder as reference
from tests.support.comparing import CapturedDropout, assert_same_gradients, gradients
from tests.support.reference_decoder import keep_all, softmax

V, D, H, P, L = 23, 8, 2, 7, 2
MASK_ID, SEPARATOR = 22, 21


def make(p_dropout: float = 0.0, seed: int = 0) -> EncoderLM:
    """A float64 model whose parameters are all far from their initial values."""
    torch.manual_seed(seed)
    model = EncoderLM(V, D, H, P, L, p_dropout).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Attention, both kinds


@pytest.mark.parametrize("n_head", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_bidirectional_attention_equals_loops(n_head: int, masked: bool) -> None:
    torch.manual_seed(0)
    mha = MultiHeadAttention(8, n_head, 0.0, causal=False).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 5, 8, dtype=torch.float64)
    ours = mha(x, torch.ones(2, 5) if masked else None)
    named = {f"mha.{name}": p for name, p in mha.named_parameters()}
    expected = torch.stack(
        [
            reference.attention(row, row, named, "mha", n_head, reference.everything, keep_all)
            for row in x
        ]
    )
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    inputs = [x, *mha.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n_head", [1, 2, 4])
@pytest.mark.parametrize("mask", [None, [1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]])
def test_cross_attention_equals_loops(n_head: int, mask: list[int] | None) -> None:
    """Every query sees all content of the memory, no padding; without content it gets zeros."""
    torch.manual_seed(0)
    cross = CrossAttention(8, n_head, 0.0).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 5, 8, dtype=torch.float64)
    ours = cross(x, memory, None if mask is None else torch.tensor([mask, mask]))
    content = torch.tensor(mask or [1, 1, 1]).bool()
    named = {f"cross.{name}": p for name, p in cross.named_parameters()}
    expected = torch.stack(
        [
            reference.attention(a, m, named, "cross", n_head, reference.everything, keep_all)
            for a, m in zip(x, memory[:, content], strict=True)
        ]
    )
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    if not content.any():
        assert torch.equal(ours, cross.proj.bias.expand(2, 5, 8))
    inputs = [x, memory, *cross.parameters()]
    expected_gradients = torch.autograd.grad(
        (expected * direction).sum(), inputs, materialize_grads=True, allow_unused=True
    )
    for a, b in zip(
        torch.autograd.grad((ours * direction).sum(), inputs), expected_gradients, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 16)])
def test_cross_attention_drops_weights_and_output(mask: Tensor | None) -> None:
    """With v = x = identity and no projection, the output is the weights: 0 or w / (1 - p)²."""
    p, n = 0.3, 400
    torch.manual_seed(0)
    cross = CrossAttention(16, 1, p).double()
    with torch.no_grad():
        for linear in (cross.v_attn, cross.proj):
            linear.weight.copy_(torch.eye(16))
            linear.bias.zero_()
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    memory = torch.eye(16, dtype=torch.float64)[None]
    weights = cross.eval()(x, memory, mask)
    cross.train()
    draws = torch.stack([cross(x, memory, mask) for _ in range(n)])
    kept = draws != 0
    torch.testing.assert_close(draws, kept * weights / (1 - p) ** 2)
    keep = (1 - p) ** 2
    assert abs(kept.double().mean() - keep) < 5 * math.sqrt(keep * (1 - keep) / kept.numel())


def test_cross_attention_needs_heads_that_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"n_embd = 10 is not a multiple of n_head = 4"):
        CrossAttention(10, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_padding_give_zeros_and_finite_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mha = MultiHeadAttention(8, 2, 0.0, causal=False).to(dtype)
    x = torch.randn(2, 4, 8, dtype=dtype, requires_grad=True)
    out = mha.self_attention(*mha.q_kT_v(x), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]))
    assert torch.equal(out[1], torch.zeros(4, 8, dtype=dtype))
    assert out[0].abs().min() > 0  # padding may look at content: nobody looks at padding
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[1], torch.zeros(4, 8, dtype=dtype))


@pytest.mark.parametrize("head_dim", [16, 128])  # below and above SLOW_CPU_HEAD_DIM
def test_autocast_is_close_to_float32(head_dim: int) -> None:
    torch.manual_seed(0)
    block = EncoderBlock(2 * head_dim, 2, 0.0)
    cross = CrossAttention(2 * head_dim, 2, 0.0)
    x = torch.randn(2, 9, 2 * head_dim)
    exact = cross(x, block(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = cross(x, block(x))
    assert low.dtype == torch.bfloat16
    assert 0 < (low.float() - exact).norm() / exact.norm() < 2e-2


# The model


def test_logits_and_all_gradients_equal_the_reference() -> None:
    model = make()
    ids = torch.randint(V, (3, P))
    parameters = dict(model.named_parameters())
    logits = model(ids)
    expected = torch.stack([reference.encoder_logits(parameters, row, H, L) for row in ids])
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-12)
    direction = torch.randn_like(logits)
    assert_same_gradients(
        gradients((logits * direction).sum(), model),
        gradients((expected * direction).sum(), model),
    )


@settings(max_examples=25, deadline=None)
@given(
    mask=st.lists(st.integers(0, 1), min_size=1, max_size=P).filter(any),
    seed=st.integers(0, 2**16),
)
def test_padding_anywhere_changes_nothing(mask: list[int], seed: int) -> None:
    model = make(seed=seed)
    ids = torch.randint(V, (1, len(mask)))
    attention_mask = torch.tensor([mask], dtype=torch.float32)
    alone = ids[0, attention_mask[0].bool()]
    ours = model(ids, attention_mask)[0, attention_mask[0].bool()]
    expected = reference.encoder_logits(dict(model.named_parameters()), alone, H, L)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours, model(alone[None])[0], rtol=1e-11, atol=1e-12)


def test_gradients_with_padding_equal_those_of_the_sequences_alone() -> None:
    model = make()
    ids = torch.randint(V, (4, 6))
    mask = torch.tensor(
        [[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    )
    content = mask.bool()
    direction = torch.randn(4, 6, V, dtype=torch.float64)
    ours = (model(ids, mask) * direction)[content].sum()
    parameters = dict(model.named_parameters())
    expected = sum(
        (reference.encoder_logits(parameters, ids[b, c], H, L) * direction[b, c]).sum()
        for b, c in enumerate(content[:3])
    )
    assert isinstance(expected, Tensor)
    assert_same_gradients(gradients(ours, model), gradients(expected, model))


def test_what_stands_under_the_padding_does_not_matter() -> None:
    model = make()
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]])
    ids = torch.randint(V, (1, 5))
    other = torch.where(mask == 0, (ids + 1) % V, ids)
    content = mask[0].bool()
    assert torch.equal(model(ids, mask)[:, content], model(other, mask)[:, content])
    assert model(ids, torch.zeros(1, 5)).isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_every_position_sees_every_other(masked: bool) -> None:
    model = make()
    ids = torch.randint(V, (1, P))
    mask = torch.ones(1, P) if masked else None
    before = model(ids, mask)
    for s in range(P):
        changed = ids.clone()
        changed[0, s] = (changed[0, s] + 1) % V
        assert ((model(changed, mask) - before).abs().amax(dim=-1) > 1e-9).all()


def test_dropout_is_where_the_decoder_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the masks that the model drew, the reference gives the same logits."""
    model = make(p_dropout=0.4)
    ids = torch.randint(V, (1, P))
    dropout = CapturedDropout()
    monkeypatch.setattr(F, "dropout", dropout)
    logits = model(ids, torch.ones(1, P))  # with a mask, attention is written out
    monkeypatch.undo()

    masks = iter(dropout.masks)
    places = {"embedding": next(masks)[0]}
    for i in range(L):
        weights = next(masks)[0]
        places |= {
            f"blocks.{i}.mha.weights.{head}.{t}": weights[head, t]
            for head in range(H)
            for t in range(P)
        }
        places[f"blocks.{i}.mha.output"] = next(masks)[0]
        places[f"blocks.{i}.ff.output"] = next(masks)[0]
    assert next(masks, None) is None
    used: list[str] = []

    def drop(place: str, x: Tensor) -> Tensor:
        used.append(place)
        return x * places[place]

    parameters = dict(model.named_parameters())
    expected = reference.encoder_logits(parameters, ids[0], H, L, drop)
    assert sorted(used) == sorted(places)
    torch.testing.assert_close(logits[0], expected, rtol=1e-11, atol=1e-12)


def test_no_dropout_in_evaluation_or_at_zero() -> None:
    ids = torch.randint(V, (2, P))
    with_dropout, without = make(0.5), make(0.0)
    assert not torch.equal(with_dropout(ids), with_dropout(ids))
    assert torch.equal(with_dropout.eval()(ids), without(ids))


def test_parameters_and_initial_weights_are_those_of_the_decoder() -> None:
    shape = ModelConfig(n_vocab=V, n_embd=D, n_head=H, n_positions=P, n_layer=3, p_dropout=0.2)
    torch.manual_seed(5)
    encoder = EncoderLM.from_config(shape)
    torch.manual_seed(5)
    decoder = DecoderLM.from_config(shape)
    ours, theirs = encoder.state_dict(), decoder.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert encoder.shape == shape
    assert encoder.flops_per_token == decoder.flops_per_token
    assert encoder.dropout.p == encoder.blocks[2].mha.p_dropout == encoder.blocks[0].ff.dropout.p
    assert encoder.head_weight is encoder.token_embeddings.weight


def test_unusable_input_is_a_clear_error() -> None:
    ids = torch.zeros(1, P + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"8 tokens .* for 7 \(n_positions\)"):
        make()(ids)
    with pytest.raises(ValueError, match=r"\(1, 4\), expected that of input_ids, \(1, 5\)"):
        make()(ids[:, :5], torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"n_embd = 10 is not a multiple of n_head = 4"):
        EncoderLM(V, 10, 4, P, L)


# Masked-token training


def test_shares_are_15_80_10_10() -> None:
    ids = torch.randint(20, (300, 400), generator=seeded(1))
    inputs, chosen, targets = corrupt_tokens(ids, None, V, MASK_ID, generator=seeded())
    n, k = ids.numel(), int(chosen.sum())
    masked = int((inputs[chosen] == MASK_ID).sum())
    changed = int(((inputs != ids) & (inputs != MASK_ID)).sum())

    def expect(count: int, trials: int, p: float) -> None:
        assert abs(count - trials * p) < 5 * math.sqrt(trials * p * (1 - p))

    expect(k, n, 0.15)
    expect(masked, k, 0.8)
    other = (V - 2) / (V - 1)  # one random id in 22 is what stood there before
    expect(changed, k, 0.1 * other)
    expect(k - masked - changed, k, 0.1 + 0.1 * (1 - other))
    assert torch.equal(targets, ids[chosen])
    # Independent of the place: no row or column is chosen more often than chance allows.
    for dim, trials in ((0, 300), (1, 400)):
        counts = chosen.sum(dim=dim).double()
        assert ((counts - trials * 0.15).abs() < 5 * math.sqrt(trials * 0.15 * 0.85)).all()


def test_random_ids_are_uniform_over_ordinary_ids() -> None:
    ids = torch.zeros(200, 500, dtype=torch.int64)
    inputs, chosen, _ = corrupt_tokens(
        ids, None, V, MASK_ID, generator=seeded(), special_ids=[SEPARATOR, 3],
        p_chosen=1.0, p_mask=0.0, p_random=1.0,
    )  # fmt: skip
    assert chosen.all()
    counts = inputs.flatten().bincount(minlength=V).double()
    ordinary = torch.ones(V, dtype=torch.bool)
    ordinary[[3, SEPARATOR, MASK_ID]] = False
    assert not counts[~ordinary].any()
    p = 1 / 20
    assert ((counts[ordinary] - 1e5 * p).abs() < 5 * math.sqrt(1e5 * p * (1 - p))).all()


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    p_chosen=st.sampled_from([1e-9, 0.15, 0.5, 1.0]),
    padded=st.booleans(),
)
def test_only_content_that_is_not_special_is_chosen(
    rows: int, columns: int, seed: int, p_chosen: float, padded: bool
) -> None:
    ids = torch.randint(V, (rows, columns), generator=seeded(seed))
    mask = torch.randint(2, (rows, columns), generator=seeded(seed + 1)) if padded else None
    inputs, chosen, targets = corrupt_tokens(
        ids, mask, V, MASK_ID, generator=seeded(), special_ids=[SEPARATOR], p_chosen=p_chosen
    )
    eligible = (ids != MASK_ID) & (ids != SEPARATOR)
    if mask is not None:
        eligible &= mask == 1
    assert not (chosen & ~eligible).any()
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert torch.equal(targets, ids[chosen])
    assert not (inputs[chosen] == SEPARATOR).any()
    if p_chosen == 1.0:
        assert torch.equal(chosen, eligible)
    if p_chosen == 1e-9:  # chance chooses none: exactly one is taken, if there is one
        assert int(chosen.sum()) == int(eligible.any())


def test_corruption_is_a_function_of_the_generator() -> None:
    ids = torch.randint(20, (8, 30), generator=seeded(1))

    def corrupt(seed: int, ids: Tensor = ids) -> CorruptedTokens:
        return corrupt_tokens(ids, None, V, MASK_ID, generator=seeded(seed))

    one, again, other = corrupt(3), corrupt(3), corrupt(4)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.chosen, other.chosen)
    # Another id in one place changes nothing elsewhere.
    changed = ids.clone()
    changed[2, 5] = (ids[2, 5] + 1) % 20
    elsewhere = torch.ones(8, 30, dtype=torch.bool)
    elsewhere[2, 5] = False
    assert torch.equal(corrupt(3, changed).chosen, one.chosen)
    assert torch.equal(corrupt(3, changed).inputs[elsewhere], one.inputs[elsewhere])
    # The global generator is neither used nor moved.
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    corrupt(3)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"p_chosen": 0.0}, "p_chosen = 0.0"),
        ({"p_mask": 0.8, "p_random": 0.3}, "p_random = 0.3.* at most 1"),
        ({"p_random": -0.1}, "p_random = -0.1"),
        ({"special_ids": [V]}, r"\[22, 23\].*from 0 to 22"),
        ({"special_ids": range(V)}, "at least one more"),
        ({"attention_mask": torch.ones(2, 3)}, r"shape \(2, 3\), expected .* \(2, 4\)"),
    ],
)
def test_unusable_settings_are_clear_errors(settings_: dict[str, object], message: str) -> None:
    arguments = {"attention_mask": None, "generator": seeded(), **settings_}
    ids = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        corrupt_tokens(ids, n_vocab=V, mask_id=MASK_ID, **arguments)  # type: ignore[arg-type]


def test_loss_is_that_of_the_chosen_positions_with_gradients() -> None:
    model = make()
    ids = torch.randint(20, (3, P))
    mask = torch.tensor([[1] * P, [0, 0] + [1] * (P - 2), [1] * (P - 3) + [0] * 3])
    corrupted = corrupt_tokens(ids, mask, V, MASK_ID, generator=seeded(), p_chosen=0.5)
    loss = masked_token_loss(model, corrupted, mask, chunk_tokens=4)

    parameters = dict(model.named_parameters())
    losses = []
    for b in range(3):
        content = mask[b].bool()
        logits = reference.encoder_logits(parameters, corrupted.inputs[b, content], H, L)
        targets, chosen = ids[b, content], corrupted.chosen[b, content]
        losses += [-torch.log(softmax(logits[t])[targets[t]]) for t in chosen.nonzero().flatten()]
    assert 3 < len(losses) < int(mask.sum())
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
    assert_same_gradients(gradients(loss, model), gradients(expected, model))


def test_a_batch_without_a_token_to_predict_is_a_clear_error() -> None:
    ids = torch.full((1, 3), MASK_ID)
    corrupted = corrupt_tokens(ids, None, V, MASK_ID, generator=seeded())
    assert torch.equal(corrupted.inputs, ids)
    with pytest.raises(ValueError, match="nothing but padding and special tokens"):
        masked_token_loss(make(), corrupted)


def test_it_learns_to_fill_in_from_both_sides() -> None:
    """Fresh cyclic sequences a, a + 1, ...: a hidden token follows from any other.

    A hidden first token can only be known from what comes after it.
    """
    torch.manual_seed(0)
    n, length, mask_id = 12, 8, 12
    model = EncoderLM(n + 1, 32, 2, length, 2, 0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = seeded()

    def batch(rows: int) -> Tensor:
        return (torch.randint(n, (rows, 1), generator=generator) + torch.arange(length)) % n

    losses = []
    for _ in range(250):
        corrupted = corrupt_tokens(batch(64), None, n + 1, mask_id, generator=generator)
        loss = masked_token_loss(model, corrupted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 * math.log(n)
    ids = batch(100)
    hidden_first = ids.clone()
    hidden_first[:, 0] = mask_id
    guesses = model(hidden_first)[:, 0].argmax(dim=-1)
    assert (guesses == ids[:, 0]).double().mean() > 0.98
