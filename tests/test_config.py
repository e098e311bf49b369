import json

import pytest

from lrdist_keras import config
from lrdist_keras.training.strategies.distillation import Lwf

SEQUENCE = 'tasks = ["first", "second"]'
MODEL = "[model]"
EWC = 'strategy = "ewc"\nstrength = 10.0'
REPLAY = 'strategy = "replay"\n'


@pytest.fixture
def write(tmp_path, toml):
    def write(old="", new="", *overrides):
        assert old in toml
        path = tmp_path / "config.toml"
        path.write_text(toml.replace(old, new, 1))
        return config.load(path, overrides)

    return write


def test_a_whole_file_with_its_defaults(write):
    c = write()
    assert c.name == "small"
    assert c.training.optimizer == "adam"
    assert c.model.dropout == 0
    assert [arm.name for arm in c.arms] == ["flat", "ewc", "kenneweg"]
    assert c.sequences[0].name == "first -> second"
    assert "~" not in c.data.cache


def test_overrides_reach_sections_and_entries_by_name_or_index(write):
    c = write(
        "",
        "",
        "training.epochs=3",
        "tasks.second.train_examples=7",
        "arms.0.rate=0.5",
        "seeds=[4]",
        "data.dir=/some/where",
        "name=other",
        "model.dropout = 0.1",
    )
    assert c.training.epochs == 3
    assert c.task("second").train_examples == 7
    assert c.arms[0].rate == 0.5
    assert c.seeds == [4]
    assert c.data.dir == "/some/where"
    assert c.name == "other"
    assert c.model.dropout == 0.1


def test_an_override_may_open_a_section(write):
    c = write("[training]\nepochs = 1", "[training]\nwarmup = 0.2", "training.epochs=2")
    assert (c.training.warmup, c.training.epochs) == (0.2, 2)


@pytest.mark.parametrize(
    "override, message",
    [
        ("training.epochs", "section.key=value"),
        ("=3", "section.key=value"),
        ("tasks.secnd.train_examples=7", "did you mean 'second'"),
        ("tasks.9.train_examples=7", "neither the name nor the index"),
        ("name.inner=7", "single value and not a section"),
        ("training.epoch=2", "did you mean 'epochs'"),
        ("training.epochs=two", "'training.epochs'.*valid integer.*'two'"),
    ],
)
def test_wrong_overrides(write, override, message):
    with pytest.raises(ValueError, match=message):
        write("", "", override)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("batch_size = 8", "batchsize = 8", "'training.batchsize'.*'batch_size'"),
        ("[training]", "[trainig]", "'trainig'.*'training'"),
        ("rate = 1e-2", "rat = 1e-2", "'arms.0.rat'.*'rate'"),
        ("epochs = 1", "epochs = 'one'", "'training.epochs'"),
        ("epochs = 1", "epochs = 0", "'training.epochs'.*greater than or equal to 1"),
        ("rate = 1e-2", "rate = 0", "'arms.0.rate'.*greater than 0.*Received: 0"),
        ("rate = 1e-2", "rate = -1e-2", "'arms.0.rate'.*greater than 0"),
        ("rate = 1e-2", "rate = nan", "'arms.0.rate'"),
        ("rate = 1e-2", "rate = inf", "'arms.0.rate'"),
        ("rate = 1e-2", "", "either `rate` or `distribution`"),
        ("rate = 1e-2", "rate = 1e-2\nrescale = 1e-2", "go with `distribution`"),
        ("rate = 1e-2", "rate = 1e-2\nfast_head = 0", "'arms.0.fast_head'.*than 0"),
        ("rate = 1e-2", "rate = 1e-2\nfast_head = inf", "'arms.0.fast_head'.*finite"),
        ("rate = 1e-2", "rate = 1e-2\nfasthead = 2", "'arms.0.fasthead'.*'fast_head'"),
        (
            "rate = 1e-2",
            "rate = 1e-2\nfast_head = 2e5",
            "`rate` times `fast_head`, .* at most 1000; lower one .*Received: 2000",
        ),
        (
            "rate = 1e-2",
            "rate = 1e-2\ndecay = 0.9\nfast_head = 2",
            "`fast_head` goes with `rate`, and not with `decay`",
        ),
        (
            'distribution = "kenneweg2022"',
            'distribution = "kenneweg2022"\nfast_head = 2',
            "`fast_head` goes with `rate`, and not with `decay`",
        ),
        (
            'strategy = "ewc"\nstrength = 10.0',
            'strategy = "der++"\nalpha = -1',
            "'arms.1.alpha'.*greater than or equal to 0",
        ),
        (
            'strategy = "ewc"\nstrength = 10.0',
            'strategy = "head_refit"\nexamples_per_class = 0',
            "'arms.1.examples_per_class'.*greater than or equal to 1",
        ),
        (
            "strength = 10.0",
            "beta = 1",
            r"`beta` goes with the strategies der\+\+, not",
        ),
        (
            "strength = 10.0",
            "alpha = 2",
            r"`alpha` goes with .* der\+\+, wise_ft, sfa,",
        ),
        ('strategy = "ewc"', "", "`strength` goes with .*recadam, lwf, not.*'plain'"),
        ('strategy = "ewc"', 'strategy = "joint"', "`strength` goes with .*'joint'"),
        ("strength = 10.0", "rank = 2", "`rank` goes with the strategies lora, not"),
        ("strength = 10.0", "alpha = -1", "'arms.1.alpha"),
        ('strategy = "ewc"', 'strategy = "ewc_pretraining"', "needs `raw_text`"),
        (
            'strategy = "ewc"\nstrength = 10.0',
            'strategy = "sfa"\nalpha = "training"',
            "goes with the strategy wise_ft",
        ),
        ('strategy = "ewc"', "strategy = 3", "'arms.1.strategy'"),
        ('strategy = "ewc"', 'strategy = "ewg"', "'arms.1.strategy'"),
        ('tasks = ["first", "second"]', 'tasks = ["frist"]', "did you mean 'first'"),
        ('tasks = ["first", "second"]', 'tasks = ["first", "first"]', "only once"),
        ('name = "ewc"', 'name = "flat"', "every name may stand only once"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "every seed may stand only once"),
        ("rate = 1e-2", "rate = 1e39", "'arms.0.rate'.*less than or equal to 1000"),
        ("strength = 10.0", "strength = 1e39", "'arms.1.strength'.*less than"),
        ('name = "small"', 'name = ".."', "'name'.*that a folder can have"),
        ('label = "label"', 'label = "label"\nclass_names = ["x", "x"]', "only once"),
        ("seeds = [0, 1]", "seeds = []", "'seeds'"),
        ("seeds = [0, 1]", "seeds = [-1]", "'seeds.0'"),
        ('label = "label"', "", "needs `train`, `text` and `label`"),
        ('source = "files"', 'source = "bbc/topic"', "only with source = 'files'"),
        ('name = "small"', "", "the key 'name' is missing"),
        ('text = "text"', 'text = ["a", "b", "c"]', "the two of a pair"),
        ("[model]", "[model", "is not TOML"),
        (MODEL, f"{MODEL}\nlayer_groups = []", "'model.layer_groups'.*at least 1"),
        (MODEL, f"{MODEL}\nlayer_groups = [2, 0]", "'model.layer_groups.1'.*equal to"),
        (MODEL, f"{MODEL}\nlayer_groups = [1.5]", "'model.layer_groups.0'.*integer"),
        (MODEL, f"{MODEL}\nlayer_groups = 2", "'model.layer_groups'"),
        (
            MODEL,
            f"{MODEL}\nlayer_groups = [2]\nencoder_groups = 8",
            "'model': `layer_groups` stands in place of.*: encoder_groups beside it",
        ),
        (
            MODEL,
            f"{MODEL}\nlayer_groups = [2]\nrounding = 'floor'",
            "'model': `layer_groups` stands in place of.*: rounding beside it",
        ),
        (
            "epochs = 1",
            "epochs = 1\nmomentum = 0.5",
            "'training': `momentum` goes with optimizer = 'sgd', not with 'adam'",
        ),
        (
            "epochs = 1",
            "epochs = 1\nmomentum = 0.9\noptimizer = 'adamw'",
            "`momentum` goes with .*'adamw'",
        ),
        (
            "epochs = 1",
            "epochs = 1\nmomentum = 1\noptimizer = 'sgd'",
            "'training.momentum'.*less than 1",
        ),
        (
            "epochs = 1",
            "epochs = 1\noptimizer = 'sg'",
            "'training.optimizer'.*'adam', 'adamw' or 'sgd'",
        ),
        ("strength = 10.0", "share = 0.1", "`share` goes with .* replay, not"),
        (EWC, f"{REPLAY}share = 0", "'arms.1.share'.*greater than 0"),
        (EWC, f"{REPLAY}share = 1.5", "'arms.1.share'.*equal to 1"),
        (
            EWC,
            f"{REPLAY}share = 0.1\nexamples_per_class = 10",
            "'arms.1'.*`share` stands in place of `examples_per_class`.*0.1.*10",
        ),
        ("[model]", '[report]\nreference = "flta"\n[model]', "did you mean 'flat'"),
        ("[model]", '[report]\nrefrence = "flat"\n[model]', "'reference'"),
        (
            "seeds = [0, 1]",
            'seeds = [4]\nreport = {reference = "flat"}',
            r"at least 2 seeds.*Received: seeds = \[4\]",
        ),
        ("seeds = [0, 1]", 'compat = ["random_halving"]', "'compat.0'.*random_length"),
        (
            "seeds = [0, 1]",
            'compat = "papers"',
            "'compat'.*'paper', or a list.*'papers'",
        ),
        (
            "seeds = [0, 1]",
            'compat = ["bytes_literal_texts", "bytes_literal_texts"]',
            "every fault may stand only once",
        ),
        (SEQUENCE, f'{SEQUENCE}\nshift = "size"', "'sequences.0.shift'.*'length'"),
        (SEQUENCE, f'{SEQUENCE}\nshift = "length"', "divides one task.*Received: 2"),
        (SEQUENCE, f'{SEQUENCE}\nshift = "cluster"', "divides one task.*Received: 2"),
        (SEQUENCE, 'tasks = ["first"]\nshift = "domain"', "at least two.*Received: 1"),
        (SEQUENCE, f"{SEQUENCE}\nclusters = 2", "goes with shift = 'cluster'"),
        (
            SEQUENCE,
            'tasks = ["first"]\nshift = "cluster"\nclusters = 1',
            "'sequences.0.clusters'.*greater than or equal to 2",
        ),
    ],
)
def test_what_is_wrong_is_named_with_file_key_and_rule(
    write, tmp_path, old, new, message
):
    with pytest.raises(ValueError, match=message) as error:
        write(old, new)
    assert str(tmp_path / "config.toml") in str(error.value)


def test_a_strategy_takes_its_settings_with_defaults(write):
    old = 'strategy = "ewc"\nstrength = 10.0'
    given = write(old, 'strategy = "lwf"\ntemperature = 3.0').arms[1]
    assert given.strategy == Lwf(strength=1.0, temperature=3.0)
    told = given.model_dump()
    values = (told[key] for key in ("strength", "temperature", "alpha"))
    assert tuple(values) == (1.0, 3.0, None)
    defaults = {"midpoint": 0.25, "steepness": 20.0, "strength": 5000.0}
    recadam = write(old, 'strategy = "recadam"').arms[1].model_dump(exclude_none=True)
    assert defaults.items() <= recadam.items()
    plain = write().arms[0].model_dump(exclude_none=True)
    assert set(plain) == {"name", "rate", "resample", "strategy"}


def test_arms_of_the_newer_strategies(write):
    old = 'rate = 1e-2\nstrategy = "ewc"\nstrength = 10.0'
    arm = write(old, 'rate = 1e-2\nfast_head = 20\nstrategy = "der++"').arms[1]
    told = arm.model_dump(exclude_none=True)
    expected = {"examples_per_class": 10, "alpha": 0.1, "beta": 0.5, "fast_head": 20}
    assert expected.items() <= told.items() and not arm.is_flat
    assert write(old, 'rate = 1e-2\nstrategy = "seq_star"').arms[1].is_flat
    refit = write(old, 'rate = 1e-2\nstrategy = "head_refit"').arms[1]
    assert refit.strategy.examples_per_class == 10


def test_without_the_later_keys_files_of_results_are_what_they_were(write):
    """So that a folder goes on, and a chief and its workers still agree."""
    told = write(EWC, REPLAY).model_dump()
    assert list(told["model"]) == [
        "preset", "sha256", "dropout", "precision", "encoder_groups", "rounding",
    ]  # fmt: skip
    assert list(told["training"]) == [
        "epochs", "batch_size", "optimizer", "weight_decay", "max_length", "warmup",
        "schedule", "steps_per_call", "evaluation_batch_size", "curve_points",
        "curve_examples",
    ]  # fmt: skip
    for arm in told["arms"]:
        assert list(arm) == [
            "name", "rate", "decay", "distribution", "resample", "rescale", "strategy",
            "strength", "head_strength", "fisher_decay", "raw_text", "fisher_examples",
            "midpoint", "steepness", "probe_rate", "examples_per_class", "temperature",
            "alpha", "period", "rank",
        ]  # fmt: skip
    assert told["arms"][1]["examples_per_class"] == 10


def test_the_later_keys_stand_in_files_of_results_and_are_read_again(write):
    c = write(
        EWC,
        f"{REPLAY}share = 0.25",
        "model.layer_groups=[1, 1]",
        "training.optimizer=sgd",
    )
    told = json.loads(c.model_dump_json())
    assert told["model"]["layer_groups"] == [1, 1]
    assert not {"encoder_groups", "rounding"} & told["model"].keys()
    assert told["training"]["momentum"] == 0.9
    assert told["arms"][1]["share"] == 0.25
    assert told["arms"][1]["examples_per_class"] is None
    assert "share" not in told["arms"][0]
    again = config.Configuration.model_validate(told)
    assert again == c and again.model_dump() == c.model_dump()


@pytest.mark.parametrize("compat", ['"paper"', '["carry_moments"]'])
def test_moments_of_adam_do_not_go_on_in_sgd(write, compat):
    overrides = (f"compat={compat}", "training.optimizer=sgd")
    with pytest.raises(ValueError, match="`carry_moments` is of Adam's moments"):
        write("", "", *overrides)
    assert write("", "", *overrides[:1]).compat
    others = 'compat=["no_shuffling"]'
    assert write("", "", others, overrides[1]).training.optimizer == "sgd"


def test_all_problems_are_told_at_once(write):
    with pytest.raises(ValueError) as error:
        write("epochs = 1\nbatch_size = 8", "epoch = 1\nbatch_size = 0")
    assert "training.epoch" in str(error.value)
    assert "training.batch_size" in str(error.value)


@pytest.mark.parametrize(
    "lines, name",
    [
        (SEQUENCE, "first -> second"),
        ('tasks = ["first"]', "first"),
        ('tasks = ["first"]\nshift = "length"', "first (length)"),
        ('tasks = ["first"]\nshift = "cluster"', "first (2 clusters)"),
        ('tasks = ["first"]\nshift = "cluster"\nclusters = 3', "first (3 clusters)"),
        (f'{SEQUENCE}\nshift = "domain"', "first -> second (domain)"),
    ],
)
def test_a_sequence_is_called_by_its_shift_wherever_it_is_looked_up(write, lines, name):
    c = write(SEQUENCE, lines, f"search.sequence={name}")
    assert c.sequences[0].name == c.search.sequence == name


def test_one_task_may_be_divided_in_several_ways(write):
    ways = [
        'tasks = ["first"]',
        'tasks = ["first"]\nshift = "length"',
        'tasks = ["first"]\nshift = "cluster"',
        'tasks = ["first"]\nshift = "cluster"\nclusters = 3',
    ]
    c = write(SEQUENCE, "\n[[sequences]]\n".join(ways))
    assert len({sequence.name for sequence in c.sequences}) == 4
    with pytest.raises(ValueError, match="Repeated: .'first .2 clusters.'"):
        write(SEQUENCE, "\n[[sequences]]\n".join([ways[2], f"{ways[2]}\nclusters = 2"]))


def test_faults_are_off_unless_named(write):
    assert write().compat == []
    line = "seeds = [0, 1]"
    two = ["cluster_on_validation", "bytes_literal_texts"]
    # In one order, so that the same faults are the same configuration.
    assert write(line, f"compat = {two}").compat == two[::-1]


def test_the_faults_of_the_paper_are_named_one_by_one(write):
    faults = write("seeds = [0, 1]", 'compat = "paper"').compat
    assert len(faults) == 8
    assert sorted(faults) == [
        "bytes_literal_texts", "carry_moments", "cluster_on_validation",
        "early_stopping_first_task", "no_shuffling", "random_length_halving",
        "report_on_tuning_split", "softmax_before_loss",
    ]  # fmt: skip


FISHER = 'rates_from = "fisher"\nrescale = 1e-3\nhead_rate = 1e-2'
FLAT = "rate = 1e-2"


def test_rates_may_come_from_a_fisher(write):
    arm = write(FLAT, f"{FLAT}\n{FISHER}").arms[0]
    assert (arm.rate, arm.rescale, arm.head_rate) == (1e-2, 1e-3, 1e-2)
    assert arm.rates_from == "fisher"
    told = arm.model_dump()
    assert told["rates_from"] == "fisher" and told["head_rate"] == 1e-2
    assert config.ArmSettings.model_validate(told) == arm
    # Files of other arms stay as they were.
    assert not {"rates_from", "head_rate"} & set(write().arms[0].model_dump())


@pytest.mark.parametrize(
    "lines, message",
    [
        (FISHER.replace("fisher", "fischer"), "'arms.0.rates_from'.*'fisher_inverse'"),
        ('rates_from = "fisher"\nhead_rate = 1.0', "needs `rescale` too"),
        ('rates_from = "fisher"\nrescale = 1.0', "needs `head_rate` too"),
        ('rates_from = "fisher"', "needs `rescale` and `head_rate` too"),
        ("head_rate = 1.0", "`head_rate` goes with `rates_from`"),
        (f"{FISHER}\ndecay = 0.9", "`rates_from` needs `rate`.*nor `decay`"),
        (f"{FISHER}\nresample = true", "`resample` goes with `distribution`"),
        (f'{FISHER}\nstrategy = "joint"', "a first task is required.*'joint'"),
        (f'{FISHER}\nstrategy = "single"', "a first task is required.*'single'"),
    ],
)
def test_rates_from_a_fisher_need_what_they_need(write, lines, message):
    with pytest.raises(ValueError, match=message):
        write(FLAT, f"{FLAT}\n{lines}")


def test_rates_from_a_fisher_need_a_first_task_and_no_search(write):
    wrong = f'{FISHER}\ndistribution = "kenneweg2022"'
    with pytest.raises(ValueError, match="`rates_from` needs `rate`"):
        write(FLAT, wrong)
    given = f"{FLAT}\n{FISHER}"
    with pytest.raises(ValueError, match="a first task is required.*'first', which"):
        write(FLAT, given, "sequences.0.tasks=['first']")
    # The parts of one task are tasks.
    write(FLAT, given, "sequences.0.tasks=['first']", "sequences.0.shift=length")
    with pytest.raises(ValueError, match="without `rates_from`.*'flat' with rates_fr"):
        write(FLAT, given, "search.arm=flat")


def test_a_search_takes_its_strategy_from_an_arm(write):
    assert write().search_arm is None
    c = write("", "", "search.arm=ewc", "search.strength=[1, 100]")
    assert c.search_arm == c.arms[1]
    assert c.search.strength == (1, 100)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["search.arm=ewg"], "search.arm is 'ewg'.*did you mean 'ewc'"),
        (["search.strength=[1, 2]"], "'search'.*`strength` goes with `arm`"),
        (["search.arm=ewc", "search.strength=[2, 1]"], r"below the second.*\[2.0, 1.0"),
        (["search.arm=ewc", "search.strength=[0, 1]"], "'search.strength.0'.*than 0"),
        (["search.arm=ewc", "search.strength=3"], "'search.strength'"),
        (
            ["search.arm=flat", "search.strength=[1, 2]"],
            "search.strength needs an arm with .*ewc, .*recadam, lwf.*'flat' of the "
            "strategy plain",
        ),
        (
            [
                "arms.ewc.strategy=recadam",
                "search.arm=ewc",
                "search.high=1e-2",
                "search.strength=[1, 1000]",
            ],
            "search.high x the largest search.strength .* at most 1.*Received: 10",
        ),
    ],
)
def test_a_search_that_does_not_fit_its_arm(write, overrides, message):
    with pytest.raises(ValueError, match=message):
        write("", "", *overrides)


def test_the_configurations_of_the_project_are_valid(pytestconfig):
    files = sorted((pytestconfig.rootpath / "configs").rglob("*.toml"))
    assert {"quickstart.toml", "sst2_mrpc.toml"} <= {file.name for file in files}
    for file in files:
        configuration = config.load(file)
        assert configuration.arms or file.name.startswith("search")
