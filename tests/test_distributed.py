"""A chief and its workers on loopback."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import grpc
import pytest
from keras_tuner.src import protos
from keras_tuner.src.distribute import oracle_client
from keras_tuner.src.engine import trial as trial_module
from test_oracle import begin, finish, make, state_of

from lrdist_keras.errors import SearchFailed
from lrdist_keras.search import distributed

NODE = """
    import os, sys, time, warnings
    warnings.simplefilter("ignore")
    sys.path.insert(0, "tests")
    from test_oracle import make, score
    from lrdist_keras.search import distributed
    from lrdist_keras.search.tuner import Tuner

    role, address, folder = sys.argv[1:4]
    oracle = make(folder, model="joint", max_retries_per_trial=1, lease=2.0)

    def evaluate(values, budget, seed):
        print("trial", flush=True)
        time.sleep({"stuck": 60, "faulty": 0.6, "slow": 1.0}.get(role, 0.05))
        if role == "mistaken":
            return values["rate_7"]
        if role == "faulty" and not os.path.exists(folder + "/failed"):
            open(folder + "/failed", "w").close()
            raise FloatingPointError("the loss is not finite")
        return {"score": score(values, budget)}

    if role == "chief":
        Tuner(oracle, evaluate, folder)
        distributed.serve(oracle, address)
    else:
        distributed.become_worker(address)
        Tuner(oracle, evaluate, folder + "/" + role).search()
"""


@pytest.fixture
def address(free_address):
    return free_address()


@pytest.fixture
def node(tmp_path, address):
    """Starts the chief or a worker; all are killed at the end."""
    script = tmp_path / "node.py"
    script.write_text(textwrap.dedent(NODE))
    started = []

    def node(role):
        with open(tmp_path / f"{role}.txt", "w") as log:
            process = subprocess.Popen(
                [sys.executable, script, role, address, tmp_path],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        started.append(process)
        return process

    yield node
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_a_late_and_a_faulty_worker(tmp_path, node):
    """The search ends by itself with every trial done once."""
    chief, stuck = node("chief"), node("stuck")
    wait_for(lambda: "trial" in (tmp_path / "stuck.txt").read_text())
    stuck.send_signal(signal.SIGKILL)
    faulty = node("faulty")
    wait_for(lambda: "trial" in (tmp_path / "faulty.txt").read_text())
    late = node("late")
    for process in (late, faulty, chief):
        assert process.wait(120) == 0
    assert "trial" in (tmp_path / "late.txt").read_text()
    for role in ("faulty", "chief"):
        log = (tmp_path / f"{role}.txt").read_text()
        assert "FloatingPointError: the loss is not finite" in log
    trials = state_of(tmp_path)["trials"]
    assert [t["status"] for t in trials] == ["COMPLETED"] * 23
    assert len({t["trial_id"] for t in trials}) == 23


@pytest.mark.slow
def test_a_chief_that_is_killed_and_started_again(tmp_path, node):
    """At five moments, some of them while it writes."""
    rng = random.Random(0)
    chief, worker = node("chief"), node("worker")

    def finished():
        if not (tmp_path / "search" / "oracle.json").exists():
            return 0
        return len(state_of(tmp_path)["end_order"])

    for kill in range(5):
        wait_for(lambda kill=kill: finished() >= 3 * (kill + 1))
        time.sleep(rng.uniform(0, 0.1))
        chief.send_signal(signal.SIGKILL)
        chief.wait()
        state_of(tmp_path)
        chief = node("chief")
    assert worker.wait(120) == 0
    assert chief.wait(120) == 0
    trials = state_of(tmp_path)["trials"]
    assert [t["status"] for t in trials] == ["COMPLETED"] * 23
    assert len({t["trial_id"] for t in trials}) == 23


def test_a_mistake_in_the_program_ends_chief_and_workers(tmp_path, node):
    chief, slow = node("chief"), node("slow")
    wait_for(lambda: "trial" in (tmp_path / "slow.txt").read_text())
    mistaken = node("mistaken")
    for process in (mistaken, chief, slow):
        assert process.wait(120) == 1
    for role, error in (
        ("mistaken", "KeyError: 'rate_7'"),
        ("chief", "SearchFailed: A mistake in the program: "),
        ("slow", "SearchFailed: A mistake in the program: "),
    ):
        assert error in (tmp_path / f"{role}.txt").read_text()


def test_a_chief_that_is_started_again_when_all_is_done_ends(tmp_path, node):
    chief, worker = node("chief"), node("worker")
    assert worker.wait(120) == chief.wait(120) == 0
    start = time.monotonic()
    assert node("chief").wait(60) == 0
    assert time.monotonic() > start  # it came to an end without a worker


def test_a_chief_that_is_gone_is_not_waited_for_long(address, monkeypatch):
    monkeypatch.setattr(distributed, "_CALL", 0.2)
    monkeypatch.setattr(distributed, "_PATIENCE", 0.5)
    host, port = address.split(":")
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", host)
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", port)
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker")
    monkeypatch.setattr(oracle_client, "TIMEOUT", oracle_client.TIMEOUT)
    client = distributed.PatientClient(oracle_client.OracleClient(None))
    with pytest.raises(ConnectionError, match="has not answered"):
        client.create_trial("worker")


def test_a_worker_is_never_taken_for_the_chief(address, monkeypatch):
    for name in distributed._VARIABLES:
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(grpc, "channel_ready_future", lambda channel: Ready())
    for given in ("chief-box", "tuner0"):
        monkeypatch.setenv("KERASTUNER_TUNER_ID", given)
        distributed.become_worker(address)
        found = os.environ["KERASTUNER_TUNER_ID"]
        assert "chief" not in found and (found == given) == (given == "tuner0")


class Ready:
    def result(self, timeout):
        return None


def test_results_are_written_while_workers_are_at_work(tmp_path):
    """What reads several things at once sees them of one moment."""
    oracle = make(tmp_path, model="random", hyperband_iterations=4)
    failures, over = [], threading.Event()

    def work(name):
        try:
            while (trial := begin(oracle, name)).status == "RUNNING":
                # A worker has a copy.
                finish(oracle, trial_module.Trial.from_state(trial.get_state()))
        except Exception as error:
            failures.append(error)

    def read():
        while not over.is_set():
            try:
                _ = oracle.spent, oracle.observations(), oracle._done()
                if oracle.end_order:
                    oracle.get_best_trials(1)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(3)]
    reader = threading.Thread(target=read)
    for thread in (*threads, reader):
        thread.start()
    for thread in threads:
        thread.join(120)
    over.set()
    reader.join(120)
    assert failures == []
    assert len(oracle.end_order) == 4 * 23


def test_malformed_and_oversized_messages_do_no_harm(tmp_path, address):
    oracle = make(tmp_path, lease=0.5)
    thread = threading.Thread(target=distributed.serve, args=(oracle, address))
    thread.start()
    service = protos.get_service()
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(30)
        stub = protos.get_service_grpc().OracleStub(channel)
        raw = channel.unary_unary("/keras_tuner.Oracle/EndTrial")
        calls = [
            lambda: stub.UpdateTrial(
                service.UpdateTrialRequest(trial_id="none", metrics={"score": 1.0})
            ),
            lambda: stub.GetTrial(service.GetTrialRequest(trial_id="none")),
            lambda: stub.EndTrial(service.EndTrialRequest()),
            lambda: stub.CreateTrial(
                service.CreateTrialRequest(tuner_id="x" * (2 << 20))
            ),
            lambda: raw(b"\xff\xff\xff no message"),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as error:
                call()
            assert error.value.code() != grpc.StatusCode.DEADLINE_EXCEEDED
        while True:
            trial = stub.CreateTrial(
                service.CreateTrialRequest(tuner_id="w"), timeout=30
            ).trial
            if trial.status == protos.get_proto().TrialStatus.STOPPED:
                break
            stub.UpdateTrial(
                service.UpdateTrialRequest(
                    trial_id=trial.trial_id, metrics={"score": 1.0}
                ),
                timeout=30,
            )
            trial.status = protos.get_proto().TrialStatus.COMPLETED
            stub.EndTrial(service.EndTrialRequest(trial=trial), timeout=30)
    thread.join(30)
    assert not thread.is_alive()
    assert len(oracle.end_order) == 23
    json.loads((tmp_path / "search" / "oracle.json").read_text())


def test_failures_in_a_row_end_the_chief(tmp_path, address):
    oracle = make(tmp_path, max_consecutive_failed_trials=1)
    found = []

    def serve():
        try:
            distributed.serve(oracle, address)
        except SearchFailed as error:
            found.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    service = protos.get_service()
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(30)
        stub = protos.get_service_grpc().OracleStub(channel)
        trial = stub.CreateTrial(service.CreateTrialRequest(tuner_id="w")).trial
        trial.status = protos.get_proto().TrialStatus.INVALID
        with pytest.raises(grpc.RpcError, match="failures exceeded the limit"):
            stub.EndTrial(service.EndTrialRequest(trial=trial))
    thread.join(30)
    assert "failures exceeded the limit" in str(found[0])


def test_a_chief_that_cannot_be_reached_is_named(address, monkeypatch):
    monkeypatch.setattr(distributed, "_CONNECT", 0.5)
    with pytest.raises(ConnectionError, match=f"No chief answers at {address}"):
        distributed.become_worker(address)


def test_an_address_in_use(tmp_path, address):
    host, port = address.split(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        with pytest.raises(OSError, match=f"Nothing can listen at {address}"):
            distributed.serve(make(tmp_path), address)


def test_addresses(monkeypatch):
    assert distributed.parse_address("a.example:80") == ("a.example", 80)
    for wrong in ("a", "a:", ":80", "a:b", "a:0", "a:70000"):
        with pytest.raises(ValueError, match="HOST:PORT"):
            distributed.parse_address(wrong)
    assert not distributed.is_open("127.0.0.1:80")
    assert not distributed.is_open("localhost:80")
    assert distributed.is_open("0.0.0.0:80")
    assert distributed.from_environment() == (None, False)
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "tuner0")
    with pytest.raises(ValueError, match="Missing: KERASTUNER_ORACLE_IP, KERAS"):
        distributed.from_environment()
    monkeypatch.delenv("KERASTUNER_TUNER_ID")
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "10.0.0.1")
    missing = "Missing: KERASTUNER_ORACLE_PORT, KERASTUNER_TUNER_ID"
    with pytest.raises(ValueError, match=missing):
        distributed.from_environment()
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "8000")
    for name, is_worker in (("chief", False), ("tuner0", True)):
        monkeypatch.setenv("KERASTUNER_TUNER_ID", name)
        assert distributed.from_environment() == ("10.0.0.1:8000", is_worker)
