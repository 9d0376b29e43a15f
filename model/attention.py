"""Multi-head attention from products and a softmax, all heads in one product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.cpu.attention import attend_in_blocks
from model.cpu.block_sizes import SLOW_CPU_HEAD_DIM, attends_in_blocks
from model.kv_cache import LayerCache, LayerMemory, NewTokens
from model.rotary import rotate


def attend(
    q: Tensor, kT: Tensor, v: Tensor, allowed: Tensor | None, scale: float, p_dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention, written out (Vaswani et al. 2017, eq. 1).

    Of queries q (B, H, T, HD), transposed keys kT (B, H, HD, S) and values v (B, H, S, HD).
    `allowed`, a bool that broadcasts to (B, H, T, S), says which query may see which key; None:
    all.

    Returns:
        (B, H, T, HD). A query that may see no key gets zeros (and passes zero gradients), not NaN.
    """
    scores = (q * scale) @ kT
    if allowed is None:
        weights = scores.softmax(dim=-1)
    else:
        # The lowest finite number, not -inf: a row without any key must not turn into NaN, in the
        # gradient neither. The second fill makes such a row zero; elsewhere it changes nothing.
        forbidden = ~allowed
        scores = scores.masked_fill(forbidden, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1).masked_fill(forbidden, 0.0)
    return F.dropout(weights, p_dropout) @ v


def padding_mask(attention_mask: Tensor) -> Tensor:
    """Which position may be seen: bool (B, 1, 1, S), False where attention_mask (B, S) is 0."""
    return (attention_mask != 0)[:, None, None, :]


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, p_dropout: float, causal: bool
) -> Tensor:
    """What `attend` gives without padding, by torch's fused kernel.

    q is (B, H, T, HD), k and v are (B, H, S, HD); causal needs T = S.
    """
    if v.device.type == "cpu" and v.dtype == torch.bfloat16 and attends_in_blocks(*v.shape[2:]):
        return attend_in_blocks(q, k, v, scale, p_dropout, causal)
    if _is_slow(v):
        with torch.autocast("cpu", enabled=False):
            wide = _fused_attention(q.float(), k.float(), v.float(), scale, p_dropout, causal)
        return wide.to(v.dtype)
    return F.scaled_dot_product_attention(
        q, k, v, dropout_p=p_dropout, is_causal=causal, scale=scale
    )


def _is_slow(heads: Tensor) -> bool:
    """Whether attention of heads (B, H, S, HD) of this type is better done in float32."""
    narrow = heads.shape[-1] <= SLOW_CPU_HEAD_DIM
    return heads.device.type == "cpu" and heads.dtype == torch.bfloat16 and narrow


class _Projections(nn.Module):
    """What self-attention and cross-attention share: four projections, dropout on the output."""

    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.n_embd, self.n_head, self.head_dim = shape.n_embd, shape.n_head, shape.head_dim
        self.p_dropout = shape.p_dropout
        self.q_attn, self.k_attn, self.v_attn, self.proj = (
            nn.Linear(shape.n_embd, shape.n_embd, bias=shape.bias) for _ in range(4)
        )
        self.dropout = nn.Dropout(shape.p_dropout)
        self.scale = self.head_dim**-0.5

    def projection(self, attn: Tensor) -> Tensor:
        """Output projection and dropout, (B, S, D) to (B, S, D)."""
        return self.dropout(self.proj(attn))


class CrossAttention(_Projections):
    """Multi-head attention of one sequence to another (Vaswani et al. 2017, 3.2.3).

    Dropout is on the weights and on the output.
    """

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        """Let each position of x (B, T, D) see all content of memory (B, S, D).

        The mask (B, S) is 1 for content and 0 for padding; None: all content. Where memory is
        nothing but padding, the result is the projection of zeros.
        """
        return self.look(x, self.remember(memory, memory_mask))

    def remember(self, memory: Tensor, memory_mask: Tensor | None = None) -> LayerMemory:
        """Project memory to keys and values; arguments as in `forward`."""
        B, S, _ = memory.shape
        by_head = (B, S, self.n_head, self.head_dim)
        k = self.k_attn(memory).view(by_head).transpose(1, 2)
        v = self.v_attn(memory).view(by_head).transpose(1, 2)
        return LayerMemory(k, v, None if memory_mask is None else padding_mask(memory_mask))

    def look(self, x: Tensor, seen: LayerMemory) -> Tensor:
        """What `forward` gives for x (B, T, D) and the memory that `remember` projected."""
        B, T, _ = x.shape
        q = self.q_attn(x).view(B, T, self.n_head, self.head_dim).transpose(1, 2)
        p_dropout = self.p_dropout if self.training else 0.0
        if seen.allowed is None:
            heads = _fused_attention(q, seen.keys, seen.values, self.scale, p_dropout, causal=False)
        else:
            heads = attend(q, seen.keys.mT, seen.values, seen.allowed, self.scale, p_dropout)
        return self.projection(heads.transpose(1, 2).reshape(x.shape))


class SelfAttention(_Projections):
    """Multi-head self-attention (GPT-2): dropout on the weights and on the output."""

    def __init__(self, shape: ModelConfig, *, causal: bool = True) -> None:
        """Build the projections.

        With `qk_norm` each query and key is divided by its root mean square (Henry et al. 2020;
        Dehghani et al. 2023), so that scores stay within √HD. `causal`: a position sees nothing
        after it; else all content, as in an encoder.
        """
        super().__init__(shape)
        self.causal = causal
        self.qk_norm = shape.qk_norm
        # Only for checkpoints of the course's reference, which hold it; the code uses `scale`.
        self.register_buffer("scale_factor", torch.tensor(self.scale))

    def q_kT_v(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: N802 - the course's name
        """Project x (B, S, D) to q (B, H, S, HD), kT (B, H, HD, S) and v (B, H, S, HD)."""
        parts = (self.q_attn, self.k_attn, self.v_attn)
        by_head = (*x.shape[:2], -1, self.n_head, self.head_dim)
        # One product for all where gradients are wanted; hooks on the three layers are not called
        # then. Elsewhere tokens may be few, and joining the weights would cost more than it saves.
        if torch.is_grad_enabled():
            weight = torch.cat([part.weight for part in parts])
            bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
            q, k, v = F.linear(x, weight, bias).view(by_head).unbind(2)
        else:
            q, k, v = (part(x).view(by_head).squeeze(2) for part in parts)
        return q.transpose(1, 2), k.permute(0, 2, 3, 1), v.transpose(1, 2)

    def self_attention(
        self, q: Tensor, kT: Tensor, v: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Attention of q (B, H, S, HD), kT (B, H, HD, S), v (B, H, S, HD), before the projection.

        The mask (B, S) is 1 for content and 0 for padding; None: all content.

        Returns:
            (B, S, D), the heads side by side. Zeros where a position may see nothing.
        """
        B, _, S, _ = q.shape
        p_dropout = self.p_dropout if self.training else 0.0
        if attention_mask is None:
            k = kT.transpose(-2, -1)
            heads = _fused_attention(q, k, v, self.scale, p_dropout, self.causal)
        else:
            allowed = padding_mask(attention_mask)
            if self.causal:
                allowed = allowed & torch.ones(S, S, dtype=torch.bool, device=q.device).tril()
            heads = attend(q, kT, v, allowed, self.scale, p_dropout)
        return heads.transpose(1, 2).reshape(B, S, self.n_embd)

    def placed(
        self, q: Tensor, kT: Tensor, rotation: Tensor | None, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Queries and transposed keys as they are compared: normalised and rotated, if so built.

        Those that are rotated have the given type; None: that of q.
        """
        if not self.qk_norm and rotation is None:
            return q, kT
        k = kT.mT
        if self.qk_norm:
            q, k = (F.rms_norm(each, (self.head_dim,)) for each in (q, k))
        if rotation is not None:
            q, k = rotate(q, rotation, dtype), rotate(k, rotation, dtype)
        return q, k.mT

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        """Attend x (B, S, D) to itself; the mask is that of `self_attention`.

        The rotation is that of each position (`model.rotary.rotate`); None: none.
        """
        q, kT, v = self.q_kT_v(x)
        # Where fused attention converts them to float32 or bf16, rotation leaves them in float32.
        wide = attention_mask is None and _is_slow(v)
        q, kT = self.placed(q, kT, rotation, torch.float32 if wide else None)
        return self.projection(self.self_attention(q, kT, v, attention_mask))

    def extend(
        self, x: Tensor, past: LayerCache, new: NewTokens, rotation: Tensor | None = None
    ) -> Tensor:
        """Attend new tokens x (B, T, D) to themselves and to what `past` holds; no dropout."""
        q, kT, v = self.q_kT_v(x)
        q, kT = self.placed(q, kT, rotation)
        keys, values = past.store(kT.mT, v, new)
        heads = attend(q, keys.mT, values, new.allowed, self.scale)
        return self.proj(heads.transpose(1, 2).flatten(2))
