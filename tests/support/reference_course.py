"""The course's reference decoder as its text describes it: names of parameters, nothing of ours.

No head is fused, no kernel is shared: each head is its own slice, the mask is added as -inf, the
GELU is written out.
"""

import math

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.q_attn = nn.Linear(n_embd, n_embd)
        self.k_attn = nn.Linear(n_embd, n_embd)
        self.v_attn = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)
        self.register_buffer("scale_factor", 1 / torch.sqrt(torch.tensor(n_embd / n_head)))

    def forward(self, x: Tensor) -> Tensor:
        S = x.shape[1]
        future = torch.full((S, S), -math.inf, dtype=x.dtype).triu(1)
        q, k, v = self.q_attn(x), self.k_attn(x), self.v_attn(x)
        width = x.shape[2] // self.n_head
        heads = []
        for head in range(self.n_head):
            part = slice(head * width, (head + 1) * width)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
            heads.append(torch.softmax(scores + future, dim=-1) @ v[..., part])
        return self.proj(torch.cat(heads, dim=-1))


class Feed(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(n_embd, 4 * n_embd)
        self.linear_out = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear_in(x)
        return self.linear_out(0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0))))


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.mha = Attention(n_embd, n_head)
        self.ff = Feed(n_embd)
        self.ln_2 = nn.LayerNorm(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mha(self.ln_1(x))
        return x + self.ff(self.ln_2(x))


class CourseLM(nn.Module):
    """Decoder with the course's parameter names; weights far from their initial values."""

    def __init__(
        self, n_vocab: int, n_embd: int, n_head: int, n_positions: int, n_layer: int
    ) -> None:
        super().__init__()
        self.token_embeddings = nn.Embedding(n_vocab, n_embd)
        self.position_embeddings = nn.Embedding(n_positions, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer))
        self.ln = nn.LayerNorm(n_embd)
        generator = torch.Generator().manual_seed(n_vocab)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4, generator=generator)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1])
        x = self.token_embeddings(input_ids) + self.position_embeddings(positions)
        for block in self.blocks:
            x = block(x)
        return self.ln(x) @ self.token_embeddings.weight.T
