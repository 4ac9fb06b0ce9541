import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instseg.config.loader import ConfigError, dump_config, load_config, parse_config
from tests.config.small_schema import Config, FCNHead, Needy, UNetHead


@pytest.fixture(autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("configs"))


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(text: str, *overrides: str) -> Config:
    return load_config(write("a.yaml", text), Config, overrides)


def message(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(text, *overrides)
    return str(error.value)


def test_values_of_every_kind() -> None:
    config = load(
        """\
head: {name: unet, depth: 3, dropout: 1e-3}
heads: [{name: fcn}, {name: unet, depth: 1}]
data:
- {format: voc, root: ../data/voc, size: [3, 4]}
train:
  optimizer: {learning_rate: 1, milestones: [8, 11]}
  workers: [1, 2]
run: {name: off}
counts: {1: 0.5}
ema: {momentum: 0.5}
extra: {any: [thing, null]}
"""
    )
    assert config.head == UNetHead(name="unet", depth=3, dropout=0.001)
    assert config.heads == [FCNHead(), UNetHead(name="unet", depth=1)]
    assert config.data[0].root == Path("../data/voc")
    assert config.data[0].size == (3, 4)
    assert config.train.optimizer.learning_rate == 1.0
    assert config.train.optimizer.milestones == (8, 11)
    assert config.train.workers == [1, 2]
    assert config.run.name == "off"
    assert config.counts == {1: 0.5}
    assert config.ema.momentum == 0.5
    assert config.extra == {"any": ["thing", None]}


def test_text_that_is_not_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    assert message('run:\n  name: "\\ud800"\n') == "a.yaml:2: '\\ud800' is not valid Unicode"
    assert message('run: {"\\ud800": 1}\n') == "a.yaml:1: '\\ud800' is not valid Unicode"
    monkeypatch.setenv("BYTES", os.fsdecode(b"x\xff"))
    assert message("", "run.name=${BYTES}") == (
        "command line: 'run.name=${BYTES}': 'x\\udcff' is not valid Unicode"
    )


class TestBase:
    def test_a_chain_merges_mappings_and_replaces_the_rest(self) -> None:
        write(
            "shared/root.yaml",
            "train: {batch_size: 8, clip: 1.0, workers: [1, 2]}\nrun: {name: a, notes: root}\n",
        )
        write("mid.yaml", "base: shared/root.yaml\ntrain: {clip: null, workers: [3]}\n")
        config = load("base: mid.yaml\nrun: {name: b}\ntrain: {amp: true}\n")
        assert config.train.batch_size == 8
        assert config.train.clip is None
        assert config.train.workers == [3]
        assert config.train.amp is True
        # `name` chooses nothing here, so the sibling stays.
        assert (config.run.name, config.run.notes) == ("b", "root")

    def test_a_base_is_relative_to_the_file_that_names_it(self) -> None:
        write("x/base.yaml", "base: ../y/root.yaml\n")
        write("y/root.yaml", "train: {batch_size: 7}\n")
        assert load("base: x/base.yaml\n").train.batch_size == 7

    def test_of_several_bases_the_later_wins(self) -> None:
        write("one.yaml", "train: {batch_size: 1, clip: 1.0}\n")
        write("two.yaml", "train: {batch_size: 2}\n")
        config = load("base: [one.yaml, two.yaml]\n")
        assert (config.train.batch_size, config.train.clip) == (2, 1.0)

    def test_one_file_may_be_the_base_of_two(self) -> None:
        write("root.yaml", "train: {batch_size: 3}\n")
        write("one.yaml", "base: root.yaml\n")
        write("two.yaml", "base: root.yaml\n")
        assert load("base: [one.yaml, two.yaml]\n").train.batch_size == 3

    def test_doubling_chains_are_read_once_per_file(self) -> None:
        write("b0.yaml", "train: {batch_size: 5}\n")
        for i in range(1, 30):
            write(f"b{i}.yaml", f"base: [b{i - 1}.yaml, b{i - 1}.yaml]\n")
        assert load("base: b29.yaml\n").train.batch_size == 5

    def test_missing_base(self) -> None:
        write("x/mid.yaml", "# comment\nbase:\n- none.yaml\n")
        assert message("base: x/mid.yaml\n") == (
            "x/mid.yaml:3: the base file 'x/none.yaml' does not exist"
        )

    def test_base_of_a_wrong_type(self) -> None:
        assert message("run: {}\nbase: 3\n") == (
            "a.yaml:2: base: expected a file name or a list of file names"
        )

    def test_cycle(self) -> None:
        write("x/b.yaml", "run: {}\nbase: c.yaml\n")
        write("x/c.yaml", "base: b.yaml\n")
        assert message("base: x/b.yaml\n") == (
            "x/c.yaml:1: the base files form a cycle: x/b.yaml -> x/c.yaml -> x/b.yaml"
        )
        assert message("base: a.yaml\n") == (
            "a.yaml:1: the base files form a cycle: a.yaml -> a.yaml"
        )

    def test_endless_chain(self) -> None:
        for i in range(60):
            write(f"b{i}.yaml", f"base: b{i + 1}.yaml\n")
        assert message("base: b0.yaml\n") == "b48.yaml:1: a chain of more than 50 base files"

    def test_a_changed_tag_drops_the_keys_of_the_base(self) -> None:
        write("b.yaml", "head: {name: fcn, convs: 2, channels: 7}\n")
        config = load("base: b.yaml\nhead: {name: unet, depth: 2}\n")
        assert config.head == UNetHead(name="unet", depth=2, channels=64)

    def test_the_same_or_no_tag_keeps_the_keys_of_the_base(self) -> None:
        write("b.yaml", "named_heads:\n  x: {name: fcn, convs: 2, channels: 7}\n")
        for child in ("{name: fcn, convs: 3}", "{convs: 3}"):
            config = load(f"base: b.yaml\nnamed_heads:\n  x: {child}\n")
            assert config.named_heads == {"x": FCNHead(convs=3, channels=7)}


class TestOverrides:
    def test_scalars_and_flow_values(self) -> None:
        config = load(
            "train: {batch_size: 1, clip: 3.0}\nhead: {name: fcn, convs: 2}\n",
            "train.optimizer.learning_rate=1e-3",
            "train.batch_size=4",
            "train.clip=",
            "run.name=a=b",
            "head={name: unet, depth: 2}",
            "train.workers=[1, 2]",
        )
        assert config.train.optimizer.learning_rate == 0.001
        assert config.train.batch_size == 4
        assert config.train.clip is None
        assert config.run.name == "a=b"
        assert config.head == UNetHead(name="unet", depth=2)
        assert config.train.workers == [1, 2]

    def test_a_mapping_replaces_the_old_one(self) -> None:
        config = load("head: {name: fcn, convs: 2, channels: 3}\n", "head={name: fcn, convs: 9}")
        assert config.head == FCNHead(convs=9, channels=256)

    def test_of_equal_paths_the_later_wins(self) -> None:
        config = load("", "train.batch_size=4", "train.batch_size=5")
        assert config.train.batch_size == 5

    def test_list_items(self) -> None:
        config = load(
            "train: {workers: [1, 2]}\nheads: [{name: fcn}, {name: unet, depth: 1}]\n",
            "train.workers.0=3",
            "heads.1.depth=5",
            "heads.0.name=unet",
            "heads.0.depth=6",
        )
        assert config.train.workers == [3, 2]
        assert [head.depth for head in config.heads] == [6, 5]

    @pytest.mark.parametrize(
        "overrides", [("head.name=unet", "head.depth=2"), ("head.depth=2", "head.name=unet")]
    )
    def test_a_changed_tag_drops_old_keys_but_no_other_override(
        self, overrides: tuple[str, ...]
    ) -> None:
        config = load("head: {name: fcn, convs: 2, channels: 3}\n", *overrides)
        assert config.head == UNetHead(name="unet", depth=2, channels=64)

    def test_a_name_that_is_no_tag_drops_nothing(self) -> None:
        assert load("run: {name: a, notes: b}\n", "run.name=c").run.notes == "b"

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            (
                "trian.lr=1",
                "unknown key 'trian' at the top level; did you mean 'train'? (valid keys: head, "
                "heads, named_heads, data, train, run, tree, counts, ema, extra, hook)",
            ),
            (
                "run.nmae=1",
                "unknown key 'nmae' in run; did you mean 'name'? (valid keys: name, notes)",
            ),
            ("train.amp=1", "train.amp: expected true or false, got 1"),
            ("train.amp.x=1", "train.amp: expected true or false, got a mapping"),
            ("train.amp", "expected key.path=value, such as train.lr=1e-3"),
            ("train..amp=1", "expected key.path=value, such as train.lr=1e-3"),
            (".".join("a" * 51) + "=1", "a path of more than 50 keys"),
            (
                "train.workers.2=1",
                "train.workers is a list: expected an index from 0 to 1, got '2'",
            ),
            (
                "train.workers.x=1",
                "train.workers is a list: expected an index from 0 to 1, got 'x'",
            ),
            ("heads.0={}", "heads is a list: expected no index: the list is empty, got '0'"),
            ("head.name=unet", "missing key 'depth' in head"),
            (
                "train.workers=[1",
                "invalid YAML: while parsing a flow sequence, expected ',' or ']', "
                "but got '<stream end>'",
            ),
            ("run={name: a, name: b}", "duplicate key 'name'"),
        ],
    )
    def test_errors_name_the_command_line(self, override: str, expected: str) -> None:
        text = "train: {workers: [1, 2]}\nheads: []\nhead: {name: fcn}\nrun:\n  notes: a\n"
        assert message(text, override) == f"command line: '{override}': {expected}"


class TestVariables:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATA", "/data/coco")
        monkeypatch.setenv("COUNT", "3")
        monkeypatch.setenv("EMPTY", "")
        monkeypatch.delenv("UNSET", raising=False)

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("${DATA}/train", "/data/coco/train"),
            ("'${DATA}:${COUNT}'", "/data/coco:3"),
            ("${UNSET:-x/y}", "x/y"),
            ("${EMPTY:-x}", "x"),
            ("'${EMPTY}'", ""),
            ("a$b${EMPTY}$", "a$b$"),
            ("'${UNSET:-}'", ""),
            ("$${DATA}", "${DATA}"),
            ("'${COUNT}'", "3"),
        ],
    )
    def test_strings(self, written: str, expected: str) -> None:
        assert load(f"run:\n  name: {written}\n").run.name == expected

    def test_unquoted_text_is_read_again(self) -> None:
        text = "train:\n  batch_size: ${COUNT}\n  clip: ${UNSET:-1e-2}\n  amp: ${UNSET:-true}\n"
        train = load(text).train
        assert (train.batch_size, train.clip, train.amp) == (3, 0.01, True)

    def test_in_overrides_lists_and_bases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NAME", "b")
        write("b.yaml", "train:\n  workers:\n  - ${COUNT}\n")
        config = load("base: ${NAME}.yaml\n", "run.name=${DATA}")
        assert config.train.workers == [3]
        assert config.run.name == "/data/coco"

    def test_a_replaced_value_needs_no_variable(self) -> None:
        write("b.yaml", "run: {name: '${UNSET}'}\n")
        assert load("base: b.yaml\nrun: {name: x}\n").run.name == "x"
        assert load("run: {name: '${UNSET}'}\n", "run.name=y").run.name == "y"

    def test_unset_variable(self) -> None:
        assert message("run:\n  name: x\n  notes: a ${UNSET} b\n") == (
            "a.yaml:3: run.notes: the environment variable 'UNSET' is not set; run "
            "`export UNSET=...` first, or write a default as ${UNSET:-value}"
        )

    @pytest.mark.parametrize("written", ["${1x}", "${DATA-x}", "${DATA", "${}"])
    def test_malformed_variable(self, written: str) -> None:
        assert message(f"run:\n  name: {written}\n") == (
            "a.yaml:2: run.name: a '${' that begins no variable; write ${VAR} or "
            "${VAR:-default}, or $${ for the characters themselves"
        )


class TestStoredConfig:
    def test_dump_loads_back_equal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME_OF_DATA", "/data")
        write("b.yaml", "head: {name: unet, depth: 2, dropout: 1e-7}\n")
        config = load(
            """\
base: b.yaml
data:
- {format: coco, images: "${HOME_OF_DATA}/images"}
- {format: voc2007, root: rel/voc}
train: {clip: .inf, optimizer: {learning_rate: 1e-05, milestones: [1, 2]}}
run: {name: "1e-3", notes: "$${A} off\\n"}
counts: {7: 1}
"""
        )
        text = dump_config(config)
        assert "images: /data/images\n" in text
        assert "batch_size: 2\n" in text  # defaults too
        assert "base" not in text
        assert parse_config(text, Config, source="w.safetensors") == config
        assert load_config(write("resolved.yaml", text), Config) == config

    @given(st.text(st.characters(exclude_categories=["Cs"])), st.floats(allow_nan=False))
    def test_any_string_and_float_survive(self, name: str, clip: float) -> None:
        config = Config()
        config.run.name = name
        config.train.clip = clip
        assert parse_config(dump_config(config), Config, source="w") == config

    def test_errors_name_the_source(self) -> None:
        with pytest.raises(ConfigError) as error:
            parse_config("run:\n  nmae: x\n", Config, source="model.safetensors")
        assert str(error.value) == (
            "model.safetensors:2: unknown key 'nmae' in run; did you mean 'name'? "
            "(valid keys: name, notes)"
        )

    def test_neither_files_nor_environment_are_reached(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET", "x")
        for text, expected in (
            ("run: {}\nbase: b.yaml\n", "w:2: 'base' is not allowed in a stored config"),
            (
                "run:\n  name: ${SECRET}\n",
                "w:2: run.name: the variable 'SECRET' is not allowed in a stored config",
            ),
        ):
            with pytest.raises(ConfigError) as error:
                parse_config(text, Config, source="w")
            assert str(error.value) == expected

    def test_a_stored_config_of_another_schema(self) -> None:
        with pytest.raises(ConfigError, match="missing key 'images' at the top level"):
            parse_config("{}", Needy, source="w")
