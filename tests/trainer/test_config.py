import re
import subprocess
import sys
from pathlib import Path

import pytest

from cache_schema.errors import UsageError
from trainer.optimiser import learning_rate
from trainer.run import main
from trainer.runs.identity import identity_settings, recorded_config
from trainer.settings.layers import load
from trainer.settings.settings import Settings
from trainer.settings.stage_registry import stage_file, stage_names
from trainer.tuning.micro_batch import configured, split_batch

ROOT = Path(__file__).resolve().parents[2]


def words(stage, *more):
    needs = {
        "slice_fracture": ["pseudo=p", "boxes=b"],
        "study_fracture": ["backbone=r", "boxes=b"],
        "vertebrae": ["boxes=b"],
    }
    own = {word.partition("=")[0] for word in more}
    usual = [f"stage={stage}", "cache=c", "out=o", *needs.get(stage, [])]
    return [*(word for word in usual if word.partition("=")[0] not in own), *more]


def test_all_eight_variants_carry_the_numbers_of_the_reference():
    expected = {
        # stage, variant: timm model, epochs, items per step, per pass, learning rate, weight decay, crop
        ("bbox", "01B"): ("efficientnet_b1.ft_in1k", 15, 32, 32, 2e-4, 0, False),
        ("vertebrae", "02G"): ("resnest50d.in1k", 3, 16, 2, 3e-4, 5e-4, False),
        ("vertebrae", "04A"): ("resnest50d.in1k", 3, 16, 2, 3e-4, 5e-4, True),
        ("vertebrae", "04F"): ("efficientnetv2_rw_m.agc_in1k", 2, 16, 1, 3e-4, 5e-4, True),
        ("slice_fracture", "04F"): ("resnest50d.in1k", 3, 48, 3, 3e-4, 5e-4, True),
        ("slice_fracture", "04G"): ("seresnext50_32x4d.racm_in1k", 3, 48, 3, 3e-4, 5e-4, True),
        ("study_fracture", "04F"): ("resnest50d.in1k", 3, 8, 8, 1e-3, 5e-4, True),
        ("study_fracture", "04G"): ("seresnext50_32x4d.racm_in1k", 3, 8, 8, 1e-3, 5e-4, True),
    }
    assert {(stage, variant) for stage in stage_names() for variant in stage_file(stage)[1]} == set(expected)
    for (stage, variant), numbers in expected.items():
        s = load(words(stage, f"variant={variant}"), must_exist=False)
        found = (
            s.model.name,
            s.train.epochs,
            s.train.batch,
            s.train.micro_batch,
            s.train.lr,
            s.train.weight_decay,
            s.data.crop,
        )
        assert found == numbers, (stage, variant)
        assert s.model.pretrained and s.data.size == 512 and s.data.frames == 96
    thinned = load(words("vertebrae", "variant=04F"), must_exist=False)
    assert (thinned.data.thin, thinned.data.stride) == (0.6, "adaptive")


def test_later_layers_win_and_strings_are_typed_late(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 7, lr: 1e-5}\nstages:\n  bbox:\n    train: {epochs: 9}\n")
    s = load(words("bbox", f"config={file}", "train.lr=2e-5", "variant=01B"), must_exist=False)
    assert (s.train.epochs, s.train.lr, s.train.weight_decay) == (9, 2e-5, 0)
    assert load(words("vertebrae", f"config={file}"), must_exist=False).train.epochs == 7


def test_micro_batch_on_the_command_line_keeps_the_effective_batch():
    s = load(words("bbox", "micro_batch=8"), must_exist=False)
    assert (s.train.micro_batch, s.train.batch) == (8, 32)
    assert load(words("bbox", "micro_batch=auto"), must_exist=False).train.micro_batch == "auto"
    assert configured(load(words("vertebrae", "variant=04F", "micro_batch=auto"), must_exist=False)) == 1
    with pytest.raises(UsageError, match=r"train.micro_batch='many' does not fit"):
        load(words("bbox", "micro_batch=many"), must_exist=False)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["stage=bbx", "cache=c", "out=o"], "no stage bbx; did you mean bbox?"),
        (words("bbox", "variant=01C"), "no variant 01C of stage bbox; did you mean 01B?"),
        (words("bbox", "train.epoch=3"), "no setting train.epoch; did you mean train.epochs?"),
        (words("bbox", "train.epochs=three"), "train.epochs='three' does not fit"),
        (words("bbox", "train=3"), "train is a section"),
        (words("bbox", "stage.x=3"), "stage is a value"),
        (["stage=bbox", "out=o"], "no cache given"),
        (
            ["stage=vertebrae", "variant=04A", "cache=c", "out=o"],
            "vertebrae 04A works on study boxes and was given none",
        ),
        (["stage=slice_fracture", "cache=c", "out=o", "boxes=b"], "trains on pseudo labels and was given none"),
        (
            ["stage=study_fracture", "cache=c", "out=o", "boxes=b"],
            "freezes a slice_fracture backbone and was given none",
        ),
        (words("bbox", "config=nowhere.yaml"), "nowhere.yaml: no such file; expected a YAML file of settings"),
        (words("bbox", f"config={ROOT}"), "cannot be read (Is a directory); expected a YAML file of settings"),
        (words("bbox", f"out={'a' * 300}"), "cannot be a folder (File name too long)"),
        (words("bbox", "micro_batch=2", "train=4"), "train is a section; expected train.<setting>=value"),
        (words("bbox"), "cache=c: no such path"),
        (words("bbox", "cache=.", "model.weights_file=nowhere.pt"), "model.weights_file=nowhere.pt: no such path"),
        (
            words("bbox", f"out={__file__}/runs"),
            f"out={__file__}: is not a folder; expected a folder, or a path that does not exist yet",
        ),
        (words("bbox", "fold=x"), "fold='x' does not fit; expected a valid integer or 'all'"),
    ],
)
def test_a_wrong_setting_is_one_line_with_what_is_right(given, line):
    with pytest.raises(UsageError) as error:
        load(given)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_link_to_nowhere_is_no_place_for_runs(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"out=.*link: is not a folder"):
        load(words("bbox", f"out={tmp_path / 'link'}"))


def test_a_settings_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "slice.dcm").write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match=r"slice.dcm: is not UTF-8 text; expected a YAML file of settings"):
        load(words("bbox", f"config={tmp_path / 'slice.dcm'}"))


def test_what_a_run_wrote_may_be_damaged(tmp_path):
    for content in ("[1]", "a: [", "lr: 1"):
        (tmp_path / "config.yaml").write_text(content)
        with pytest.raises(UsageError, match=r"config.yaml: does not match the digest in its last line"):
            recorded_config(tmp_path)


def test_skipping_what_cannot_be_read_is_another_run(tmp_path):
    stop, skip = (load(words("bbox", f"data.on_error={way}"), must_exist=False) for way in ("stop", "skip"))
    assert identity_settings(stop) != identity_settings(skip)


def test_the_command_answers_in_one_line_and_with_status_2():
    done = subprocess.run(
        [sys.executable, ROOT / "trainer/run.py", "stage=bbx"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: no stage bbx; did you mean bbox?\n"


def test_the_learning_rate_rises_and_falls_as_in_the_reference():
    rate = [learning_rate(1.0, 0.1, samples, 1000) for samples in range(0, 1001, 50)]
    assert (
        rate[0] == 0
        and rate[1] == 0.5
        and rate[2] == 1.0
        and rate[11] == pytest.approx(0.5)
        and rate[-1] == pytest.approx(0)
    )


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"),
    [
        (16, 2, 1, (2, 8)),
        (16, 2, 4, (2, 2)),
        (48, 3, 32, None),
        (48, 3, 8, (3, 2)),
        (8, 8, 2, (4, 1)),
        (10, 4, 1, (2, 5)),
    ],
)
def test_the_effective_batch_is_shared_by_processes_and_passes(batch, micro, processes, expected):
    if expected is None:
        with pytest.raises(UsageError):
            split_batch(batch, micro, processes)
    else:
        assert split_batch(batch, micro, processes) == expected


def test_the_documented_switches_have_the_documented_defaults():
    text = (ROOT / "docs/switches.md").read_text()
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| `([^`]+)` \|", text, re.MULTILINE)
    assert len(rows) == 17
    for section, key, default in rows:
        field = Settings.model_fields[section].annotation.model_fields[key]
        assert str(field.default).lower() == default.lower(), f"{section}.{key}"


def test_all_settings_of_a_run_are_shown_and_can_be_given_back(capsys, tmp_path):
    assert main(["stage=vertebrae", "variant=04F", "show=true", "data.size=320"]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    again = load(["stage=vertebrae", f"config={tmp_path / 'shown.yaml'}"], must_exist=False)
    assert again.data.size == 320 and again.train.epochs == 2 and again.boxes == tmp_path / "TABLE"
    assert (again.pseudo, again.backbone) == (None, None)
    (tmp_path / "mine.yaml").write_text("{cache: MINE, boxes: cache}")
    assert main(["stage=vertebrae", "variant=04F", "--show=true", f"config={tmp_path / 'mine.yaml'}"]) == 0
    assert (
        f"cache: {tmp_path / 'MINE'}\nout: RUNS\n" in (shown := capsys.readouterr().out) and "boxes: cache\n" in shown
    )
    assert main(["stage=vertebrae", "variant=04X", "show=true"]) == 2
    assert capsys.readouterr().err == "error: no variant 04X of stage vertebrae; did you mean 04F?\n"


def test_a_variant_that_is_a_list_is_one_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("variant: [01B]")
    with pytest.raises(UsageError, match="variant is one word"):
        load(["stage=bbox", "cache=c", "out=o", f"config={tmp_path / 'mine.yaml'}"])
