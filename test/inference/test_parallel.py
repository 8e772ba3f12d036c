"""Work that threads share: every row once, in order, as one thread would do it."""

import threading

import pytest
import torch

from sqsegv3_ros.parallel import as_written, share, threads_share, torch_shares


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 1000])
def test_every_row_is_done_once_and_in_order(length, count):
    with threads_share(count):
        pieces = share(lambda begin, end: list(range(begin, end)), length)
    assert [row for piece in pieces for row in piece] == list(range(length))
    assert len(pieces) == max(1, min(count, length))


def test_no_thread_is_woken_for_less_than_is_worth_it():
    with threads_share(4):
        assert share(lambda begin, end: (begin, end), 29, least=10) == [(0, 14), (14, 29)]
        assert share(lambda begin, end: (begin, end), 9, least=10) == [(0, 9)]


def test_pieces_run_side_by_side_and_know_the_mode_of_the_caller():
    meeting = threading.Barrier(3, timeout=30)  # breaks unless three threads are there at once

    def work(begin, end):
        meeting.wait()
        return torch.is_inference_mode_enabled(), torch.get_num_threads()

    with torch.inference_mode(), threads_share(3):
        assert share(work, 3) == [(True, 1)] * 3
    with threads_share(3):
        assert share(work, 3) == [(False, 1)] * 3


def test_without_it_the_caller_does_everything_and_torch_keeps_its_threads():
    before = torch.get_num_threads()
    assert share(lambda begin, end: (begin, end, threading.get_ident()), 10) == [(0, 10, threading.get_ident())]
    with threads_share(2):
        assert torch.get_num_threads() == 1
        with torch_shares():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert len(share(lambda begin, end: None, 10)) == 1


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_a_piece_raises_arrives_when_all_have_ended(failing):
    ended, before = [], torch.get_num_threads()

    def work(begin, end):
        if begin == failing:
            raise ValueError(f"row {begin}")
        ended.append(begin)

    with pytest.raises(ValueError, match=f"row {failing}"), threads_share(3):
        share(work, 3)
    assert sorted(ended) == sorted({0, 1, 2} - {failing})
    assert torch.get_num_threads() == before


def test_an_inner_one_leaves_the_outer_one_as_it_was():
    with threads_share(3):
        with threads_share(2):
            assert len(share(lambda begin, end: None, 10)) == 2
        assert len(share(lambda begin, end: None, 10)) == 3
        assert torch.get_num_threads() == 1


def optimises():
    """The two switches of TorchScript's optimiser: of this thread, and of all."""
    of_all = torch._C._jit_set_profiling_mode(False)
    torch._C._jit_set_profiling_mode(of_all)
    return torch._C._get_graph_executor_optimize(), of_all


def test_networks_run_as_written_within_and_as_before_afterwards():
    before = optimises()
    assert before == (True, True)
    with as_written():
        assert optimises() == (False, False)
        with as_written():
            pass
        assert optimises() == (False, False)
    assert optimises() == before


def test_the_switch_for_all_goes_back_when_the_last_of_several_threads_is_done():
    inside, leave = threading.Event(), threading.Event()

    def work():
        with as_written():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=work)
    with as_written():
        thread.start()
        assert inside.wait(30)
    assert optimises() == (True, False)  # the other thread is still at it
    leave.set()
    thread.join()
    assert optimises() == (True, True)
