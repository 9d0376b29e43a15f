"""Several optimisers used as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch


class JoinedOptimizers:
    """Optimisers that share a model's parameters."""

    def __init__(self, members: Iterable[torch.optim.Optimizer]) -> None:
        self.members = tuple(members)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of all members; the training loop sets their learning rates."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        """What all members remember, by parameter."""
        return {p: state for member in self.members for p, state in member.state.items()}

    def step(self) -> None:
        """Update all parameters."""
        for member in self.members:
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """State of each member, by its class."""
        return {type(member).__name__: member.state_dict() for member in self.members}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for member in self.members:
            member.load_state_dict(state[type(member).__name__])


AnyOptimizer: TypeAlias = "torch.optim.Optimizer | JoinedOptimizers"
