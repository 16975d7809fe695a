"""The known failures of the original, each with the tests that prove that it does not come back.

The table is checked: a test that is named here and does not exist is a failure, and so is a number
without a test.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

#: Number -> (what went wrong, the tests that prove the opposite).
KNOWN_FAILURES: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "a task three times longer than the lease succeeds, once",
        ("e2e/test_task_outcomes.py::test_a_task_three_times_longer_than_the_lease_runs_once",),
    ),
    2: (
        "N launched workers stay N, over 100 starts",
        (
            "faults/test_protocol_promises.py::test_ten_workers_stay_ten_over_a_hundred_starts",
            "e2e/test_kills.py::test_kill_of_a_worker_queues_its_task_again_soon",
            "unit/test_pool.py::test_never_overshoots",
        ),
    ),
    3: (
        "kill -9 of the manager: no finished and no still-running attempt is executed again",
        (
            "e2e/test_kills.py::test_kill_of_the_daemon_repeats_nothing",
            "e2e/test_kills.py::test_many_kills_in_a_row",
            "faults/test_injection.py::test_no_system_call_may_fail_badly",
            "faults/test_soak.py::test_a_minute_of_killing_everything_loses_nothing",
        ),
    ),
    4: (
        "kill -9 of a worker: its tasks are queued again within the worker time-out",
        ("e2e/test_kills.py::test_kill_of_a_worker_queues_its_task_again_soon",),
    ),
    5: (
        "sys.exit, os._exit, segfault, MemoryError: the slot survives, the cause is recorded",
        (
            "e2e/test_task_outcomes.py::test_every_way_to_fail_is_told_apart_on_one_worker",
            "integration/test_slots.py::test_exceptions",
            "integration/test_slots.py::test_os_exit_is_a_crash",
            "integration/test_slots.py::test_a_segfault_tells_where",
        ),
    ),
    6: (
        "a result that cannot be encoded fails that task with the real error",
        (
            "e2e/test_task_outcomes.py::test_every_way_to_fail_is_told_apart_on_one_worker",
            "integration/test_slots.py::test_exceptions",
        ),
    ),
    7: (
        "any single message lost in either direction costs at most one heartbeat",
        (
            "faults/test_protocol_promises.py"
            "::test_any_single_lost_message_costs_at_most_one_heartbeat",
        ),
    ),
    8: (
        "garbage, oversized and other-version frames: the daemon lives, the peer is told",
        (
            "e2e/test_workers_by_hand.py::test_garbage_on_the_port_and_on_the_socket_harms_nobody",
            "integration/test_transports.py::test_the_server_survives_what_peers_say",
            "integration/test_transports.py::test_another_version_is_told_so",
            "integration/test_transports.py::test_an_oversized_frame_ends_only_its_sender",
        ),
    ),
    9: (
        "Ctrl-C once is graceful, twice is fast; batch jobs end; SIGTERM detaches them",
        (
            "e2e/test_operators.py::test_one_signal_ends_gracefully",
            "e2e/test_operators.py::test_two_signals_end_at_once",
            "cluster/test_slurm_pool.py::test_the_end_takes_everything_back",
            "cluster/test_slurm_pool.py::test_detach_and_come_back",
        ),
    ),
    10: (
        "zero tasks: clean exit",
        ("e2e/test_main_job.py::test_no_tasks_are_a_success_with_a_message",),
    ),
    11: (
        "failed tasks: exit code 3",
        ("e2e/test_main_job.py::test_failed_tasks_are_exit_code_3_and_shown",),
    ),
    12: (
        "program arguments with spaces, quotes, newlines and unicode pass every launcher",
        (
            "faults/test_odd_arguments.py::test_program_arguments_arrive_as_they_were_given",
            "unit/test_slurm.py::test_any_text_without_control_characters_is_quoted",
            "cluster/test_slurm_pool.py::test_a_run_from_start_to_end",
        ),
    ),
    13: (
        "fs mode costs at most one metadata operation per second per idle worker",
        (
            "e2e/test_workers_by_hand.py"
            "::test_an_idle_mailbox_costs_less_than_one_operation_a_second",
            "integration/test_mailboxes.py"
            "::test_an_idle_worker_costs_less_than_one_operation_a_second",
            "integration/test_mailboxes.py"
            "::test_an_idle_mailbox_costs_less_than_one_operation_a_second",
        ),
    ),
    14: (
        "the database stays bounded over 10 million messages",
        (
            "faults/test_store_promises.py::test_the_database_is_flat_over_many_messages",
            "unit/test_store.py::test_floors_prune_the_message_ids_and_never_fall",
            "unit/test_store.py::test_history_is_bounded",
        ),
    ),
    15: (
        "two runs started in one directory cannot mix",
        (
            "e2e/test_operators.py::test_a_live_session_is_refused_naming_its_owner",
            "e2e/test_main_job.py::test_another_program_or_other_args_are_another_session",
            "integration/test_store_on_disk.py"
            "::test_a_second_daemon_is_refused_and_the_first_goes_on",
        ),
    ),
    16: (
        "worker id ../../x is refused",
        ("e2e/test_workers_by_hand.py::test_a_name_that_is_a_path_is_refused",),
    ),
    17: (
        "a submission storm is impossible: back-off and breaker",
        (
            "unit/test_pool.py::test_ten_refused_submissions_in_a_row_open_the_breaker",
            "unit/test_pool.py::test_launches_that_bring_no_worker_open_it_and_say_why",
            "unit/test_pool.py::test_the_bucket_allows_a_burst_and_then_a_rate",
            "e2e/test_kills.py::test_a_worker_whose_program_cannot_be_imported",
        ),
    ),
    18: (
        "a batch job that vanishes is replaced within two polls",
        (
            "faults/test_protocol_promises.py"
            "::test_a_batch_job_that_vanishes_is_replaced_within_two_polls",
            "cluster/test_slurm_pool.py::test_scancel_under_our_feet",
        ),
    ),
}


@cache
def names_in(file: str) -> frozenset[str]:
    """Names of the test functions in a file below tests/."""
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def test_every_number_has_a_row() -> None:
    assert sorted(KNOWN_FAILURES) == list(range(1, 19))


@pytest.mark.parametrize("number", sorted(KNOWN_FAILURES))
def test_a_known_failure_is_proved_to_be_gone(number: int) -> None:
    """The tests themselves run where they are; here it is their being there that counts."""
    _, proofs = KNOWN_FAILURES[number]
    assert proofs
    for proof in proofs:
        file, _, name = proof.partition("::")
        assert (TESTS / file).exists(), f"{file} is not there"
        assert name in names_in(file), f"{name} is not in {file}"
