"""Several machines on one search: the chief's server and the way to it.

The messages are those of Keras Tuner. Its server ends only if every worker does, its
client waits an hour for a chief that is not there, a malformed message leaves a lock
behind: these do not.
"""

from __future__ import annotations

import ipaddress
import os
import time
import uuid
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from keras_tuner.src import protos
from keras_tuner.src.distribute import oracle_client
from keras_tuner.src.distribute.oracle_chief import OracleServicer

from lrdist_keras.errors import InputError, SearchFailed
from lrdist_keras.search.oracle import BayesianHyperbandOracle

_LARGEST_MESSAGE = 1 << 20  # bytes; a trial of a hundred hyperparameters is 20 kB
_POLL = 0.5  # seconds
_CONNECT = 30.0  # seconds
_PATIENCE = 600.0  # seconds
_CALL = 30.0  # seconds
_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
_VARIABLES = (
    "KERASTUNER_ORACLE_IP",
    "KERASTUNER_ORACLE_PORT",
    "KERASTUNER_TUNER_ID",
)


def parse_address(address: str) -> tuple[str, int]:
    """Returns host and port of `HOST:PORT`.

    Raises:
        ValueError: If it is not of that form.
    """
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isdigit() and 0 < int(port) < 2**16):
        raise InputError(
            "The chief's address is HOST:PORT, for example 127.0.0.1:8000. Received: "
            f"{address!r}"
        )
    return host, int(port)


def from_environment() -> tuple[str | None, bool]:
    """Returns the chief's address and whether this is a worker, as Keras Tuner has it.

    Raises:
        ValueError: If only some of its variables are set.
    """
    values = {name: os.environ.get(name) for name in _VARIABLES}
    if not any(values.values()):
        return None, False
    if missing := [name for name, value in values.items() if not value]:
        raise InputError(
            f"Of {', '.join(_VARIABLES)} all must be set, or none. Missing: "
            + ", ".join(missing)
        )
    address = f"{values['KERASTUNER_ORACLE_IP']}:{values['KERASTUNER_ORACLE_PORT']}"
    return address, "chief" not in str(values["KERASTUNER_TUNER_ID"])


def become_worker(address: str) -> None:
    """Makes the tuners of this process ask the chief at an address.

    Raises:
        ValueError: If the address is malformed.
        ConnectionError: If nothing answers there within 30 seconds.
    """
    host, port = parse_address(address)
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT)
        except grpc.FutureTimeoutError:
            raise ConnectionError(
                f"No chief answers at {address} within {_CONNECT:.0f} s; start one "
                f"there with --chief {address}, or check the address."
            ) from None
    os.environ["KERASTUNER_ORACLE_IP"] = host
    os.environ["KERASTUNER_ORACLE_PORT"] = str(port)
    # Keras Tuner takes who has "chief" in the name for one.
    if "chief" in os.environ.get("KERASTUNER_TUNER_ID", "chief"):
        os.environ["KERASTUNER_TUNER_ID"] = f"worker-{uuid.uuid4().hex[:12]}"


def is_open(address: str) -> bool:
    """Whether other machines can reach a server at this address."""
    host, _ = parse_address(address)
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def serve(
    oracle: BayesianHyperbandOracle,
    address: str,
    on_end: Callable[[], Any] = lambda: None,
) -> None:
    """Answers the workers of a search until it is done.

    A worker that gives no sign of life for the lease of the oracle loses its trial to
    another. When nothing is left, the server stays for one lease, so that workers that
    ask learn that they can go.

    Args:
        oracle: The search.
        address: Where to listen, `HOST:PORT`.
        on_end: Called when trials have ended.

    Raises:
        ValueError: If the address is malformed.
        OSError: If it cannot be listened on.
        SearchFailed: If too many trials failed in a row, or one by a mistake in the
            program. Workers that ask within a lease are told.
    """
    host, port = parse_address(address)
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=4),
        options=[
            ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
            ("grpc.so_reuseport", 0),
        ],
    )
    servicer = _Servicer(oracle)
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise OSError(f"Nothing can listen at {address}; choose another port.")
    oracle.has_leases = True
    server.start()
    try:
        quiet: float | None = None
        ended = 0
        while True:
            time.sleep(_POLL)
            oracle.expire()
            if len(oracle.end_order) > ended:
                ended = len(oracle.end_order)
                on_end()
            if not oracle.is_done and servicer.failure is None:
                quiet = None
                continue
            quiet = quiet or time.monotonic()
            untold = oracle.tuner_ids - servicer.told
            if not untold or time.monotonic() - quiet > oracle.lease:
                break
    finally:
        server.stop(grace=1.0).wait()
    if servicer.failure is not None:
        raise servicer.failure


class PatientClient:
    """Asks a chief again while it is away, for example to be started anew.

    Its calls raise `ConnectionError` if the chief refuses them or stays away, and
    `SearchFailed` if the search has.

    Args:
        client: Keras Tuner's client.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        # Keras Tuner's client would wait an hour for a chief that is gone.
        oracle_client.TIMEOUT = _CALL

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def patient(*arguments: Any, **options: Any) -> Any:
            end = time.monotonic() + _PATIENCE
            while True:
                try:
                    return found(*arguments, **options)
                except grpc.RpcError as error:
                    if error.code() == grpc.StatusCode.ABORTED:
                        raise SearchFailed(error.details()) from None
                    if error.code() not in _AWAY:
                        raise ConnectionError(f"The chief: {error.details()}") from None
                    if time.monotonic() > end:
                        raise ConnectionError(
                            f"The chief has not answered for {_PATIENCE:.0f} s."
                        ) from None
                time.sleep(_POLL)

        return patient


class _Servicer(OracleServicer):
    """Refuses what is malformed with a message, and remembers what must end all."""

    def __init__(self, oracle: BayesianHyperbandOracle) -> None:
        super().__init__(oracle)
        self.failure: SearchFailed | None = None
        self.told: set[str] = set()  # the workers that know of it

    def _answer(self, method: Callable, request: Any, context: Any) -> Any:
        try:
            if self.failure is not None:
                raise self.failure
            return method(request, context)
        except SearchFailed as error:
            self.failure = error
            self.told.add(self._worker(request))
            context.abort(grpc.StatusCode.ABORTED, str(error))
        except Exception as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"refused: {error}")

    def _worker(self, request: Any) -> str:
        """Returns who sent a message: its name, or whose trial it is about."""
        if hasattr(request, "tuner_id"):
            return request.tuner_id
        about = getattr(request, "trial", request)
        trial_id = getattr(about, "trial_id", None)
        ongoing = list(self.oracle.ongoing_trials.items())
        return next((w for w, trial in ongoing if trial.trial_id == trial_id), "")

    def CreateTrial(self, request: Any, context: Any) -> Any:
        """Gives a worker a trial."""
        return self._answer(super().CreateTrial, request, context)

    def UpdateTrial(self, request: Any, context: Any) -> Any:
        """Takes the metrics of a trial."""
        return self._answer(super().UpdateTrial, request, context)

    def EndTrial(self, request: Any, context: Any) -> Any:
        """Takes the end of a trial."""
        return self._answer(super().EndTrial, request, context)

    def GetTrial(self, request: Any, context: Any) -> Any:
        """Shows a trial."""
        return self._answer(super().GetTrial, request, context)

    def GetBestTrials(self, request: Any, context: Any) -> Any:
        """Shows the best trials."""
        return self._answer(super().GetBestTrials, request, context)

    def UpdateSpace(self, request: Any, context: Any) -> Any:
        """Takes additions to the space, where the oracle allows any."""
        return self._answer(super().UpdateSpace, request, context)
