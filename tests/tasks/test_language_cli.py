"""``attent instruct`` and ``attent merge`` from end to end, on a model of some thousand weights."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from attent.models.language import LanguageModel, build_causal, train_tokenizer
from attent.pipeline.checkpoint import CheckpointError, load_state
from attent.pipeline.fit import finished
from attent.pipeline.keyed import generator
from attent.pipeline.keys import differences
from attent.pipeline.order import bucketed_order
from attent.pipeline.score import Frozen
from attent.pipeline.source import fetch_batch
from attent.tasks import cli
from attent.tasks.config import ConfigError, without_effect
from attent.tasks.data.instructions import Instructions
from attent.tasks.data.rows import read_rows
from attent.tasks.folder import RunFolder
from attent.tasks.language.build import build_instruct, load_data
from attent.tasks.language.config import InstructConfig
from attent.tasks.run import load_trained, resume, start

LLAMA = "llama:dim=16,depth=2,num_heads=2,max_length=128"


def silent(message: str) -> None:
    pass


def entries(count: int = 60) -> list[dict]:
    """Sums in words: something that can be learned."""
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    return [
        {
            "instruction": f"Say {words[i % 7]} {i % 3 + 1} times, {i}.",
            "input": "",
            "output": " ".join([words[i % 7]] * (i % 3 + 1)),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.json"
    path.write_text(json.dumps(entries()))
    return path


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A model of transformers in a folder, as others give it out."""
    path = tmp_path_factory.mktemp("released")
    tokenizer = train_tokenizer([json.dumps(row) for row in entries()], 300)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_causal(LLAMA, vocab_size=len(tokenizer))
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2) if p.ndim > 1 else None
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


OPTIONS = {
    "lora_rank": 4, "lora_alpha": 4.0, "target_modules": "q_proj,v_proj", "epochs": 3,
    "batch_size": 8, "lr": 0.01, "steps_per_tick": 3, "save_every": 0.5, "num_samples": 2,
    "max_new_tokens": 5, "model_max_length": 96, "progress": False, "prompt": "{instruction}\n",
    "vocab_size": 300, "method": "attent_simple",
}  # fmt: skip


def config_of(data, model, folder, **options) -> InstructConfig:
    given = OPTIONS | {"data": str(data), "model_name_or_path": str(model)} | options
    return InstructConfig(**given, output_dir=str(folder))


@pytest.fixture(scope="module")
def tuned(data, released, tmp_path_factory) -> RunFolder:
    """A finished run by the method's own command line."""
    folder = tmp_path_factory.mktemp("runs") / "llm"
    argv = (
        f"instruct --model_name_or_path {released} --data_path {data} --output_dir {folder} "
        "--target_modules q_proj,v_proj,k_proj,o_proj,gate_proj,down_proj,up_proj --lora_rank 4 "
        "--lora_alpha 4 --lora_dropout 0 --method attent_simple --attent_ratio 0.7 --epochs 3 "
        "--batch_size 8 --lr 0.01 --num_samples 2 --max_new_tokens 5 --model_max_length 96 "
        "--steps_per_tick 3"
    )
    assert cli.main([*argv.split(), "--prompt", "{instruction}\n"]) == 0
    return RunFolder(folder)


def end(folder: RunFolder):
    return load_state(sorted(folder.checkpoints.glob("checkpoint-*"))[-1])[0]


def test_the_methods_own_command_line_trains_and_selects(tuned):
    state = end(tuned)
    rows = len(state["mask"])
    assert 45 < rows < 60  # a tenth is held out, by key
    assert int(state["mask"].sum()) == int(0.7 * rows + 1e-6)
    budget = int(state["plan", "budget"])
    assert budget == 3 * int(state["plan", "pass_tokens"])
    assert budget <= int(state["clock", "tokens"]) < budget + 96
    found = [
        line.get("val_perplexity") for line in map(json.loads, tuned.log.read_text().splitlines())
    ]
    found = [value for value in found if value]
    assert found[-1] < 0.8 * found[0]


def test_a_checkpoint_is_three_times_the_adapter(tuned):
    with safe_open(tuned.path / "adapter" / "adapter_model.safetensors", "pt") as file:
        adapter = sum(file.get_tensor(name).numel() for name in file.keys())
    state = end(tuned)
    own = sum(v.numel() for v in state["params"].values())
    moments = sum(v.numel() for v in state["optim"].flatten_keys().values())
    assert own == adapter
    assert moments == pytest.approx(2 * adapter, rel=0.01)
    assert not any("weight" in name and "lora" not in name for name in state["buffers"].keys())
    rest = sum(v.numel() for v in state.flatten_keys().values()) - own - moments
    assert rest < 10 * len(state["mask"]) + 100


def test_a_stopped_run_goes_on_to_the_same_bits(tuned, data, released, tmp_path):
    shutil.copytree(tuned.path, tmp_path / "copy")
    folder = RunFolder(tmp_path / "copy")
    for path in sorted(folder.checkpoints.glob("checkpoint-*"))[1:]:
        path.unlink()
    shutil.rmtree(folder.path / "adapter")
    stopped = load_state(next(iter(folder.checkpoints.glob("checkpoint-*"))))[0]
    assert not finished(stopped)
    resume(folder.path, silent)
    assert differences(end(tuned), end(folder)) == []
    assert (folder.path / "adapter" / "adapter_config.json").is_file()


def test_the_adapter_is_an_ordinary_one_of_peft(tuned, released):
    run, _ = load_trained(tuned)
    batch = fetch_batch(run.held_out, torch.arange(3))
    expected = run.task.losses(run.task.forward(Frozen(run.task, run.state), batch), batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        base = AutoModelForCausalLM.from_pretrained(released)
        plain = run.task.forward(LanguageModel(base).eval(), batch)
        model = LanguageModel(PeftModel.from_pretrained(base, tuned.path / "adapter")).eval()
    torch.testing.assert_close(run.task.losses(model_of(run, model, batch), batch), expected)
    assert not torch.allclose(run.task.losses(plain, batch), expected, rtol=0.05)


def model_of(run, model, batch):
    with torch.no_grad():
        return run.task.forward(model, batch)


def test_a_merged_model_is_loaded_by_transformers_alone(tuned, tmp_path, capsys):
    assert cli.main(["merge", str(tuned.path)]) == 0
    assert f"model {tuned.path / 'merged'}" in capsys.readouterr().err.replace("\n", "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        merged = AutoModelForCausalLM.from_pretrained(tuned.path / "merged").eval()
        tokenizer = AutoTokenizer.from_pretrained(tuned.path / "merged")
    run, _ = load_trained(tuned)
    batch = fetch_batch(run.held_out, torch.arange(3))
    expected = run.task.losses(run.task.forward(Frozen(run.task, run.state), batch), batch)
    found = run.task.losses(model_of(run, LanguageModel(merged), batch), batch)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert tokenizer.get_vocab() == run.held_out.tokenizer.get_vocab()
    assert cli.main(["merge", str(tuned.path)]) == 0  # again, in its place
    assert cli.main(["merge", str(tuned.path), "--output", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_merging_what_is_no_run_of_it(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("command: classify\n")
    assert cli.main(["merge", str(tmp_path)]) == 2
    assert "is a run of classify; attent merge is of instruct" in capsys.readouterr().err


def test_the_report_answers_held_out_instructions(tuned):
    page = (tuned.path / "report" / "report.html").read_text()
    assert "Held-out instructions answered" in page
    assert page.count("--- the model:") == 2
    assert page.count("--- wanted:") == 2
    assert "Most selected" in page
    assert "Least selected" in page
    assert page.count("--- learned:") == 10
    assert "held-out perplexity" in page
    last = json.loads(tuned.log.read_text().splitlines()[-1])
    assert f"<td>{last['tokens']:,}</td>" in page
    assert "<th>tokens</th>" in page
    cost = last["tokens"] / last["pass_tokens"]  # nothing is scored apart
    assert f"<td>{cost:.1f}</td>" in page


def test_evaluate_measures_it_again(tuned, data, capsys):
    assert cli.main(["evaluate", str(tuned.path)]) == 0
    printed = capsys.readouterr().out
    found = float(re.search(r"perplexity\s+([\d.]+)", printed)[1])
    assert found == pytest.approx(float(end(tuned)["metrics", "val_perplexity"]), rel=1e-4)


def test_evaluate_measures_all_rows_of_other_data(tuned, data, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    rows = json.loads(data.read_text())[:9]
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["evaluate", str(tuned.path), "--data_path", str(other)]) == 0
    capsys.readouterr()
    told = json.loads((tuned.path / "evaluation.json").read_text())
    run, _ = load_trained(tuned)
    source = Instructions(
        read_rows(str(other)), run.held_out.tokenizer, prompt="{instruction}\n", max_length=96
    )
    batch = fetch_batch(source, torch.arange(9))
    losses = run.task.losses(run.task.forward(Frozen(run.task, run.state), batch), batch)
    counts = run.task.targets(batch)
    found = told["metrics"]["loss"]
    expected = float((losses * counts).sum() / counts.sum())
    assert found == pytest.approx(expected, rel=1e-4)


# --- models made anew


@pytest.fixture(scope="module")
def fresh(data, tmp_path_factory) -> RunFolder:
    folder = tmp_path_factory.mktemp("fresh") / "run"
    _, found = start(
        "instruct", config_of(data, LLAMA, folder, pretrain_epochs=2, pretrain_lr=0.01), silent
    )
    return found


def test_a_model_made_anew_is_pre_trained_and_then_tuned(fresh, data):
    base = RunFolder(fresh.path / "base")
    _, config = base.load_config()
    assert (config.method, config.adapter, config.supervise) == ("full", "full", "all")
    assert (config.epochs, config.lr) == (2, 0.01)
    assert bool(finished(end(base)))
    told = [line.split()[0] for line in without_effect(config)]
    assert "epochs" not in told
    assert "lr" not in told
    run, _ = load_trained(fresh)
    loaded = AutoModelForCausalLM.from_pretrained(base.path / "model")
    name = "embed_tokens.weight"
    own = run.task.model.inner.base_model.get_parameter(name)
    assert torch.equal(own, loaded.base_model.get_parameter(name))
    assert torch.equal(own, end(base)["params", f"causal.model.{name}"])
    assert all("lora_" in name for name in end(fresh)["params"].keys())


def test_the_same_options_give_the_same_bits(fresh, data, tmp_path):
    config = config_of(data, LLAMA, tmp_path / "again", pretrain_epochs=2, pretrain_lr=0.01)
    _, again = start("instruct", config, silent)
    assert differences(end(fresh), end(again)) == []


def test_a_run_goes_on_wherever_pre_training_was_stopped(fresh, tmp_path):
    shutil.copytree(fresh.path, tmp_path / "copy")
    folder = RunFolder(tmp_path / "copy")
    for path in (folder.checkpoints, folder.selections, folder.path / "base" / "model"):
        shutil.rmtree(path)
    folder.log.unlink()
    for path in sorted((folder.path / "base" / "checkpoints").glob("checkpoint-*"))[1:]:
        path.unlink()
    resume(folder.path, silent)
    assert differences(end(fresh), end(folder)) == []


def test_a_run_that_has_lost_its_model_is_not_taken_up_with_another(fresh, tmp_path):
    shutil.copytree(fresh.path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "base")
    with pytest.raises(ConfigError, match=r"base/model, to which the adapters belong, is gone"):
        resume(tmp_path / "copy", silent)


def test_without_pre_training_the_model_below_is_kept_as_it_was_made(data, tmp_path):
    _, folder = start("instruct", config_of(data, LLAMA, tmp_path / "run", epochs=2), silent)
    assert (folder.path / "base" / "model" / "config.json").is_file()
    resumed, _ = resume(folder.path, silent)
    assert differences(end(folder), resumed) == []


def test_all_of_a_model_made_anew_is_written_as_transformers_loads_it(data, tmp_path):
    config = config_of(data, LLAMA, tmp_path / "run", adapter="full", method="full", epochs=1)
    state, folder = start("instruct", config, silent)
    model = AutoModelForCausalLM.from_pretrained(folder.path / "model")
    name = "layers.0.self_attn.q_proj.weight"
    expected = state["params", f"causal.model.{name}"]
    assert torch.equal(model.base_model.get_parameter(name), expected)
    assert not (folder.path / "base").exists()
    other, _ = load_trained(folder)
    assert (
        other.source.tokenizer.get_vocab()
        == AutoTokenizer.from_pretrained(folder.path / "tokenizer").get_vocab()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": "dora"},
        {"adapter": "adalora"},
        {"method": "attent_complex", "signal": "grad_norm", "total_cycles": 1, "epochs": 4,
         "initial_interval": 1},
        {"method": "attent_complex", "signal": "output_grad_norm", "total_cycles": 1, "epochs": 4,
         "initial_interval": 1},
        {"method": "attent_complex", "signal": "grad_norm", "scores": "observed",
         "total_cycles": 1, "epochs": 4, "initial_interval": 1},
        {"method": "attent_simple", "signal": "output_grad_norm", "scores": "fresh",
         "packing": True, "score_length": "sum"},
        {"method": "attent_simple", "reselect": True, "signal": "grad_norm", "budget": "examples"},
        {"bf16": True, "accumulate": 2, "activation_checkpointing": True},
    ],
    ids=str,
)  # fmt: skip
def test_other_ways_to_train(data, released, tmp_path, options):
    state, folder = start(
        "instruct", config_of(data, released, tmp_path / "run", **options), silent
    )
    assert finished(state)
    assert float(state["metrics", "val_perplexity"]) > 1
    assert (folder.path / "adapter" / "adapter_config.json").is_file()


def test_a_run_that_learns_all_of_every_row_answers_in_its_report(data, released, tmp_path, capsys):
    path = tmp_path / "run"
    given = {name: value for name, value in OPTIONS.items() if name != "progress"}
    words = [w for name, value in given.items() for w in (f"--{name}", str(value))]
    argv = ["instruct", "--data", str(data), "--model_name_or_path", str(released), *words]
    argv += ["--output_dir", str(path), "--adapter", "full", "--method", "full"]
    assert cli.main([*argv, "--supervise", "all", "--epochs", "1"]) == 0
    page = (path / "report" / "report.html").read_text()
    assert page.count("--- the model:") == 2


def checkpoints_of(folder: RunFolder) -> list[Path]:
    return sorted(folder.checkpoints.glob("checkpoint-*"))


def ranks_left(checkpoint: Path) -> int:
    params = load_state(checkpoint)[0]["params"]
    return sum(int((p != 0).sum()) for name, p in params.items() if "lora_E" in name)


def test_adalora_gives_up_ranks_and_a_stopped_run_gives_up_the_same(data, released, tmp_path):
    options = {"adapter": "adalora", "rank_every": 2, "lora_rank": 2, "initial_rank": 4, "keep": 20}
    state, folder = start(
        "instruct", config_of(data, released, tmp_path / "run", **options), silent
    )
    ranks = [int((p != 0).sum()) for name, p in state["params"].items() if "lora_E" in name]
    assert len(ranks) == 4
    assert sum(ranks) == 4 * 2
    saved = json.loads((folder.path / "adapter" / "adapter_config.json").read_text())
    kept = [sum(places) for places in saved["rank_pattern"].values()]
    assert sorted(kept) == sorted(max(1, rank) for rank in ranks)
    shutil.copytree(folder.path, tmp_path / "copy")
    copy = RunFolder(tmp_path / "copy")
    midst = [8 < left < 16 for left in map(ranks_left, checkpoints_of(copy))]
    assert any(midst)  # in the midst of giving up
    for path in checkpoints_of(copy)[midst.index(True) + 1 :]:
        path.unlink()
    resume(copy.path, silent)
    assert differences(end(folder), end(copy)) == []


# --- options


def test_rows_that_are_dropped_are_told(data, released, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([*entries(20), {"instruction": "word " * 200, "output": "x"}] * 2))
    said: list[str] = []
    start("instruct", config_of(path, released, tmp_path / "run", epochs=2), said.append)
    assert "leave nothing to learn (the prompt fills model_max_length 96: rows 21, 42)" in said[0]
    assert (tmp_path / "run" / "dropped.txt").read_text().splitlines() == [
        f"{path} row {i}: the prompt fills model_max_length 96" for i in (21, 42)
    ]


def test_the_harvest_is_split_by_module_and_may_be_cut():
    config = InstructConfig(dataset_split="train[:50]", max_held_out=7, vocab_size=300)
    source, held_out = load_data(config)
    assert len(source) + len(source.dropped) == 50
    assert len(held_out) + len(held_out.dropped) == 7
    modules = [{row.values["module"] for row in s.rows} for s in (source, held_out)]
    assert not modules[0] & modules[1]
    assert source.locate(0).startswith(source.rows[0].values["module"])


def test_the_ready_made_config_works_with_nothing_at_hand(tmp_path, capsys):
    """As it is, on fewer functions."""
    file = resources.files("attent.tasks.configs") / "stdlib_code.yaml"
    fewer = "--dataset_split train[:48] --max_held_out 8 --pretrain_epochs 1 --max_new_tokens 4"
    argv = f"instruct --config {file} {fewer} --output_dir {tmp_path / 'run'}"
    threads = torch.get_num_threads()
    try:
        assert cli.main(argv.split()) == 0
    finally:
        torch.set_num_threads(threads)
    assert "held-out perplexity" in capsys.readouterr().err
    _, config = RunFolder(tmp_path / "run").load_config()
    assert (config.method, config.attent_ratio, config.adapter) == ("attent_simple", 0.7, "lora")
    assert (tmp_path / "run" / "base" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_batches_of_the_harvest_are_padded_by_less_than_a_twentieth():
    source, _ = load_data(InstructConfig(vocab_size=1024))
    assert len(source) > 4000
    everything = torch.ones(len(source), dtype=torch.bool)
    for mask in (everything, torch.arange(len(source)) % 10 < 7):
        for batch_size in (8, 32):
            order = bucketed_order(mask, 3, source.lengths, batch_size)
            slots = sum(
                source.lengths[batch].max() * len(batch) for batch in order.split(batch_size)
            )
            assert 1 - source.lengths[mask].sum() / slots < 0.03
    drawn = torch.randperm(len(source), generator=generator(0)).split(16)
    slots = sum(source.lengths[batch].max() * len(batch) for batch in drawn)
    assert 1 - source.lengths.sum() / slots > 0.4


def test_other_data_may_be_held_out(data, released, tmp_path):
    (tmp_path / "test.json").write_text(json.dumps(entries(5)))
    (tmp_path / "train.json").write_text(json.dumps(entries(9)))
    config = config_of(data, released, tmp_path / "run", held_out_data=str(tmp_path))
    source, held_out = load_data(config)
    assert (len(source), len(held_out)) == (60, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits must be 4, 8, 16 or 32, got 5"),
        ({"lora_rank": 0}, "lora_rank must be at least 1, got 0"),
        ({"lora_dropout": 1.0}, r"lora_dropout must be in \[0, 1\)"),
        ({"held_out": 0.0}, "held_out must be above 0"),
        ({"model_max_length": 1}, "model_max_length must be at least 2"),
        ({"vocab_size": 100}, "vocab_size must be at least 258"),
        ({"dataset_split": "train["}, "dataset_split is like train"),
        ({"dataset_field": "a"}, r"names a query and a response, not \['a'\]"),
        ({"prompt": "no place"}, r"prompt must be a text that holds \{instruction\}"),
        ({"compile": True}, "compile must be false"),
        ({"layer_decay": 0.5}, "layer_decay must be 1 for language models"),
        ({"max_held_out": 0}, "max_held_out must be at least 1, or null"),
        ({"pretrain_epochs": -1}, "pretrain_epochs must be at least 0"),
        ({"adapter": "adalora", "optimizer": "sgd"}, "adalora goes with optimizer adamw, not sgd"),
        ({"rank_every": 0}, "rank_every must be at least 1"),
        ({"rank_final": 1.0}, r"rank_final must be in \[0, 1\)"),
        (
            {"method": "attent_simple", "packing": True, "signal": "grad_norm"},
            "in packed rows there is no gradient of one",
        ),
        (
            {"method": "attent_simple", "score_length": "sum"},
            "score_length: sum is of scores that are measured",
        ),
        ({"adapter": "adalora", "ema": 0.9}, "ema: averages of ranks that are given up never"),
        ({"adapter": "full", "bits": 16}, "bits: 16 is of frozen weights; adapter full trains all"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        InstructConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_max_length": 200}, r"model_max_length 200 is above the 128 positions of"),
        ({"target_modules": "no_proj"}, "no_proj"),
        ({"adapter": "adalora", "initial_rank": 2}, "an initial rank of 2 is below the rank of 4"),
        (
            {"adapter": "adalora", "rank_warmup": 0.5, "rank_final": 0.5},
            "a warm-up of 0.5 and a final share of 0.5 of the budget",
        ),
        ({"dataset_split": "test"}, "is one file, whose split is train, not test"),
        ({"model_name_or_path": "./nowhere"}, "nowhere cannot be loaded"),
        ({"data": "./nowhere.json"}, r"there is no file or folder \./nowhere\.json"),
        ({"held_out_data": "./nowhere.json"}, r"held_out_data: .*nowhere\.json"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_made(
    data, released, tmp_path, options, message
):
    config = replace(config_of(data, released, tmp_path / "run"), **options)
    with pytest.raises(ValueError, match=message):
        start("instruct", config, silent)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_few_bits_without_a_gpu_are_told_in_a_line(data, released, tmp_path, capsys):
    argv = f"instruct --data {data} --model_name_or_path {released} --bits 4 --output_dir out"
    assert cli.main(argv.split()) == 2
    assert "error: bits: 4 needs a GPU, which there is not here" in capsys.readouterr().err


def test_the_harvest_has_no_other_split():
    with pytest.raises(ConfigError, match="the harvest has train and holds val out, not test"):
        build_instruct(InstructConfig(dataset_split="test"))


def test_options_that_do_nothing_are_said_to():
    told = "\n".join(
        without_effect(
            InstructConfig(
                adapter="full", lora_rank=4, orthogonality=0.1, dataset_field="a,b",
                pretrain_epochs=2, num_samples=0, max_new_tokens=3,
            )
        )
    )  # fmt: skip
    for name in ("lora_rank", "orthogonality", "dataset_field", "pretrain_epochs", "max_new_tok"):
        assert name in told


def test_names_may_be_lists_or_texts():
    for value in ("a,b", "a b", ["a", "b"]):
        config = InstructConfig(dataset_field=value, sub_task=value)
        assert config.fields == config.sub_tasks == ["a", "b"]


def test_a_model_whose_tokenizer_has_more_words_is_refused(released, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(released, copy)
    train_tokenizer([json.dumps(row) for row in entries()] * 2, 320).save_pretrained(copy)
    with pytest.raises(ConfigError, match=r"has 3\d\d words, its model"):
        build_instruct(config_of(data, copy, tmp_path / "run"))


def test_a_checkpoint_of_other_adapters_is_refused(tuned, tmp_path):
    shutil.copytree(tuned.path, tmp_path / "copy")
    path = tmp_path / "copy" / "config.yaml"
    path.write_text(path.read_text().replace("lora_rank: 4", "lora_rank: 2"))
    with pytest.raises((CheckpointError, ConfigError), match="lora_rank 4 -> 2"):
        resume(tmp_path / "copy", silent)
