"""The study of reasoning and memory: its numbers, its splits, its page and its command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import helpers
import numpy as np
import pandas as pd
import pytest
import torch
from pages import open_page
from sklearn.metrics import roc_auc_score
from transformers import GPT2Config, GPT2LMHeadModel

import mechmem as mm
from mechmem.app.page import Page
from mechmem.app.source import Source
from mechmem.reports.saved import load_study
from mechmem.studies.reasoning.answers import accuracy_table, mode_table, repair_table
from mechmem.studies.reasoning.edits import ORACLE, UNLABELED
from mechmem.studies.reasoning.reading import held_out_reading
from mechmem.studies.reasoning.refits import exchange_labels, judge_edits

SIGN = {1: "toward reasoning", -1: "toward memory", 0: "none"}
WORDS = ("river stone cloud window garden silver market winter bottle copper").split()


@pytest.fixture(scope="session")
def study() -> mm.studies.ReasoningStudy:
    model = mm.load_model("lab/recall-reasoning")
    return mm.run_reasoning_study(
        model,
        task=mm.get_task("recall-reasoning", **model.card["task_options"]),
        n=384,
        alphas=(1.0, 2.0),
        scales=(0.25,),
        draws=2,
        shuffles=3,
    )


@pytest.fixture(scope="session")
def report(study, tmp_path_factory):
    return mm.write_report(study, tmp_path_factory.mktemp("reasoning"))


def study_task(model: mm.Model) -> mm.Task:
    return mm.get_task("recall-reasoning", **model.card["task_options"])


def right(seen: mm.Observations) -> list[bool]:
    """By the text alone: the completion is the answer's digits."""
    return [
        text.strip() == prompt.answer
        for text, prompt in zip(seen.completions, seen.prompts, strict=True)
    ]


def test_no_entity_is_on_two_sides_and_every_side_has_both_labels(study):
    sides = {
        name: {prompt.meta["entity"] for prompt in part} for name, part in study.splits.items()
    }
    assert sum(len(names) for names in sides.values()) == len(set().union(*sides.values()))
    for part in study.splits.values():
        assert {prompt.label for prompt in part} == {"reasoning", "memory"}


def test_directions_and_separation_agree_with_numpy_and_scikit_learn(study):
    label = {prompt.id: prompt.label for part in study.splits.values() for prompt in part}
    ids = study.states.prompts.ids
    rows = {name: [ids.index(prompt.id) for prompt in part] for name, part in study.splits.items()}
    for site in study.directions.sites:
        states = study.states[site][:, 0].double().numpy()
        train, test = states[rows["train"]], states[rows["test"]]
        is_reasoning = np.array([label[ids[k]] == "reasoning" for k in rows["train"]])
        vector = train[is_reasoning].mean(0) - train[~is_reasoning].mean(0)
        helpers.close(study.directions[site].vector.numpy(), vector, 1e-9)
        if site.stream == "resid_post":
            wanted = roc_auc_score(
                [label[ids[k]] == "reasoning" for k in rows["test"]], test @ vector
            )
            assert study.reading.separation.auroc[site].value == pytest.approx(wanted, abs=1e-9)


def test_the_site_that_is_told_about_was_chosen_on_validation_questions(study):
    validation = study.states.select(study.splits["validation"])
    tried = {}
    for direction in study.directions:
        scores = direction.project(validation[direction.site][:, 0]) if direction.norm else None
        positive = [prompt.label == "reasoning" for prompt in validation.prompts]
        tried[direction.site] = 0.5 if scores is None else roc_auc_score(positive, scores)
    assert tried[study.reading.chosen] == pytest.approx(max(tried.values()))


def test_questions_that_fitted_the_directions_cannot_be_evaluated_on(study):
    train, validation = (study.states.select(study.splits[k]) for k in ("train", "validation"))
    with pytest.raises(mm.LeakageError):
        held_out_reading(study.directions, train, validation, train, {}, 0)
    model = mm.load_model("lab/recall-reasoning")
    edit = study.trial.tested[0].setting.edit(1)
    with pytest.raises(mm.LeakageError):
        mm.evaluate(model, study.splits["train"], task=mm.get_task("recall-reasoning"), edit=edit)
    other = replace(study.splits["train"][0], id="new", text="Q: otherwise ?\nA: ", spans={})
    with pytest.raises(mm.LeakageError):
        mm.evaluate(model, mm.PromptSet([other]), task=mm.get_task("recall-reasoning"), edit=edit)


def test_accuracies_are_counted_again_from_the_completions(study):
    table = accuracy_table(study.trial)
    before = np.array(right(study.trial.before["test"]), dtype=float)
    labels = np.array([prompt.label for prompt in study.trial.before["test"].prompts])
    plain = table[table["family"] == "unedited"].set_index("label")["accuracy"]
    for label in ("reasoning", "memory"):
        assert plain[label] == pytest.approx(before[labels == label].mean())
    for item in study.trial.tested:
        for sign in item.setting.signs:
            after = np.array(right(item.after[sign]), dtype=float)
            random = np.mean([right(seen) for seen in item.random[sign]], axis=0)
            for label in ("reasoning", "memory"):
                (row,) = table[
                    (table["family"] == item.setting.family)
                    & (table["pick"] == item.pick)
                    & (table["sign"] == SIGN[sign])
                    & (table["label"] == label)
                ].to_dict("records")
                mine = labels == label
                assert row["accuracy"] == pytest.approx(after[mine].mean())
                assert row["change"] == pytest.approx((after - before)[mine].mean())
                assert row["beyond_random"] == pytest.approx((after - random)[mine].mean())
                assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]


def test_both_signs_are_shown_on_both_classes(study):
    table = accuracy_table(study.trial)
    for family in ("addition", "scaled projection"):
        for pick in (ORACLE, UNLABELED):
            mine = table[(table["family"] == family) & (table["pick"] == pick)]
            shown = set(zip(mine["sign"], mine["label"], strict=True))
            assert shown == {
                (sign, label)
                for sign in ("toward reasoning", "toward memory")
                for label in ("reasoning", "memory")
            }


def test_settings_were_chosen_on_validation_questions(study):
    shares: dict[str, dict[tuple, dict[tuple, float]]] = {}
    for row in study.trial.validation.to_dict("records"):
        if row["kind"] != "edit" or row["alpha"] == 0:
            continue
        bare = np.isnan(row["alpha"])
        place = (row["stream"], row["layer"], 0.0 if bare else abs(row["alpha"]))
        sign = 0 if bare else int(np.sign(row["alpha"]))
        cells = shares.setdefault(row["family"], {}).setdefault(place, {})
        cells[sign, row["class"]] = row["share"]
    for item in study.trial.tested:

        def value(cells, item=item):
            if item.pick == ORACLE:
                return cells[1, "reasoning"] + cells[-1, "memory"]
            return max(cells[s, "reasoning"] + cells[s, "memory"] for s in item.setting.signs)

        found = shares[item.setting.family]
        site, strength = item.setting.direction.site, np.nan_to_num(item.setting.strength)
        own = found[site.stream, site.layer, float(strength)]
        assert value(own) == pytest.approx(max(value(cells) for cells in found.values()))


def test_repaired_errors_are_counted_again_by_hand(study):
    before = study.trial.before["test"]
    was = right(before)
    table = repair_table(study.trial)
    for item in study.trial.tested:
        for sign in item.setting.signs:
            now = right(item.after[sign])
            for label in ("reasoning", "memory"):
                mine = [k for k, prompt in enumerate(before.prompts) if prompt.label == label]
                other = "memorized" if label == "reasoning" else "generalized"
                slips = [
                    k
                    for k in mine
                    if not was[k]
                    and before.prompts[k].memorized is not None
                    and before.completions[k].strip() == getattr(before.prompts[k], other)
                ]
                (row,) = table[
                    (table["family"] == item.setting.family)
                    & (table["pick"] == item.pick)
                    & (table["sign"] == SIGN[sign])
                    & (table["label"] == label)
                ].to_dict("records")
                assert row["errors"] == sum(not was[k] for k in mine)
                assert row["wrong_mode_errors"] == len(slips)
                assert row["repaired"] == sum(now[k] and not was[k] for k in mine)
                assert row["wrong_mode_repaired"] == sum(now[k] for k in slips)
                assert row["broken"] == sum(was[k] and not now[k] for k in mine)


def test_shares_of_the_two_routes_add_up(study):
    table = mode_table(study.trial)
    keys = ["family", "pick", "sign", "label"]
    sums = table.fillna({"pick": "", "sign": ""}).groupby(keys)["share"].sum()
    assert np.allclose(sums, 1.0)


def test_an_edit_that_does_nothing_is_said_to_do_nothing(study):
    before = study.trial.before["test"]
    tested = tuple(
        replace(
            item,
            after=dict.fromkeys(item.setting.signs, before),
            random=dict.fromkeys(item.setting.signs, (before, before)),
        )
        for item in study.trial.tested
    )
    idle = replace(study, trial=replace(study.trial, tested=tested))
    assert re.search(r"\+0\.0 \[-[\d.]+, \+[\d.]+\] beyond random directions", idle.answer())


def test_only_the_verdict_claims_and_every_comparison_says_what_it_was_judged_by(study):
    for text in (study.answer(), *study.notes()):
        assert not re.search(r"(\((not )?beyond|below) random", text)
    assert any("only as far as the verdict goes" in line for line in study.limits())
    judged = {"draws", "spread", "size", "control_size"}
    tables = study.tables()
    for name in ("accuracy", "modes", "validation", "turning", "turning_validation"):
        rows = tables[name]
        assert judged <= set(rows.columns), name
        if "kind" in rows:
            rows = rows[(rows["kind"] == "edit") & (rows["alpha"] != 0)]
        else:
            rows = rows[rows["family"] != "unedited"]
        assert rows[["draws", "spread"]].notna().all().all(), name
    repairs = tables["repairs"]
    assert repairs[["draws", "size", "control_size", "broken_random_spread"]].notna().all().all()
    bare = tables["summary"].iloc[-1]
    assert bare["draws, spread in points"].startswith(f"{repairs['draws'].iloc[0]}, ")


def test_the_effect_that_is_judged_is_the_gain_that_the_tables_show(study):
    table = accuracy_table(study.trial)
    for family, gains in study.verdict.effects.items():
        rows = table[(table["family"] == family) & (table["pick"] == ORACLE)]
        for label, gain in gains.items():
            (shown,) = rows[(rows["label"] == label) & (rows["sign"] == f"toward {label}")][
                "change"
            ]
            assert gain == pytest.approx(shown, abs=1e-12)
    assert study.verdict.shuffles == 3
    assert study.verdict.sentence.startswith("Too few refits")
    assert study.verdict.sentence in study.answer()
    # Three refits cannot give a p below 1/4.
    assert study.verdict.turned == []


def test_refits_are_fitted_on_exchanged_labels_and_go_through_the_same_choice(study):
    train = study.states.select(study.splits["train"])
    exchange, how = exchange_labels(study.splits["train"])
    drawn = exchange.draw(0, 1)
    labels = np.array([prompt.label == "reasoning" for prompt in drawn])
    real = np.array([prompt.label == "reasoning" for prompt in study.splits["train"]])
    assert 0.2 < (labels == real).mean() < 0.8
    model = mm.load_model("lab/recall-reasoning")
    refit = mm.difference_of_means(train.select(drawn), toward="reasoning", by="label")
    parts = {name: study.trial.before[name].prompts for name in ("validation", "test")}
    strengths = {"addition": (1.0, 2.0), "scaled projection": (0.25,)}
    found = judge_edits(
        model, refit, [], parts, study.trial.before, study_task(model), strengths, draws=1, seed=0
    )
    wanted = study.verdict.refits[1]
    assert {f: pytest.approx(dict(g)) for f, g in wanted.items()} == dict(found.effects)
    assert how in ("inside categories", "over all categories")


def test_states_without_the_label_are_not_said_to_tell_it_apart(study):
    reading = study.reading
    flat = {
        site: replace(found, value=0.52, low=0.42, high=0.61)
        for site, found in reading.separation.auroc.items()
    }
    blind = replace(
        study, reading=replace(reading, separation=replace(reading.separation, auroc=flat))
    )
    assert "not told apart beyond the baselines" in blind.headline()
    assert "not clearly more than the input tokens alone" in blind.answer()


def test_the_report_opens_in_a_browser_with_every_figure(study, report, chromium):
    page = open_page(chromium, report)
    figures = study.figures()
    assert page.console == []
    assert page.requests == []
    assert f'data-drawn="{len(figures)}"' in page.dom
    for name in ("state_map", "cosine_profile", "direction_cosines", "principal_cosines"):
        assert f'id="figure-{name}"' in page.dom
    for name in ("score_correlation", "grid_addition", "grid_scaled_projection", "separation"):
        assert f'id="figure-{name}"' in page.dom
    assert study.answer()[:60] in page.dom


def test_tables_and_manifest_lie_beside_the_page(study, report):
    manifest = json.loads((report.parent / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["answer"] == study.answer()
    assert set(manifest["files"]) == {
        str(path.relative_to(report.parent)) for path in report.parent.rglob("*") if path.is_file()
    }
    saved = pd.read_csv(report.parent / "tables" / "accuracy.csv")
    assert len(saved) == len(study.tables()["accuracy"])
    loaded = mm.Directions.load(report.parent / "artifacts" / "directions")
    site = study.reading.chosen
    helpers.close(loaded[site].vector.numpy(), study.directions[site].vector.numpy(), 1e-12)


def run(*arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mechmem.cli", *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=cwd, env=env)


def test_the_command_studies_the_lab_model_from_end_to_end(tmp_path):
    done = run("study", "reasoning", "--shuffles", "1", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sign by label (oracle)" in done.stdout
    said = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["answer"]
    assert " ".join(said.split()) in " ".join(done.stdout.split())
    assert (tmp_path / "out" / "report.html").stat().st_size > 4_000_000


@pytest.fixture
def own(tmp_path):
    """A folder of a random model, and a table of questions whose topic gives the label away."""
    folder = tmp_path / "model"
    tokenizer = helpers.bpe_tokenizer()
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=160, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = []
    for k in range(48):
        one, two = WORDS[k % 10], WORDS[(3 * k + k // 10) % 10]
        if k % 2:
            rows.append((f"What follows {one} and {two} in list {k}?", one, "sums", 0.9 - k / 200))
        else:
            rows.append((f"Who saw the {one} {two} in year {k}?", two, "people", 0.1 + k / 200))
    frame = pd.DataFrame(rows, columns=["question", "answer", "category", "score"])
    frame.to_csv(tmp_path / "questions.csv", index=False)
    return tmp_path, frame


def test_the_command_studies_any_folder_with_a_table_of_questions(own):
    where, _ = own
    done = run(
        "study", "reasoning", "--model", "model", "--questions", "questions.csv",
        "--max-new-tokens", "4", "--out", "out", cwd=where,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "The topic alone gives the right label for 100 %" in " ".join(done.stdout.split())
    assert (where / "out" / "report.html").is_file()
    separation = pd.read_csv(where / "out" / "tables" / "separation.csv")
    assert separation["input_only"].iloc[0] > 0.9


def test_questions_without_answers_are_read_and_not_edited(own):
    where, frame = own
    frame.drop(columns="answer").to_csv(where / "bare.csv", index=False)
    task = mm.get_task("reasoning", data=where / "bare.csv")
    study = mm.run_reasoning_study(mm.load_model(str(where / "model")), task=task)
    assert study.trial is None
    assert "no edit was tried" in study.answer()
    page = mm.write_report(study, where / "bare").read_text(encoding="utf-8")
    assert "No edit was tried" in page


def test_what_cannot_be_studied_is_refused_with_the_way_out(own):
    where, frame = own
    model = mm.load_model(str(where / "model"))
    with pytest.raises(mm.TaskError, match="recall-reasoning"):
        mm.run_reasoning_study(model, task=mm.get_task("addition"))
    with pytest.raises(mm.TaskError, match=r"data=<file or PromptSet>"):
        mm.run_reasoning_study(model)
    few = mm.get_task("reasoning").read(frame.head(5))
    with pytest.raises(mm.PromptError, match="at least 4 groups"):
        mm.run_reasoning_study(model, questions=few)
    # The questions that ship are asked where none are given; they are too long for this model.
    done = run("study", "reasoning", "--model", "model", cwd=where)
    assert done.returncode == 1
    assert "model.truncating" in done.stderr
    done = run("study", "addition-cued", "--questions", "questions.csv", cwd=where)
    assert done.returncode == 2


def test_the_notes_say_that_a_sign_by_label_is_an_oracle_only_where_it_is_one(study):
    told = study.notes()
    assert any("with the sign of the label" in text for text in told)
    assert any("for all questions alike" in text for text in told)
    assert any(text.startswith("With the other sign") for text in told)


def test_the_page_shows_questions_answers_and_the_projection_of_their_tokens(study, report):
    page = report.read_text(encoding="utf-8")
    site = study.reading.chosen
    model = mm.load_model("lab/recall-reasoning")
    along = study.directions[site]
    vector = along.vector.numpy() / np.linalg.norm(along.vector.numpy())
    name = f"blocks.{site.layer}.hook_{site.stream}"
    saved = pd.read_csv(report.parent / "tables" / "tokens.csv")
    assert set(saved["id"]) == {
        prompt.id
        for label in ("reasoning", "memory")
        for prompt in [p for p in study.splits["test"] if p.label == label][:4]
    }
    for prompt in study.splits["test"].select(list(saved["id"].unique())):
        ids = model.token_ids(prompt)
        _, cache = model.tl.run_with_cache(torch.tensor([ids]), names_filter=[name])
        wanted = cache[name][0].double().numpy() @ vector
        rows = saved[saved["id"] == prompt.id]
        np.testing.assert_allclose(rows["projection"], wanted, atol=1e-5 * np.abs(wanted).max())
        middle = (along.toward_mean + along.away_mean) / 2
        np.testing.assert_allclose(rows["from_middle"], wanted - middle, atol=1e-4)
        for value, place in zip(rows["from_middle"], rows["position"], strict=True):
            side = "reasoning" if value > 0 else "memory"
            assert f'title="token {place}, prompt: {value:+.3g}, {side} side"' in page
    seen = study.trial.before["test"]
    first = seen.prompts.ids.index(saved["id"].iloc[0])
    assert f">{seen.completions[first].strip()}</span>" in page
    assert f'<span class="chip {seen.outcomes[first]}">' in page
    assert "right of the bar" not in page


def test_the_open_page_goes_by_the_answers_and_not_by_the_labels(study, tmp_path):
    """The margin is between two answers: toward reasoning is toward the one worked out."""
    page = Page(Source(load_study(study.save(tmp_path / "study"))))
    view = replace(page.source.first_view(), live=True, toward="reasoning", strength=3.0)
    try:
        page.job("turn", view, "w", 300.0)
        page.job("beyond", view, "w", 300.0)
        whole = _written(page.turn(view, "w")[0].parts)
        turned = page.done("turn", view)
        gap = (turned.edit.margins - turned.before.margins).mean()
        away = gap > 0.005  # of memorized minus generalized
        assert ("away from generalized" in whole) is bool(away)
        assert "away from reasoning" not in whole
        assert page.done("beyond", view)["share"].isna().all()  # answers are right or wrong here
    finally:
        page.worker.close()


def _written(part) -> str:
    if isinstance(part, (list, tuple)):
        return " ".join(map(_written, part))
    inner = getattr(part, "children", None)
    return str(part) if isinstance(part, (str, int, float)) else _written(inner) if inner else ""
