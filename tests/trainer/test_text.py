"""Settings as text: repeated keys are errors, paths are unambiguous, and numbers have bounds."""

import re
from itertools import product
from pathlib import Path

import pytest
from pydantic import BaseModel

from cache_schema.errors import UsageError
from trainer import predict, run, train
from trainer.look import __main__ as look_command
from trainer.plan import __main__ as plan_command
from trainer.plan.costs import read_costs
from trainer.plan.graph import read_plan
from trainer.settings.keyvalue import read_yaml, split_files
from trainer.settings.layers import load, shown
from trainer.settings.settings import Settings
from trainer.tables import __main__ as tables_command
from trainer.tables.settings import TableSettings, table_settings

WORDS = ["stage=bbox", "cache=c", "out=o"]


def plan_of(folder: Path, text: str, *words: str):
    (folder / "plan.yaml").write_text(text)
    return read_plan(folder / "plan.yaml", Path("c"), Path("o"), words)


def settings_of(node) -> Settings:
    return load(node.words, must_exist=False)


# nothing is lost


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\nb: 2\na: 3", 3, "a"),
        ("train:\n  lr: 1\n  epochs: 2\n  lr: 1", 4, "lr"),
        ("train: {lr: 1,\n lr: 2}", 2, "lr"),
        ("runs:\n- {stage: bbox, folds: [0], folds: [1]}", 2, "folds"),
        ("runs:\n- stage: bbox\n  set:\n    train.lr: 1\n    'train.lr': 2", 5, "train.lr"),
        ('{"bbox": 1, "vertebrae": 2, "bbox": 3}', 1, "bbox"),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2}", 2, "<<"),
        ("stages:\n  bbox: {data: {size: 64}}\n  bbox: {data: {size: 32}}", 3, "bbox"),
    ],
)
def test_a_key_that_would_take_another_one_s_place_is_named_with_its_line(tmp_path, text, line, key):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        read_yaml(tmp_path / "file.yaml")
    said = str(error.value)
    assert (
        said.startswith(f"{tmp_path / 'file.yaml'}: not valid YAML at line {line} (")
        and key in said
        and "\n" not in said
    )


def test_so_it_is_in_settings_plans_and_costs(tmp_path):
    for name, text in {"s.yaml": "data: {size: 64, size: 32}", "c.yaml": "bbox: 1\nbbox: 2"}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=r"s.yaml: not valid YAML at line 1 \(size is given twice"):
        load([*WORDS, f"config={tmp_path / 's.yaml'}"], must_exist=False)
    with pytest.raises(
        UsageError, match=r"plan.yaml: not valid YAML at line 2 \(runs is given twice, in line 1 and in line 2\)"
    ):
        plan_of(tmp_path, "runs: [{stage: bbox}]\nruns: [{stage: vertebrae}]")
    with pytest.raises(UsageError, match=r"c.yaml: not valid YAML at line 2 \(bbox is given twice"):
        read_costs(plan_of(tmp_path, "runs: [{stage: bbox}]"), tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"data: {size: 64}\n---\ntrain: {lr: 1}\n", "not valid YAML at line 2 (but found another document)"),
        (b"data:\n\tsize: 64", "not valid YAML at line 2"),
        (b"data: {size: *a}", "not valid YAML at line 1"),
        (b"data: &a {size: *a}", "not valid YAML at line 1"),
        (b"data: " + b"[" * 1500, "nested too deeply"),
        (b"data: {size: \x00}", "not valid YAML at line 1"),
        (b"- data", "does not hold settings"),
        (b"", "does not hold settings"),
        (b"data: {size: [64, 32]}", "data.size=['64', '32'] does not fit"),
        (b"data: [size]", "data is a section"),
        (b"data:", "data is a section"),
    ],
)
def test_a_file_that_is_not_one_mapping_of_settings_is_one_line(tmp_path, data, said):
    (tmp_path / "own.yaml").write_bytes(data)
    with pytest.raises(UsageError) as error:
        load([*WORDS, f"config={tmp_path / 'own.yaml'}"], must_exist=False)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_and_an_alias_lose_nothing(tmp_path):
    (tmp_path / "own.yaml").write_bytes(b"\xef\xbb\xbfdata: {size: &side 64, eval_stride: *side}")
    settings = load([*WORDS, f"config={tmp_path / 'own.yaml'}"], must_exist=False)
    assert (settings.data.size, settings.data.eval_stride) == (64, 64)


@pytest.mark.parametrize(
    ("words", "both"),
    [
        (["fold=0", "fold=1"], ("fold=0", "fold=1")),
        (["fold=1", "--fold=1"], ("fold=1", "fold=1")),
        (["train.lr=1", "data.size=64", "train.lr=2"], ("train.lr=1", "train.lr=2")),
        (["micro_batch=2", "train.micro_batch=4"], ("micro_batch=2", "train.micro_batch=4")),
        (["train.micro_batch=4", "micro_batch=4"], ("micro_batch=4", "train.micro_batch=4")),
        (["config=a", "config=b"], ("config=a", "config=b")),
        (["out=p"], ("out=o", "out=p")),
    ],
)
def test_a_setting_that_is_given_twice_is_named_both_times(words, both):
    with pytest.raises(UsageError, match="is given twice") as error:
        load([*WORDS, *words], must_exist=False)
    assert all(each in str(error.value) for each in both)


def test_a_section_and_a_value_of_one_name_are_not_both_taken():
    for words in (["boxes.x=1", "boxes=cache"], ["boxes=cache", "boxes.x=1"], ["config.x=1"], ["variant.x=1"]):
        with pytest.raises(UsageError):
            load([*WORDS, *words], must_exist=False)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (run.main, "stage=bbox show=true show=false"),
        (plan_command.main, "p.yaml cache=c out=o dry_run=true dry_run=false"),
        (plan_command.main, "p.yaml cache=c cache=d out=o"),
        (tables_command.main, "runs cache=c cache=d"),
        (predict.main, "source=a models=b out=c out=d"),
        (look_command.main, "tables=a tables=b"),
    ],
)
def test_every_command_says_so(main, words, capsys):
    assert main(words.split()) == 2
    assert re.fullmatch(r"error: \w+ is given twice, as .*\n", capsys.readouterr().err)


def test_the_python_call_says_so_too():
    with pytest.raises(UsageError, match="epochs is given twice"):
        train(stage="bbox", cache="c", out="o", train={"epochs": 2}, **{"train.epochs": 3})


def test_the_command_line_counts_more_than_a_plan_under_either_name(tmp_path):
    text = "runs: [{stage: bbox, set: {micro_batch: 2, train.lr: 0.5}}]"
    (node,) = plan_of(tmp_path, text, "train.micro_batch=4", "train.lr=0.25").runs
    assert (settings_of(node).train.micro_batch, settings_of(node).train.lr) == (4, 0.25)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runs: [{stage: bbox, seeds: [1, 2], set: {seed: 3}}]", "seed is given twice"),
        ("runs: [{stage: bbox, folds: [1], set: {fold: 3}}]", "fold is given twice"),
        ("runs: [{stage: bbox, variant: 01B, set: {variant: 01B}}]", "variant is given twice"),
        ("runs: [{stage: bbox, set: {micro_batch: 1, train.micro_batch: 2}}]", "train.micro_batch is given twice"),
        ("config: own.yaml\nruns: [{stage: bbox}]", "own.yaml: seed= is chosen by the plan"),
    ],
)
def test_what_a_plan_would_not_use_is_refused(tmp_path, text, said):
    (tmp_path / "own.yaml").write_text("seed: 5")
    with pytest.raises(UsageError, match=said):
        plan_of(tmp_path, text)


# paths


def test_a_name_with_commas_is_one_file_where_it_is_there(tmp_path):
    for name in ("a", "b.yaml", "a,b.yaml", "c, d.yaml"):
        (tmp_path / name).write_text("")
    for text, names in {
        "a,b.yaml": ["a,b.yaml"],
        "a,b.yaml,a": ["a,b.yaml", "a"],
        "b.yaml, a": ["b.yaml", "a"],
        "a,c, d.yaml,none": ["a", "c, d.yaml", "none"],
    }.items():
        assert split_files(text, tmp_path) == [tmp_path / name for name in names], text


def test_settings_files_with_commas_reach_a_run_and_a_plan_s_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "of, mine = ä"
    folder.mkdir()
    (folder / "a,b.yaml").write_text("data: {size: 64}")
    (folder / "c.yaml").write_text("train: {lr: 0.5}")
    assert load([*WORDS, f"config={folder / 'a,b.yaml'},{folder / 'c.yaml'}"], must_exist=False).data.size == 64
    words = f"config={folder / 'c.yaml'}"
    (node,) = plan_of(folder, "config: 'a,b.yaml'\nruns: [{stage: bbox}]", words).runs
    assert (settings_of(node).data.size, settings_of(node).train.lr) == (64, 0.5)


@pytest.mark.parametrize("name", ["a,b", "a b", "a=b", "ä", "-x", "~x", "a#b: c", "%s{}", "a'b\"c"])
def test_a_place_of_any_name_is_that_place(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load(["stage=vertebrae", f"cache={name}", f"out={name}/o", f"boxes={name}/b"], must_exist=False)
    assert (settings.cache, settings.out, settings.boxes) == (Path(name), Path(name) / "o", Path(name) / "b")
    plan = tmp_path / name / "plan.yaml"
    plan.parent.mkdir()
    plan.write_text("config: own.yaml\nruns: [{stage: bbox}]")
    (plan.parent / "own.yaml").write_text("data: {size: 64}")
    (node,) = read_plan(plan, Path(name), Path(name) / "o").runs
    assert settings_of(node).data.size == 64 and settings_of(node).cache == Path(name)


def test_home_is_meant_by_a_tilde_in_words_and_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("{cache: ~/c, model: {weights_file: ~/w}}")
    settings = load(["stage=bbox", "out=~/o", "config=~/own.yaml"], must_exist=False)
    assert (settings.out, settings.cache) == (tmp_path / "o", tmp_path / "c")
    assert settings.model.weights_file == tmp_path / "w"


def test_a_file_s_own_paths_are_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    folder = tmp_path / "settings"
    folder.mkdir()
    (folder / "own.yaml").write_text(
        f"{{cache: ../c, boxes: cache, model: {{weights_file: w}}, stages: {{bbox: {{out: {tmp_path}/o}}}}}}"
    )
    settings = load(["stage=bbox", f"config={folder / 'own.yaml'}"], must_exist=False)
    assert settings.cache.resolve() == tmp_path / "c" and settings.boxes == Path("cache")
    assert (settings.out, settings.model.weights_file) == (tmp_path / "o", folder / "w")
    assert load([*WORDS, "model.weights_file=w"], must_exist=False).model.weights_file == Path("w"), "a word's are not"


def test_a_plan_s_own_paths_are_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "more").mkdir()
    (tmp_path / "own.yaml").write_text("data: {size: 64}")
    (tmp_path / "more/own.yaml").write_text("{data: {size: 128}, model: {weights_file: deep}}")
    text = "config: own.yaml\nruns:\n- {stage: bbox, set: {model.weights_file: w}}\n"
    text += "- {stage: bbox, seeds: [2], set: {config: more/own.yaml}}"
    first, second = (settings_of(node) for node in plan_of(tmp_path, text).runs)
    assert (first.data.size, first.model.weights_file) == (64, tmp_path / "w")
    assert (second.data.size, second.model.weights_file) == (128, tmp_path / "more/deep")
    (node,) = plan_of(tmp_path, "runs: [{stage: bbox, set: {model.weights_file: w}}]", "model.weights_file=x").runs
    assert settings_of(node).model.weights_file == Path("x")
    with pytest.raises(UsageError, match="s3://b/w: is an address"):
        plan_of(tmp_path, "runs: [{stage: bbox, set: {model.weights_file: 's3://b/w'}}]")


def test_settings_that_were_shown_mean_the_same_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = shown(["stage=vertebrae", "variant=04A", "cache=c", "boxes=cache", "model.weights_file=w"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/shown.yaml").write_text(text)
    again = load(["stage=vertebrae", "out=o", f"config={tmp_path / 'elsewhere/shown.yaml'}"], must_exist=False)
    assert (again.cache, again.model.weights_file) == (tmp_path / "c", tmp_path / "w")


# numbers


def numbers(model: type[BaseModel], prefix: str = ""):
    """Every setting that may be a number, by its name."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from numbers(kind, f"{prefix}{name}.")
        elif "int" in repr(kind) or "float" in repr(kind):
            yield prefix + name


HUGE = ["nan", "inf", "-inf", "1e309", "-1", "1e12", "9" * 30, "9" * 5000]
NUMBERS = sorted(numbers(Settings))


@pytest.mark.parametrize(("name", "value"), product(NUMBERS, HUGE), ids=str)
def test_a_number_that_can_only_be_a_mistake_is_one_line(name, value):
    with pytest.raises(UsageError) as error:
        load([*WORDS, f"{name}={value}"], must_exist=False)
    said = str(error.value)
    assert said.startswith(f"{name}=") and "does not fit; expected" in said and len(said) < 400


def test_all_numbers_are_among_them():
    assert len(NUMBERS) > 30 and {"seed", "train.lr", "data.ram_gb", "augment.rotate", "train.micro_batch"} <= {
        *NUMBERS
    }


@pytest.mark.parametrize(("name", "value"), product(sorted(numbers(TableSettings)), HUGE), ids=str)
def test_so_it_is_with_the_tables_thresholds(name, value):
    with pytest.raises(UsageError, match=f"tables.{name}=.* does not fit"):
        table_settings({name: value})


@pytest.mark.parametrize("value", HUGE)
def test_so_it_is_with_a_plan_s_own(tmp_path, value):
    for text in (f"jobs: {value}\nruns: [{{stage: bbox}}]", f"runs: [{{stage: bbox, processes: {value}}}]"):
        with pytest.raises(UsageError, match="does not fit; expected"):
            plan_of(tmp_path, text)
    with pytest.raises(UsageError, match="is not a cost; expected seconds from 0 to"):
        read_costs(plan_of(tmp_path, f"costs: {{bbox: {value}}}\nruns: [{{stage: bbox}}]"))


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("{stage: bbox, folds: []}", r"run 1: folds: \[\] makes no run; name some, or remove the row"),
        ("{stage: bbox, seeds: []}", r"run 1: seeds: \[\] makes no run"),
        ('{stage: bbox, variant: ""}', "run 1: variant: is empty; name one, or remove the key"),
        ("{stage: bbox, folds: [1, 01]}", "the plan has bbox-01B/fold1-seed1 twice"),
        ("{stage: bbox, seeds: [007, 7]}", "the plan has bbox-01B/fold0-seed7 twice"),
    ],
)
def test_what_makes_no_run_or_the_same_one_twice_is_told(row, line, tmp_path):
    with pytest.raises(UsageError, match=line):
        plan_of(tmp_path, f"runs: [{row}]")


@pytest.mark.parametrize("key", ["items", "slices", "tile", "epoch"])
@pytest.mark.parametrize("value", HUGE)
def test_so_it_is_with_a_look_s(key, value, tiny_cache, tmp_path, capsys):
    words = ["stage=bbox", f"cache={tiny_cache}", f"out={tmp_path / 'o'}", f"{key}={value}"]
    assert look_command.main(words) == 2
    assert re.match(
        rf"error: {key}=.* does not fit; expected a whole number from \d+ to \d+\n", capsys.readouterr().err
    )
