"""Each distinct triplet goes through the CNN once, and nobody can tell from the predictions."""

import numpy as np
import pandas as pd
import pytest
import torch

from trainer.data.items import Item, windows
from trainer.data.order import Evaluation
from trainer.inference import distinct, predict
from trainer.runs.inputs import Inputs
from trainer.session import Session
from trainer.settings.layers import load


def session_for(stage, tiny_cache, tiny_settings, true_boxes, out, *more):
    words = [f"stage={stage}", f"cache={tiny_cache}", f"out={out}", f"config={tiny_settings}", f"boxes={true_boxes}"]
    settings = load([*words, "mode=predict", "split=all", *more])
    return Session(settings, Inputs(settings), "")


def plainly(session, model):
    """Window by window, all triplets of each through the CNN."""
    ids = session.inputs.eval_ids()
    items, batch = session.stage.eval_items(ids), session.settings.train.eval_batch
    schedule, rows = Evaluation(items, batch), []
    with torch.no_grad():
        for found in session.loader(schedule, batch, session.no_augmentation(), ids, limit=schedule.steps * batch):
            rows.append(session.stage.rows(session.stage.forward(model.eval(), found), found))
    return session.stage.table(pd.concat(rows, ignore_index=True))


@pytest.mark.parametrize(
    ("stage", "more", "factor"),
    [
        ("vertebrae", ["variant=04A", "data.eval_stride=6"], "24 windows, 60 distinct triplets instead of 96: 1.60"),
        ("slice_fracture", ["data.eval_stride=6", "data.loader=plain"], "1.60 times fewer"),
        (
            "vertebrae",
            ["data.frames=36", "model.positional=relative"],
            "60 distinct triplets instead of 72",
        ),  # longer than the studies
        ("slice_fracture", ["data.frames=27", "data.eval_stride=2"], "114 distinct triplets instead of 162"),
    ],
)
def test_predictions_are_those_of_every_window_by_itself(
    stage, more, factor, tiny_cache, tiny_settings, true_boxes, tmp_path, capsys
):
    session = session_for(stage, tiny_cache, tiny_settings, true_boxes, tmp_path, *more)
    model, passes = session.stage.model(), []
    model.backbone.register_forward_hook(lambda module, given, made: passes.append(len(made)))
    table = predict(session, model)
    assert factor in capsys.readouterr().out
    largest = session.settings.train.eval_batch * session.settings.data.frames // 3
    assert max(passes) <= largest
    expected = plainly(session, model)
    assert table["id"].tolist() == expected["id"].tolist() and table["z_index"].tolist() == expected["z_index"].tolist()
    found, expected = (each.drop(columns=["id", "z_index"]).to_numpy(float) for each in (table, expected))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_windows_share_triplets_where_their_starts_are_equal_modulo_three():
    def factor(slices):
        found = windows([("a", slices)], 96, 16)
        return sum(item.frames // 3 for item in found) / len(distinct(found))

    assert factor(352) == pytest.approx(1.7, abs=0.05)
    assert all(1.5 <= round(factor(slices), 1) <= 1.9 for slices in range(200, 601))


def test_every_triplet_of_every_window_is_there_but_those_beyond_the_end():
    found = distinct([Item(0, "a", 0, 12, 10), Item(1, "a", 1, 12, 10)])
    assert [item.start for item in found] == [0, 1, 3, 4, 6, 7, 9]
    assert [item.key for item in found] == list(range(7))
    assert found[-1].z_index().tolist() == [9, -1, -1]
