"""Exact messages, with file and line, for values that do not fit the schema."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from instseg.config.loader import ConfigError, load_config
from tests.config.small_schema import Config, Needy


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def message(text: str, schema: type[BaseModel] = Config) -> str:
    Path("a.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(Path("a.yaml"), schema)
    return str(error.value)


OPTIMIZER_KEYS = "(valid keys: learning_rate, momentum, schedule, milestones)"
TOP_KEYS = (
    "(valid keys: head, heads, named_heads, data, train, run, tree, counts, ema, extra, hook)"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "train:\n  optimizer:\n    momentum: 0.5\n    lerning_rate: 1\n",
            "a.yaml:4: unknown key 'lerning_rate' in train.optimizer; did you mean "
            f"'learning_rate'? {OPTIMIZER_KEYS}",
            id="nearest in the same mapping",
        ),
        pytest.param(
            "# note\ntrian:\n  amp: true\n",
            f"a.yaml:2: unknown key 'trian' at the top level; did you mean 'train'? {TOP_KEYS}",
            id="top level",
        ),
        pytest.param(
            "train:\n  momentum: 0.5\n",
            "a.yaml:2: unknown key 'momentum' in train; a key 'momentum' exists in "
            "train.optimizer, ema (valid keys: optimizer, batch_size, amp, clip, workers)",
            id="exists in other sections",
        ),
        pytest.param(
            "train:\n  dropuot: 0.5\n",
            "a.yaml:2: unknown key 'dropuot' in train; a key 'dropout' exists in "
            "head (name: unet), heads.* (name: unet), named_heads.* (name: unet) "
            "(valid keys: optimizer, batch_size, amp, clip, workers)",
            id="similar in other sections, through unions, lists and dicts",
        ),
        pytest.param(
            "run: {root: x}\n",
            "a.yaml:1: unknown key 'root' in run; a key 'root' exists in "
            "data.* (format: voc | voc2007) (valid keys: name, notes)",
            id="an alternative of two tags",
        ),
        pytest.param(
            "head:\n  name: fcn\n  depth: 2\n",
            "a.yaml:3: unknown key 'depth' in head; a key 'depth' exists in head (name: unet), "
            "heads.* (name: unet), named_heads.* (name: unet) "
            "(valid keys: name, convs, channels)",
            id="belongs to another alternative",
        ),
        pytest.param(
            "run:\n  qqqqqq: 1\n",
            "a.yaml:2: unknown key 'qqqqqq' in run (valid keys: name, notes)",
            id="nothing near",
        ),
        pytest.param(
            "heads:\n- name: fcn\n- name: unet\n  depth: 2\n  chanels: 3\n",
            "a.yaml:5: unknown key 'chanels' in heads.1; did you mean 'channels'? "
            "(valid keys: name, depth, channels, dropout)",
            id="in a list of tagged unions",
        ),
        pytest.param(
            "named_heads:\n  fcn:\n    name: fcn\n    conv: 3\n",
            "a.yaml:4: unknown key 'conv' in named_heads.fcn; did you mean 'convs'? "
            "(valid keys: name, convs, channels)",
            id="dict key spelt like the tag",
        ),
        pytest.param(
            "data:\n- format: coco\n  coco: 1\n  image: x\n  images: y\n",
            "a.yaml:4: unknown key 'image' in data.0; did you mean 'images'? "
            "(valid keys: format, images, coco)",
            id="model key spelt like the tag",
        ),
        pytest.param(
            "tree:\n  children:\n  - label: a\n  - children:\n    - labl: b\n",
            "a.yaml:5: unknown key 'labl' in tree.children.1.children.0; did you mean 'label'? "
            "(valid keys: children, label)",
            id="recursive model",
        ),
    ],
)
def test_unknown_key(text: str, expected: str) -> None:
    assert message(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ntrain:\n  batch_size: four\n", ":3: train.batch_size: expected an integer, got 'four'"),
        ("train: {batch_size: '4'}\n", ":1: train.batch_size: expected an integer, got '4'"),
        ("train: {batch_size: true}\n", ":1: train.batch_size: expected an integer, got true"),
        ("train: {batch_size: 2.0}\n", ":1: train.batch_size: expected an integer, got 2.0"),
        ("train: {batch_size: }\n", ":1: train.batch_size: expected an integer, got null"),
        ("train: {amp: off}\n", ":1: train.amp: expected true or false, got 'off'"),
        ("train: {clip: [1]}\n", ":1: train.clip: expected a number, got [1]"),
        ("train:\n- amp\n", ":1: train: expected a mapping, got ['amp']"),
        (
            "heads: [fcn]\n",
            ":1: heads.0: expected a mapping, got 'fcn'; write it as {name: fcn}",
        ),
        ("ema: [1]\n", ":1: ema: expected true or false or a mapping, got [1]"),
        ("heads:\n  name: fcn\n", ":1: heads: expected a list, got a mapping"),
        ("heads:\n- name: fcn\n- 3\n", ":3: heads.1: expected a mapping, got 3"),
        ("run: {name: 12}\n", ":1: run.name: expected a string, got 12; write it in quotes"),
        (
            "train: {optimizer: {milestones:\n  [1,\n  x]}}\n",
            ":3: train.optimizer.milestones.1: expected an integer, got 'x'",
        ),
        (
            "heads:\n- name: unet\n  depth: deep\n",
            ":3: heads.0.depth: expected an integer, got 'deep'",
        ),
        (
            "data:\n- format: coco\n  images: x\n  coco: y\n",
            ":4: data.0.coco: expected an integer, got 'y'",
        ),
        ("counts:\n  1: a\n", ":2: counts.1: expected a number, got 'a'"),
        ("counts:\n  3: 1\n  x: 1\n", ":3: counts.x: expected an integer, got 'x'"),
        ("ema: 3\n", ":1: ema: expected true or false or a mapping, got 3"),
        (
            "data:\n- format: voc\n  root: x\n  size: [1, 2, 3]\n",
            ":4: data.0.size: expected at most 2 items, got 3",
        ),
        (
            "data:\n- format: voc\n  root: x\n  size: [1]\n",
            ":4: data.0.size: expected 2 items, got 1",
        ),
    ],
)
def test_wrong_type(text: str, expected: str) -> None:
    assert message(text) == "a.yaml" + expected


def test_alternatives_of_a_union_give_one_problem() -> None:
    assert message("train:\n  workers: {}\n") == (
        "a.yaml:2: train.workers: expected an integer, 'auto' or a list, got a mapping"
    )
    assert message("train:\n  workers: atuo\n") == (
        "a.yaml:2: train.workers: expected an integer, 'auto' or a list, got 'atuo'; "
        "did you mean 'auto'?"
    )


def test_the_alternative_that_got_further_is_explained() -> None:
    assert message("ema:\n  momentum: 0.5\n  momentun: 1\n") == (
        "a.yaml:3: unknown key 'momentun' in ema; did you mean 'momentum'? " + OPTIMIZER_KEYS
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train:\n  optimizer:\n    momentum: 1.5\n",
            "a.yaml:3: train.optimizer.momentum: should be less than 1, got 1.5",
        ),
        (
            "train:\n  optimizer:\n    schedule: cosin\n",
            "a.yaml:3: train.optimizer.schedule: expected 'cosine' or 'multistep', got 'cosin'; "
            "did you mean 'cosine'?",
        ),
        (
            "train:\n  optimizer:\n    schedule: 3\n",
            "a.yaml:3: train.optimizer.schedule: expected 'cosine' or 'multistep', got 3",
        ),
        (
            "train:\n  optimizer:\n    schedule: multistep\n",
            "a.yaml:2: train.optimizer: a multistep schedule needs milestones",
        ),
    ],
)
def test_wrong_value(text: str, expected: str) -> None:
    assert message(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "head:\n  depth: 2\n  name: unett\n",
            "a.yaml:3: head.name: unknown name 'unett'; did you mean 'unet'? (choices: fcn, unet)",
        ),
        ("head: {name: 3}\n", "a.yaml:1: head.name: unknown name 3 (choices: fcn, unet)"),
        (
            "data:\n- format: coco\n  images: x\n- root: x\n  format: coc\n",
            "a.yaml:5: data.1.format: unknown format 'coc'; did you mean 'coco'? "
            "(choices: coco, voc, voc2007)",
        ),
        (
            "named_heads:\n  a:\n    name: fcn\n  b:\n    name: fnc\n",
            "a.yaml:5: named_heads.b.name: unknown name 'fnc'; did you mean 'fcn'? "
            "(choices: fcn, unet)",
        ),
        (
            "heads:\n- name: fcn\n- depth: 2\n",
            "a.yaml:3: missing key 'name' in heads.1 (choices: fcn, unet)",
        ),
    ],
)
def test_wrong_or_missing_tag(text: str, expected: str) -> None:
    assert message(text) == expected


def test_missing_key() -> None:
    text = "# comment\nhead:\n  name: unet\n  channels: 3\n"
    assert message(text, Needy) == (
        "a.yaml:2: missing key 'images' at the top level\na.yaml:2: missing key 'depth' in head"
    )


def test_empty_file_misses_every_key() -> None:
    assert message("", Needy) == (
        "a.yaml:1: missing key 'images' at the top level\n"
        "a.yaml:1: missing key 'head' at the top level"
    )


def test_all_problems_are_listed_with_the_file_of_each() -> None:
    Path("base.yaml").write_text("train:\n  batch_size: x\n  clip: y\nrun:\n  nmae: z\n")
    assert message("base: base.yaml\ntrain:\n  clip: 1\n  apm: true\n") == (
        "base.yaml:2: train.batch_size: expected an integer, got 'x'\n"
        "a.yaml:4: unknown key 'apm' in train; did you mean 'amp'? "
        "(valid keys: optimizer, batch_size, amp, clip, workers)\n"
        "base.yaml:5: unknown key 'nmae' in run; did you mean 'name'? (valid keys: name, notes)"
    )
