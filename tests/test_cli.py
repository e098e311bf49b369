"""Whole runs with the real command line."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from record_cases import record, write_runs
from typer.testing import CliRunner

from lrdist_keras.cli import app
from lrdist_keras.distribution import Distribution, kenneweg2022

AS_TYPED = [sys.executable, "-c", "from lrdist_keras.cli import main; main()"]
# Tasks that are files need no TensorFlow, which takes seconds to import.
LRDIST = [*AS_TYPED[:2], f"import sys; sys.modules['tensorflow'] = None; {AS_TYPED[2]}"]


def lrdist(*arguments, prefix=(), program=LRDIST):
    """Runs the command as it is typed; in this process where it trains nothing."""
    if not prefix and arguments[0] in ("show", "groups", "combine"):
        given = list(map(str, arguments))
        environment = {"COLUMNS": "100", "NO_COLOR": "1"}
        result = CliRunner().invoke(app, given, env=environment)
        output = result.stdout, result.stderr
        return subprocess.CompletedProcess(given, result.exit_code, *output)
    return subprocess.run(
        [*prefix, *program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
    )


def refused(*arguments, prefix=()):
    """Runs the command, which must end with 2 and one line on stderr; returns it."""
    result = lrdist(*arguments, prefix=prefix)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lrdist: error:"), result.stderr
    return lines[0]


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize("own", [None, "glibc.malloc.arena_max=2"])
def test_large_pages_are_asked_for_unless_something_else_is(own):
    script = (
        "import os, sys; print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:]); "
        "from lrdist_keras.cli import main; main()"
    )
    environment = dict(os.environ)
    environment.pop("GLIBC_TUNABLES", None)
    if own is not None:
        environment["GLIBC_TUNABLES"] = own
    result = subprocess.run(
        [sys.executable, "-u", "-W", "error", "-c", script, "compare", "--help"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0 and "CONFIG" in result.stdout
    started = [x for x in result.stdout.splitlines() if x.endswith("--help']")]
    expected = ["None", "glibc.malloc.hugetlb=1"] if own is None else [own]
    assert started == [f"{x} ['compare', '--help']" for x in expected]


@pytest.mark.parametrize("program", ["-", "/dev/stdin"])
def test_a_program_from_standard_input_is_not_started_again(program):
    environment = dict(os.environ)
    environment.pop("GLIBC_TUNABLES", None)
    result = subprocess.run(
        [sys.executable, program, "compare", "--help"],
        input="from lrdist_keras.cli import main; main()",
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0 and "CONFIG" in result.stdout


@pytest.fixture
def config(tmp_path, toml):
    path = tmp_path / "small.toml"
    path.write_text(toml)
    return path


def table(folder):
    return json.loads((folder / "results.json").read_text())["table"]


def test_compare_from_beginning_to_end(config, tmp_path):
    out = tmp_path / "out"
    command = ["compare", config, "--out", out, "--set", "seeds=[3]"]
    result = lrdist(*command, program=AS_TYPED)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for wanted in (
        "embeddings", "parameters", "[3/3]", "p_s + p_o", "forgetting", "kenneweg",
        "Further measures", "Each task by its own metric", "Labels", "negative",
        "drift.png",
    ):  # fmt: skip
        assert wanted in result.stdout
    assert {path.name for path in out.iterdir()} == {
        "configuration.json", "runs.jsonl", "logits", "results.json", "comparison.png",
        "drift.png", ".lock", "inputs.json",
    }  # fmt: skip
    assert json.loads((out / "configuration.json").read_text())["seeds"] == [3]

    again = lrdist("compare", config, "--out", out, "--set", "seeds=[3]")
    assert "3 runs are done already, 0 are left" in again.stdout
    shown = lrdist("show", out)
    assert shown.returncode == 0
    assert "p_s + p_o" in shown.stdout and "Further measures" in shown.stdout
    for printed in (again.stdout, shown.stdout):
        (line,) = (x for x in printed.splitlines() if x.startswith("No statistics"))
        assert "at least 2 seeds" in line and "Received: seeds = [3]" in line
    results = json.loads((out / "results.json").read_text())
    assert "at least 2 seeds" in results["statistics"]["unavailable"]
    # No fault was on, and none is spoken of.
    assert "compat" not in results
    assert not any("compat" in x.stdout for x in (result, again, shown))


def test_a_comparison_says_which_faults_were_on(config, tmp_path):
    out, line = tmp_path / "out", "compat: no_shuffling, carry_moments"
    one = ("--set", 'arms=[{name="x", rate=1e-2}]', "--set", "seeds=[0]")
    faults = ("--set", 'compat=["carry_moments", "no_shuffling"]')
    result = lrdist("compare", config, "--out", out, *one, *faults)
    assert result.returncode == 0, result.stderr
    results = json.loads((out / "results.json").read_text())
    assert results["compat"] == ["no_shuffling", "carry_moments"]
    assert results["configuration"]["compat"] == results["compat"]
    for printed in (result, lrdist("show", out)):
        assert printed.stdout.splitlines().count(line) == 1


@pytest.mark.slow
def test_groups_of_ones_own_with_sgd_and_a_share_go_on(config, tmp_path):
    out = tmp_path / "out"
    arms = (
        '[{name="x", distribution="kenneweg2022", resample=true, rescale=0.1,'
        ' strategy="replay", share=0.1}]'
    )
    settings = (f"arms={arms}", "model.layer_groups=[2]", "training.optimizer=sgd")
    options = [part for text in (*settings, "seeds=[0]") for part in ("--set", text)]
    result = lrdist("compare", config, "--out", out, *options)
    assert result.returncode == 0, result.stderr
    again = lrdist("compare", config, "--out", out, *options)
    assert "1 runs are done already, 0 are left" in again.stdout, again.stderr
    results = json.loads((out / "results.json").read_text())
    found = results["distributions"]["x"]
    assert found["scheme"] == {"layers": 2, "layer_groups": [2]}
    assert list(found["rates"]) == ["embeddings", "encoder_1", "head"]
    assert results["configuration"]["training"]["momentum"] == 0.9
    assert results["configuration"]["arms"][0]["share"] == 0.1
    other = [*options, "--set", "training.momentum=0.5"]
    message = refused("compare", config, "--out", out, *other)
    assert "What differs: training.momentum" in message


def lines_of_runs(arms, seeds):
    def accuracy(arm, seed):
        found = 0.5 + arms.index(arm) / 10 + seed / 100
        return ((found, None), (found, found))

    return [
        json.dumps(record(arm, seed, "first -> second", accuracy(arm, seed)))
        for arm in arms
        for seed in seeds
    ]


def test_show_compares_arms_with_the_reference_and_names_those_unpaired(tmp_path, toml):
    from lrdist_keras.config import load

    (tmp_path / "c.toml").write_text(toml)
    overrides = ["report.reference=kenneweg", f"seeds={list(range(7))}"]
    chosen = load(tmp_path / "c.toml", overrides)
    (tmp_path / "configuration.json").write_text(chosen.model_dump_json())
    lines = lines_of_runs(["flat", "ewc", "kenneweg"], range(7))
    (tmp_path / "runs.jsonl").write_text("\n".join(lines) + "\n")
    shown = lrdist("show", tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "Differences to kenneweg" in shown.stdout
    # Two comparisons, seven seeds: the fewest with which a difference can be marked.
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["flat", "-.200*", "-.200", "-.200", "-.200", "-.200"] in [
        row[:6] for row in rows
    ]
    assert "No comparison at equal p_s" in shown.stdout

    (tmp_path / "runs.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    shown = lrdist("show", tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "'flat' on 'first -> second' has [6] more" in shown.stdout
    assert "p_s + p_o" in shown.stdout and "Differences to" not in shown.stdout

    # As in results.json, runs of seeds that are no longer asked for do not count.
    fewer = load(tmp_path / "c.toml", ["seeds=[0, 1]"])
    (tmp_path / "configuration.json").write_text(fewer.model_dump_json())
    shown = lrdist("show", tmp_path)
    assert shown.returncode == 0 and "2/2" in shown.stdout and "7/7" not in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 5])
def test_killed_again_and_again_it_ends_with_the_same_table(config, tmp_path, times):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    arms = 'arms=[{name="fast", rate=1e-2}, {name="slow", rate=1e-4}]'
    command = ["compare", str(config), "--set", arms, "--out"]
    start = time.monotonic()
    result = lrdist(*command, undisturbed)
    assert result.returncode == 0, result.stderr
    whole = time.monotonic() - start
    moments = random.Random(0)
    for _ in range(times):
        process = subprocess.Popen(
            [*LRDIST, *command, str(killed)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=moments.uniform(0.3, 0.95) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    result = lrdist(*command, killed)
    assert result.returncode == 0, result.stderr
    assert table(killed) == table(undisturbed)


def test_what_is_wrong_in_a_configuration(config, tmp_path, toml, tables):
    def error(*overrides, text=toml):
        config.write_text(text)
        arguments = [part for o in overrides for part in ("--set", o)]
        command = ["compare", str(config), "--out", str(tmp_path / "out"), *arguments]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2 and not (tmp_path / "out").exists(), result.output
        (line,) = result.stderr.splitlines()
        assert line.startswith("lrdist: error:")
        return line

    # Once as it is typed, then in this process, which has loaded the libraries.
    assert "training.epochs" in refused(
        "compare", config, "--out", tmp_path / "out", "--set", "training.epochs=many"
    )
    assert "'training.epoch' (did you mean 'epochs'?)" in error("training.epoch=1")
    assert "'training.epochs'" in error("training.epochs=many")
    assert "arms.0.rate" in error("arms.0.rate=0")
    assert "arms.0.rate" in error("arms.0.rate=-1.0")
    assert "arms.0.rate" in error("arms.0.rate=nan")
    assert "there is no file" in error("data.dir=/no/such/folder")
    assert "did you mean 'first'" in error('sequences.0.tasks=["frist"]')
    assert "no column 'txt'" in error("tasks.first.text=txt")
    assert "resample = true" in error("arms.kenneweg.resample=false")
    assert "cannot be had" in error("model.preset=bert_no_such_preset")
    assert "another SHA-256" in error(f"model.sha256={'0' * 64}")
    unknown = toml.replace('source = "files"', 'source = "glue/nope"', 1)
    for key in ("train =", "validation =", "text =", "label ="):
        unknown = unknown.replace(f"\n{key}", f"\n#{key}", 1)
    assert "unknown source 'glue/nope'" in error(text=unknown)
    negative = tables / "negative.csv"
    negative.write_text("text,label\na film,0\na plot,-1\n")
    assert "labels must be at least 0" in error("tasks.first.train=negative.csv")
    (tables / "empty.csv").write_text("")
    assert "holds no examples" in error("tasks.first.train=empty.csv")
    (tables / "strange.csv").write_text("text,label\na film,positive\na plot,7\n")
    names = 'tasks.first.class_names=["negative","positive"]'
    assert "from 0 to 1 or one of the class names" in error(
        names, "tasks.first.train=strange.csv"
    )


def test_an_output_folder_of_another_configuration(config, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "configuration.json").write_text('{"name": "another"}')
    write_runs(out, record())
    message = refused("compare", config, "--out", out)
    assert "belongs to another configuration" in message


def test_a_folder_that_cannot_be_written_to(config, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused("compare", config, "--out", tmp_path / "file" / "out")


def test_a_full_disk_loses_nothing(tmp_path):
    """No file may grow, as on a disk that is full."""
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 0; exec "$@"', "bash"]
    out = tmp_path / "distribution.json"
    out.write_text("old")
    (tmp_path / "trials.csv").write_text(trials_text())
    message = refused("combine", tmp_path / "trials.csv", "--out", out, prefix=limited)
    assert "too large" in message
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "distribution.json", "trials.csv",
    ]  # fmt: skip


def trials_text(rates=None):
    rates = rates or kenneweg2022().rates
    names, values = ",".join(rates), ",".join(map(str, rates.values()))
    return f"a1,p_s,p_o,{names}\n0.9,0.8,0.7,{values}\n"


def test_combine_writes_a_distribution_and_warns_of_a_wide_spread(tmp_path):
    (tmp_path / "one.csv").write_text(trials_text())
    wide = dict(kenneweg2022().rates) | {"head": kenneweg2022().rates["head"] * 9}
    (tmp_path / "two.csv").write_text(trials_text(wide))
    out = tmp_path / "d.json"
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    result = lrdist("combine", *files, "--out", out)
    assert result.returncode == 0
    assert "more than a factor 3 apart in head;" in result.stderr
    found = Distribution.load(out)
    assert found.rates["head"] == pytest.approx(3 * kenneweg2022().rates["head"])
    assert found.rates["encoder_1"] == pytest.approx(kenneweg2022().rates["encoder_1"])
    content = json.loads(out.read_text())
    content["provenance"]["compat"] = ["no_shuffling"]
    out.write_text(json.dumps(content))
    shown = lrdist("show", out)
    assert "encoder_8" in shown.stdout and "12/8/ceil" in shown.stdout
    assert "compat: no_shuffling" in shown.stdout.splitlines()


def test_combine_by_arithmetic_means(tmp_path):
    """Of rates 1 and 9 times the published ones the mean is 5 times them."""
    rates, out = kenneweg2022().rates, tmp_path / "d.json"
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    for file, scale in zip(files, (1, 9), strict=True):
        file.write_text(trials_text({k: scale * v for k, v in rates.items()}))
    result = lrdist("combine", *files, "--mean", "arithmetic", "--out", out)
    assert result.returncode == 0, result.stderr
    found = Distribution.load(out)
    assert found.rates == pytest.approx({k: 5 * v for k, v in rates.items()})
    assert found.provenance["mean"] == "arithmetic"
    assert [of["mean"] for of in found.provenance["combined"]] == ["arithmetic"] * 2
    message = refused("combine", *files, "--mean", "median", "--out", out)
    assert "`mean` must be 'geometric' or 'arithmetic'" in message


def test_combine_says_what_is_no_combination(tmp_path):
    one, out = tmp_path / "one.csv", tmp_path / "d.json"
    one.write_text(trials_text())
    result = lrdist("combine", one, "--out", out)
    assert result.returncode == 0 and "one pair alone is combined" in result.stderr
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trials.csv").symlink_to(one)
    message = refused("combine", one, tmp_path / "run", "--out", out)
    assert "Named twice" in message and "one.csv" in message


def test_show_the_folder_of_a_search(tmp_path):
    kenneweg2022().save(tmp_path / "distribution.json")
    kenneweg2022().rescaled(1e-4).save(tmp_path / "best.json")
    shown = lrdist("show", tmp_path)
    assert shown.returncode == 0, shown.stderr
    text = " ".join(shown.stdout.split())
    assert "Ranked combination of the trials" in text and "Best setting" in text


@pytest.mark.parametrize(
    "error, code, told",
    [
        ("ValueError('from a library')", 1, "this is a fault of lrdist_keras"),
        ("InputError('mend it')", 2, "lrdist: error: mend it"),
        ("OSError(28, 'No space left on device')", 2, "lrdist: error: [Errno 28] No"),
    ],
)
def test_a_fault_of_the_program_shows_where_it_is(tmp_path, error, code, told):
    kenneweg2022().save(tmp_path / "d.json")
    program = (
        "from lrdist_keras import cli, distribution\n"
        "from lrdist_keras.errors import InputError\n"
        f"def broken(name): raise {error}\n"
        "distribution.get = broken\n"
        "cli.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "show", str(tmp_path / "d.json")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == code and told in result.stderr
    assert ("Traceback" in result.stderr and "broken" in result.stderr) == (code == 1)


def test_combine_leaves_a_pair_out(tmp_path):
    for name, factor in (("one", 1), ("two", 2), ("three", 4)):
        rates = {k: factor * v for k, v in kenneweg2022().rates.items()}
        (tmp_path / f"{name}.csv").write_text(trials_text(rates))
    files = [tmp_path / f"{name}.csv" for name in ("one", "two", "three")]
    out = tmp_path / "d.json"
    for pair in ("two", "two.csv", files[1]):
        result = lrdist("combine", *files, "--out", out, "--leave-out", pair)
        assert result.returncode == 0, result.stderr
        found = Distribution.load(out)
        assert found.rates["head"] == pytest.approx(2 * kenneweg2022().rates["head"])
        assert len(found.provenance["combined"]) == 2
    message = refused("combine", *files, "--out", out, "--leave-out", "four")
    assert "'four', which names 0 of" in message and "one.csv" in message
    pairs = ("--leave-out", "one", "--leave-out", "two", "--leave-out", "three")
    assert "at least one" in refused("combine", *files, "--out", out, *pairs)


def test_combine_agrees_with_the_published_distribution(shared, tmp_path):
    files = sorted((shared / "reference" / "authors_trials").glob("*.csv"))
    result = lrdist("combine", *files, "--out", tmp_path / "paper.json")
    assert result.returncode == 0
    found = Distribution.load(tmp_path / "paper.json")
    for name, rate in kenneweg2022().rates.items():
        assert found.rates[name] == pytest.approx(rate, rel=3e-3)


def test_groups_of_a_preset(tiny_preset):
    result = lrdist("groups", tiny_preset)
    assert result.returncode == 0, result.stderr
    assert "BertBackbone, scheme 2/2/floor" in result.stdout
    said = " ".join(result.stdout.split())
    assert "with a new head for 2 classes, not yet trained" in said
    assert "--rounding" in refused("groups", tiny_preset, "--rounding", "up")


def test_groups_of_a_preset_by_their_sizes(tiny_preset):
    result = lrdist("groups", tiny_preset, "--layer-groups", "1,1")
    assert result.returncode == 0, result.stderr
    assert "scheme 2/1-1" in result.stdout and "encoder_2" in result.stdout
    told = {
        ("--layer-groups", "1,2"): "the 2 transformer layers",
        ("--layer-groups", "1;1"): "joined by commas, such as 1,2,9. Received: '1;1'",
        ("--layer-groups", "2", "--encoder-groups", "2"): "in place of",
    }
    for options, message in told.items():
        assert message in refused("groups", tiny_preset, *options)


def test_show_and_combine_name_what_is_not_there(tmp_path):
    assert "kenneweg2022_rounded" in refused("show", "kennewg")
    assert "holds no finished run" in refused("show", tmp_path)
    out = tmp_path / "d.json"
    assert "gone.csv" in refused("combine", tmp_path / "gone.csv", "--out", out)
    trials = tmp_path / "t.csv"
    trials.write_text(trials_text())
    message = refused("combine", trials, "--scheme", "6/6/ceil", "--out", out)
    assert "unknown: ['encoder_7', 'encoder_8']" in message
    assert "12/8/ceil" in refused("combine", trials, "--scheme", "12", "--out", out)
    assert "`base`" in refused("combine", trials, "--base", "0.1", "--out", out)
