"""kill -9, a torn write and a full disk at every write of a comparison and a search.

The writes are counted in an undisturbed run: every opening of a file for writing, every
renaming, linking and making of a folder in the run's folder and in the cache. At each
of them one run is killed before it, one in the middle of it, and one finds the disk
full from there on. The next start must end with what the undisturbed run gave.

These tests take about an hour on two idle cores; `make test-slow` runs them.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3 * 3600),
    pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files"),
]

# A process that has imported everything, and is forked for each command: JSON of
# arguments, folders to watch, the write to disturb, how, and files for the output.
ZYGOTE = textwrap.dedent(
    """
    import json, os, resource, signal, sys

    os.environ["KERAS_BACKEND"] = "jax"
    import jax, keras, matplotlib.figure, scipy.stats, sklearn.linear_model
    import lrdist_keras.cli as cli
    from lrdist_keras import _tensorflow
    import lrdist_keras.laboratory.comparison, lrdist_keras.search.search
    import lrdist_keras.report.figures

    _tensorflow.keras_hub()
    CHANGES = ("os.rename", "os.link", "os.mkdir", "os.truncate")

    def watch(folders, target, kind):
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            if event == "open":
                path, _, flags = arguments
                if not flags & (os.O_WRONLY | os.O_RDWR):
                    return
            elif event in CHANGES:
                path = arguments[0]
            else:
                return
            path = os.fspath(path) if not isinstance(path, int) else ""
            path = os.fsdecode(path)
            if not any(path.startswith(folder) for folder in folders):
                return
            seen += 1
            if seen != target:
                return
            if kind == "killed" or (kind == "torn" and event != "open"):
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "torn":  # the kernel ends who writes beyond the limit
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))

        sys.addaudithook(hook)
        return lambda: seen

    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            count = watch(job["folders"], job["target"], job["kind"])
            try:
                for number, name in ((1, "stdout"), (2, "stderr")):
                    file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                    os.dup2(file, number)
                sys.argv = ["lrdist", *job["arguments"]]
                cli.take_large_pages = lambda: None
                cli.main()
            except SystemExit as exit:
                code = exit.code or 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                if not job["kind"]:
                    print("WRITES", count(), flush=True)
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    """
)


class Lrdist:
    """Runs the command in forks of one process."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", ZYGOTE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __call__(self, *arguments, folders=(), target=0, kind=""):
        """Returns exit code, stdout and stderr."""
        files = {name: str(self.folder / name) for name in ("stdout", "stderr")}
        job = {
            "arguments": [str(argument) for argument in arguments],
            "folders": [str(folder) for folder in folders],
            "target": target,
            "kind": kind,
            **files,
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, *(Path(files[name]).read_text() for name in ("stdout", "stderr"))


@pytest.fixture(scope="module")
def lrdist(tmp_path_factory):
    found = Lrdist(tmp_path_factory.mktemp("output"))
    yield found
    found.process.kill()
    found.process.wait()


def of_comparison(out):
    """What a comparison found, without times."""
    results = json.loads((out / "results.json").read_text())
    kept = ("sequence", "arm", "seed", "accuracy", "curves", "task_metrics", "logits")
    runs = [{name: run[name] for name in kept} for run in results["runs"]]
    lines = (out / "runs.jsonl").read_text().splitlines()
    logits = {p.name: p.read_bytes() for p in (out / "logits").iterdir()}
    return results["table"], results["statistics"], runs, len(lines), logits


def of_search(out):
    """What a search found, without times."""
    with (out / "trials.csv").open() as file:
        rows = [
            {k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(file)
        ]
    found = [
        json.loads((out / name).read_text())
        for name in ("best.json", "distribution.json")
    ]
    return rows, found


ARMS = 'arms=[{name="plain", rate=1e-2}, {name="held", rate=1e-2, strategy="ewc"}]'
COMMANDS = {
    "compare": (["seeds=[0]", ARMS, "training.epochs=1"], of_comparison),
    "search": (
        [
            "search.budget=3",
            "search.units=3",
            "search.repeats=1",
            "search.slice_examples=16",
            "training.epochs=1",
            'arms=[{name="x", rate=1e-3}]',
        ],
        of_search,
    ),
}


@pytest.mark.parametrize("kind", ["killed", "torn", "full"])
@pytest.mark.parametrize("command", COMMANDS)
def test_disturbed_at_any_write_it_ends_the_same(lrdist, command, kind, toml, tmp_path):
    overrides, found_in = COMMANDS[command]
    cache = tmp_path / "cache"
    (tmp_path / "c.toml").write_text(toml)
    options = [
        part for o in (*overrides, f"data.cache={cache}") for part in ("--set", o)
    ]

    def start(out, **how):
        folders = [tmp_path / "out", cache]
        arguments = (command, tmp_path / "c.toml", "--out", out, *options)
        return lrdist(*arguments, folders=folders, **how)

    out = tmp_path / "out"
    code, output, errors = start(out)
    assert code == 0, errors
    expected = found_in(out)
    writes = int(output.split("WRITES ")[1])
    assert writes > 20
    stride = int(os.environ.get("FAULTS_STRIDE", 1))
    problems = []
    for target in range(1, writes + 1, stride):
        shutil.rmtree(out)
        shutil.rmtree(cache)
        code, _, errors = start(out, target=target, kind=kind)
        if kind == "full" and code not in (0, 2):
            problems.append((target, "full", code, errors[-500:]))
        if kind != "full" and code >= 0:
            problems.append((target, "was not killed", code, errors[-500:]))
        code, _, errors = start(out)
        if code != 0:
            problems.append((target, "cannot be started again", code, errors[-500:]))
        elif found_in(out) != expected:
            problems.append((target, "another result", code, errors[-500:]))
        left = [p for f in (out, cache) for p in f.rglob(".*") if p.name != ".lock"]
        if left:
            problems.append((target, "temporary files stay", left))
    assert not problems, f"{len(problems)} of {writes}: {problems[:5]}"
