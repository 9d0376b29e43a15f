"""Teams of threads: what they return, in what state they work, when there is none."""

import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.cpu.threads import MAX_TEAM, run_on_threads, team_size


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_members() -> None:
    first_may_end = threading.Event()

    def work(member: int, factor: int) -> int:
        if member == 0:
            assert first_may_end.wait(10)
        else:
            first_may_end.set()
        return member * factor

    assert run_on_threads(work, [0, 1], 10) == [0, 10]


def test_each_works_alone_and_without_gradients() -> None:
    def state(_: int) -> tuple[str, int, int, bool, bool, bool]:
        return (
            threading.current_thread().name,
            torch.get_num_threads(),
            team_size("cpu"),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            sys.float_info.min / 2 == 0.0,
        )

    for flush in (True, False):
        torch.set_flush_denormal(flush)
        with torch.autocast("cpu", torch.bfloat16):
            first, second = run_on_threads(state, [0, 1])
        assert first[1:] == second[1:] == (1, 1, False, False, flush)
    assert first[0] != threading.current_thread().name
    assert torch.get_num_threads() == 2


def test_all_have_ended_when_one_has_failed() -> None:
    failed, ended = threading.Event(), threading.Event()

    def work(member: int) -> None:
        if member == 0:
            failed.set()
            raise IndexError("the first")
        assert failed.wait(10)
        ended.set()

    with pytest.raises(IndexError, match="the first"):
        run_on_threads(work, [0, 1])
    assert ended.is_set()


def test_a_single_member_is_served_by_the_caller() -> None:
    name = threading.current_thread().name
    assert run_on_threads(lambda _: threading.current_thread().name, [0]) == [name]


def test_the_size_of_a_team() -> None:
    assert team_size("cpu") == 2
    assert team_size("cuda") == team_size("mps") == 1
    with FlopCounterMode(display=False):
        assert team_size("cpu") == 1
    torch.set_num_threads(MAX_TEAM + 1)
    assert team_size("cpu") == 1
