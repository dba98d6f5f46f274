"""The law moved to a user's points: finds what was put in, refuses what cannot be, and says when
slopes do not pay.
"""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import ConfigError
from moesim.model import DensePart, MoELayer
from moesim.quality import (
    PUBLISHED,
    estimate_loss,
    load_law,
    loss_mid,
    read_points,
    refit,
    save_law,
)

HEADER = ["num_experts", "top_k", "active_params", "train_tokens", "granularity", "loss"]
DENSE = DensePart(
    num_layers=16,
    num_moe_layers=16,
    hidden_size=1024,
    vocab_size=32000,
    attention_params_per_layer=4 * 1024**2,
    kv_bytes_per_token_per_layer=4096.0,
    dense_intermediate_size=2048,
)
LAYER = MoELayer(hidden_size=1024, expert_intermediate_size=512, num_experts=64, top_k=4)
OFFSET, SLOPES = 0.08, (0.012, -0.006, 0.004, 0.003)
CENTRE = (16.0, 3e8, 1e10, 4.0)


def points_file(path, *, noise=0.0005, slopes=SLOPES, seed=0, number=24):
    """Losses of the published law with a correction of ours and noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        experts, top_k = int(rng.choice([8, 16, 64, 256])), int(rng.choice([1, 2, 4]))
        sizes = (
            experts / top_k,
            10 ** rng.uniform(8, 9),
            10 ** rng.uniform(9.5, 10.5),
            float(rng.choice([1, 2, 8])),
        )
        shift = OFFSET + sum(
            s * math.log(x / c) for s, x, c in zip(slopes, sizes, CENTRE, strict=True)
        )
        loss = PUBLISHED.mid(*sizes) * math.exp(shift + noise * rng.normal())
        rows.append([experts, top_k, sizes[1], sizes[2], sizes[3], loss])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


def test_finds_offset_and_slopes_that_were_put_in(tmp_path):
    found = refit(read_points(points_file(tmp_path / "mine.csv")))
    assert found.law.slopes == pytest.approx(SLOPES, abs=0.002)
    assert found.left_out_rms < 0.2 * found.offset_rms < 0.2 * found.published_rms
    assert found.residual_rms <= found.left_out_rms
    for row in found.rows:
        assert row["fitted"] + row["residual"] == pytest.approx(row["loss"])
    low, mid, high = found.law.interval(16.0, 3e8, 1e10, 2.0)
    truth = PUBLISHED.mid(16.0, 3e8, 1e10, 2.0) * math.exp(OFFSET + SLOPES[3] * math.log(2.0 / 4.0))
    assert low < truth < high
    assert mid == pytest.approx(truth, abs=0.01)


def test_where_slopes_do_not_pay_the_published_ones_stay(tmp_path):
    found = refit(
        read_points(
            points_file(tmp_path / "noisy.csv", noise=0.01, slopes=(0.0,) * 4, number=6, seed=1)
        )
    )
    assert found.law.slopes == (0.0,) * 4
    assert found.left_out_rms == found.offset_rms < found.published_rms
    assert found.law.base_nats == pytest.approx(1.645 * found.left_out_rms)


def test_what_the_points_do_not_vary_keeps_the_published_slope(tmp_path):
    path = tmp_path / "few.csv"
    path.write_text(
        ",".join(HEADER)
        + "\n"
        + "".join(
            f"{e},1,3e8,1e10,1,{PUBLISHED.mid(e / 1.0, 3e8, 1e10, 1.0) * e**0.01}\n"
            for e in (2, 4, 8, 16, 32, 64)
        )
    )
    law = refit(read_points(path)).law
    assert law.slopes[0] == pytest.approx(0.01, abs=0.001)
    assert law.slopes[1:] == pytest.approx((0.0,) * 3, abs=1e-9)


def test_a_user_s_interval_of_granularity_begins_where_they_measured(tmp_path):
    path = tmp_path / "fine.csv"
    path.write_text(
        ",".join(HEADER)
        + "\n"
        + "".join(
            f"{e},1,3e8,1e10,8,{1.02 * PUBLISHED.mid(e / 1.0, 3e8, 1e10, 8.0)}\n"
            for e in (2, 4, 8, 16)
        )
    )
    law = load_law(path)
    low, mid, high = law.interval(8.0, 3e8, 1e10, 8.0)
    assert mid == pytest.approx(1.02 * PUBLISHED.mid(8.0, 3e8, 1e10, 8.0))
    assert high - low == pytest.approx(2 * law.base_nats)
    low, _, high = law.interval(8.0, 3e8, 1e10, 1.0)
    assert high - low > 4 * law.base_nats


def test_weights_count(tmp_path):
    path = points_file(tmp_path / "w.csv", slopes=(0.0,) * 4, noise=0.0, number=8)
    rows = list(csv.reader(path.open()))
    rows[1][5] = str(float(rows[1][5]) * 1.1)
    rows = [
        [*rows[0], "weight", "note"],
        [*rows[1], "0.001", "suspect"],
        *([*row, "", "fine"] for row in rows[2:]),
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert refit(read_points(path)).law.offset == pytest.approx(OFFSET, abs=1e-4)


def test_an_estimate_uses_the_law_and_names_it(tmp_path):
    law = load_law(points_file(tmp_path / "mine.csv"))
    plain, moved = (estimate_loss(LAYER, DENSE, train_tokens=1e10, law=x) for x in (PUBLISHED, law))
    assert moved.loss > plain.loss + 0.1
    assert (plain.row()["loss_law"], moved.row()["loss_law"]) == ("published", "mine.csv")
    sizes = (
        np.array([16.0]),
        np.array([float(DENSE.active_params(LAYER))]),
        np.array([1e10]),
        np.array([4.0]),
    )
    assert loss_mid(*sizes, law=law) == pytest.approx(moved.loss)
    few = estimate_loss(replace(LAYER, num_experts=4, top_k=4), DENSE, train_tokens=1e10, law=law)
    assert few.extrapolated
    assert any(text.startswith("E_eff 1 outside") for text in few.outside)


def test_a_law_comes_back_from_its_file_to_the_digit(tmp_path):
    law = load_law(points_file(tmp_path / 'my "points".csv'))
    path = save_law(tmp_path / "new" / "law.toml", law)
    assert load_law(path) == law
    assert hash(load_law(path)) == hash(law)
    (tmp_path / "no").write_text("")
    with pytest.raises(
        ConfigError, match=r"no/folder/law.toml: cannot write this file: Not a directory"
    ):
        save_law(tmp_path / "no" / "folder" / "law.toml", law)


GOOD = "8,1,1e8,1e10,1,3.1\n16,1,1e8,1e10,1,3.0\n32,1,1e8,1e10,1,2.9\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ",".join(HEADER[:-1]) + "\n" + GOOD,
            "p.csv: expected columns num_experts, top_k, active_params, train_tokens, "
            "granularity, loss, without loss",
        ),
        (
            "",
            "p.csv: expected columns num_experts, top_k, active_params, train_tokens, "
            "granularity, loss, without num_experts, top_k, active_params, train_tokens, "
            "granularity, loss",
        ),
        (
            ",".join(HEADER) + "\n" + GOOD + "8,16,1e8,1e10,1,3\n",
            "p.csv:5: top_k: expected at most num_experts = 8, got '16'",
        ),
        (
            ",".join(HEADER) + "\n" + GOOD + "8.5,1,1e8,1e10,1,3\n",
            "p.csv:5: num_experts: expected an integer >= 1, got '8.5'",
        ),
        (
            ",".join(HEADER) + "\n" + GOOD + "8,1,1e8,1e10,1,nan\n",
            "p.csv:5: loss: expected a number > 0, got 'nan'",
        ),
        (
            ",".join(HEADER) + "\n8,1,1e8,1e10,1,inf\n" + GOOD,
            "p.csv:2: loss: expected a number > 0, got 'inf'",
        ),
        (
            ",".join(HEADER) + "\n" + GOOD + "8,1,1e8\n",
            "p.csv:5: train_tokens: expected a number > 0, got None",
        ),
        (
            ",".join(HEADER) + "\n" + GOOD + "8,1,-1,1e10,1,3\n",
            "p.csv:5: active_params: expected a number > 0, got '-1'",
        ),
        (
            ",".join([*HEADER, "weight"]) + "\n8,1,1e8,1e10,1,3,x\n" + GOOD,
            "p.csv:2: weight: expected a number > 0, got 'x'",
        ),
        (",".join(HEADER) + "\n\n" + GOOD[:38], "p.csv: expected at least 3 points, got 2"),
    ],
)
def test_points_that_cannot_be_are_named_by_line(tmp_path, text, message):
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_points(path)
    assert str(caught.value) == message


def test_files_that_are_none(tmp_path):
    with pytest.raises(
        ConfigError, match=r"none.csv: cannot read this file: No such file or directory"
    ):
        load_law(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"b.csv: not valid CSV: it is not UTF-8 text"):
        load_law(tmp_path / "b.csv")
    with pytest.raises(
        ConfigError, match=r"law.json: expected measured points as .csv, or a fitted law as .toml"
    ):
        load_law(tmp_path / "law.json")
    (tmp_path / "law.toml").write_text('name = "x"\n')
    with pytest.raises(ConfigError, match=r"law.toml: corrects: expected a value, got nothing"):
        load_law(tmp_path / "law.toml")


def test_a_spreadsheet_s_byte_order_mark_and_spaces_do_no_harm(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_text("\ufeff" + ", ".join(HEADER) + "\n" + GOOD + "\n", encoding="utf-8")
    assert read_points(path).line_P == (2, 3, 4)
