import math
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from instseg.config.yaml_source import (
    MAX_BYTES,
    MAX_VALUES,
    ConfigError,
    Node,
    parse_mapping,
    parse_value,
    read_yaml,
    to_yaml,
)


def plain(node: Node) -> object:
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def message(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse_mapping(text, "a.yaml")
    return str(error.value)


# The examples of section 10.3.2 of the YAML 1.2.2 specification, and what YAML 1.1 did otherwise.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("False", False),
        ("0", 0),
        ("0o7", 7),
        ("0x3A", 0x3A),
        ("-19", -19),
        ("010", 10),
        ("0.", 0.0),
        ("-0.0", -0.0),
        (".5", 0.5),
        ("+12e03", 12000.0),
        ("-2E+05", -200000.0),
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("off", "off"),
        ("no", "no"),
        ("y", "y"),
        ("On", "On"),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("1_000", "1_000"),
        ("e3", "e3"),
        (".", "."),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("!!str 12", "12"),
        ("!!float 3", 3.0),
    ],
)
def test_scalars_follow_the_core_schema(text: str, expected: object) -> None:
    value = parse_value(text, "a.yaml").value
    assert value == expected
    assert type(value) is type(expected)


def test_nan() -> None:
    assert math.isnan(parse_value(".NaN", "a.yaml").value)


def test_every_key_and_item_has_its_line() -> None:
    root = parse_mapping("# comment\na: 1\nb:\n  c:\n  - x\n  - {d: 2,\n     e: 3}\n", "a.yaml")
    b = root.value["b"]
    items = b.value["c"].value
    nodes = [root, root.value["a"], b, b.value["c"], *items, items[1].value["e"]]
    assert [str(node.origin) for node in nodes] == [
        f"a.yaml:{line}" for line in (2, 2, 3, 4, 5, 6, 7)
    ]


def test_aliases_and_merge_keys() -> None:
    text = """\
x: &x {a: 1, b: 2}
y: &y {b: 3, c: 4}
one: {<<: *x, b: 9}
two: {<<: [*x, *y]}
three: *x
"""
    root = parse_mapping(text, "a.yaml")
    # The merge-key draft: own keys win, then the earlier mapping of the list.
    expected = yaml.safe_load(text)
    assert plain(root) == expected
    assert expected["two"] == {"a": 1, "b": 2, "c": 4}
    assert root.value["one"].value["a"].origin.line == 1
    assert root.value["three"].origin.line == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "a.yaml:5: duplicate key 'c' (first on line 3)"),
        ("a: 1\n'a': 2\n", "a.yaml:2: duplicate key 'a' (first on line 1)"),
        ("- a\n", "a.yaml:1: expected `key: value` lines at the top level"),
        ("a: 1\n? [x]\n: 2\n", "a.yaml:2: a key must be a string or number"),
        ("a: {<<: 3}\n", "a.yaml:1: '<<' takes a mapping or a list of mappings"),
        ("a: 1\nb: !!int x\n", "a.yaml:2: 'x' does not fit the tag !!int"),
        (
            "a: !!python/object/apply:os.system [echo]\n",
            "a.yaml:1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; "
            "only plain values are",
        ),
        (
            "a: 1\nb: !env X\n",
            "a.yaml:2: the tag '!env' is not allowed; only plain values are",
        ),
        ("a: 1\nb: c: 2\n", "a.yaml:2:5: invalid YAML: mapping values are not allowed here"),
        (
            "a: [1, 2\nb: 3\n",
            "a.yaml:2:2: invalid YAML: while parsing a flow sequence, "
            "expected ',' or ']', but got ':'",
        ),
        ("a: *x\n", "a.yaml:1:4: invalid YAML: found undefined alias 'x'"),
        (
            "a: 1\nb: x\0\n",
            "a.yaml:2:5: invalid YAML: special characters are not allowed (0)",
        ),
        (
            "a: {root: ${DATA}}\n",
            "a.yaml:1:12: invalid YAML: while parsing a flow mapping, expected ',' or '}', but got "
            "'{'; within {} or [], write a variable in quotes: \"${VAR}\"",
        ),
    ],
)
def test_refused_documents(text: str, expected: str) -> None:
    assert message(text) == expected


def test_two_documents_are_refused() -> None:
    assert "a.yaml:2:1: invalid YAML: expected a single document" in message("a: 1\n---\nb: 2\n")


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000])
def test_an_integer_too_long_for_python(number: str) -> None:
    expected = "a.yaml:2: not a readable int: more than 1000 digits"
    assert message(f"a: 1\nb: {number}\n") == expected


def test_deep_nesting() -> None:
    assert message("a: " + "[" * 1000) == "a.yaml:1:53: invalid YAML: nested deeper than 50 levels"


def test_alias_of_itself() -> None:
    expected = "a.yaml:1: nested deeper than 50 levels once aliases are expanded"
    assert message("a: &a [*a]\n") == expected


def test_too_many_values() -> None:
    text = "a: [" + "1," * MAX_VALUES + "]"
    assert f"invalid YAML: more than {MAX_VALUES} values" in message(text)


def test_billion_laughs_is_refused_at_once() -> None:
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    start = time.perf_counter()
    assert message("\n".join(lines)) == (
        f"a.yaml:1: more than {MAX_VALUES} values once aliases are expanded"
    )
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"#" * (MAX_BYTES + 1), f"larger than {MAX_BYTES} bytes, so not a configuration file"),
        (b"a: 1\nb: \xff\n", "not UTF-8 text"),
    ],
)
def test_unreadable_files(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(data)
    line = ":2" if b"\n" in data else ""
    with pytest.raises(ConfigError) as error:
        read_yaml(path)
    assert str(error.value) == f"{path}{line}: {expected}"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file$"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory$"):
        read_yaml(tmp_path)


def test_byte_order_mark_and_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert plain(read_yaml(path)) == {"a": 1}
    path.write_text("# nothing\n")
    assert plain(read_yaml(path)) == {}


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["1e-3", "off", "true", "<<", "~", "0o7", "1:30", "=", "${A}", "2024-01-01"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
@example("\x85")
@example({"a\u2028 b": " \n x\r\n"})
def test_what_is_written_reads_back(value: object) -> None:
    assert plain(parse_value(to_yaml(value), "a.yaml")) == value
