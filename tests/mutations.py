"""Faults put into the code on purpose, one at a time, and the tests that must see each: `python -m tests.mutations`.

Each is put into a copy of this checkout, where its tests then run. One that they pass with is a hole in the tests; one
whose text is no longer in the file tells nothing, as `tests/test_mutations.py` says at once. Whoever adds a setting
adds the fault of ignoring it, and the test that sees it.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "venv")
"""Of each folder of a checkout, what no test reads."""
LIBRARIES = (
    "accelerate",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "hypothesis",
    "peft",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
"""What takes longest to import, and holds none of the faults."""
FORK = multiprocessing.get_context("fork")  # a process that has the libraries already: not on Windows


class Mutation(NamedTuple):
    """One fault."""

    name: str
    file: str
    old: str
    """Text that stands in the file exactly once."""
    new: str
    tests: str
    """What pytest is told to run, and must fail."""


TRAIN, OPTIMISATION = "dreambooth/training/train.py", "tests/training/test_optimisation.py"
PRIOR, DATASET, METRICS = (
    "dreambooth/training/prior.py",
    "dreambooth/training/dataset.py",
    "dreambooth/metrics/metrics.py",
)
CHECKPOINTS, MERGE = "dreambooth/training/checkpoints.py", "dreambooth/models/merge.py"
FILES, RUNS = "dreambooth/files.py", "dreambooth/runs/directory.py"
SETTING = f"{OPTIMISATION}::test_the_weights_are_those_of_the_loop_with_the_setting"
RATES = f"{OPTIMISATION}::test_each_method_trains_what_it_should_at_rates_of_their_own"

MUTATIONS = (
    # ---- the optimisation: each setting ignored, alone
    Mutation(
        "accumulated batches are summed",
        TRAIN,
        "backward(total / accumulation)",
        "backward(total)",
        f"{OPTIMISATION}::test_accumulated_batches_count_as_one",
    ),
    Mutation(
        "gradients are not clipped",
        TRAIN,
        "(weights, settings.max_grad_norm)",
        "(weights, 1e30)",
        f"{SETTING}[max_grad_norm]",
    ),
    Mutation(
        "weight decay is ignored",
        TRAIN,
        '"weight_decay": settings.weight_decay,',
        '"weight_decay": 1e-2,',
        f"{SETTING}[weight_decay]",
    ),
    Mutation(
        "betas are ignored", TRAIN, '"betas": settings.betas,', '"betas": (0.9, 0.999),', f"{SETTING}[betas.first]"
    ),
    Mutation("min-SNR is ignored", TRAIN, "t, settings.snr_gamma, mask)", "t, None, mask)", f"{SETTING}[snr_gamma]"),
    Mutation(
        "masks are ignored",
        TRAIN,
        "t, settings.snr_gamma, mask)",
        "t, settings.snr_gamma)",
        f"{OPTIMISATION}::test_what_is_transparent_is_not_learned",
    ),
    Mutation(
        "the schedule is ignored",
        TRAIN,
        "settings.lr_schedule, settings.lr_schedule)",
        '"constant", "constant_with_warmup")',
        f"{SETTING}[cosine]",
    ),
    Mutation(
        "the warm-up is ignored",
        TRAIN,
        "num_warmup_steps=settings.warmup_steps",
        "num_warmup_steps=0",
        f"{SETTING}[warmup_steps]",
    ),
    Mutation(
        "the average is the weights",
        TRAIN,
        "(ema, weights, settings.ema_decay, step)",
        "(ema, weights, 0.0, step)",
        f"{SETTING}[ema_decay]",
    ),
    Mutation(
        "the average lingers at its start",
        TRAIN,
        "    decay = min(decay, (1 + step) / (10 + step))\n",
        "",
        f"{SETTING}[ema_decay at the start]",
    ),
    Mutation(
        "the text encoder has no rate of its own",
        "dreambooth/methods/full.py",
        "group |= text_learning_rate(config)",
        "pass",
        f"{RATES}[full]",
    ),
    Mutation(
        "LoRA's text encoder has no rate of its own",
        "dreambooth/methods/lora.py",
        "(text_learning_rate(config) if name != family.denoiser else {})",
        "{}",
        f"{RATES}[lora]",
    ),
    Mutation(
        "what is frozen stays in 32 bits",
        TRAIN,
        "    store_frozen_in(dtype, trainable)\n",
        "",
        f"{OPTIMISATION}::test_what_is_frozen_is_kept_in_the_precision_of_the_forward_pass[lora]",
    ),
    Mutation(
        "a word beside weights has no rate of its own",
        "dreambooth/methods/custom_diffusion.py",
        "[words.learned]} | text_learning_rate(config)",
        "[words.learned]}",
        f"{RATES}[custom_diffusion]",
    ),
    Mutation(
        "a word has no rate of its own",
        "dreambooth/methods/textual_inversion.py",
        " | text_learning_rate(config)",
        "",
        f"{RATES}[textual_inversion]",
    ),
    Mutation(
        "lambda is one",
        "dreambooth/objectives.py",
        "instance + prior_weight * prior",
        "instance + prior",
        f"{SETTING}[prior.weight]",
    ),
    Mutation(
        "the drift penalty is left out",
        TRAIN,
        "loss.total + config.drift.weight * drift",
        "loss.total",
        f"{SETTING}[drift.weight]",
    ),
    Mutation(
        "batches of a step share their noise",
        TRAIN,
        "(x0, objective, config.seed, INSTANCE, number)",
        "(x0, objective, config.seed, INSTANCE, checkpoint.step)",
        f"{OPTIMISATION}::test_every_batch_and_every_noise_comes_once",
    ),
    Mutation(
        "LoRA's dropout is the same for every batch",
        TRAIN,
        "(config.seed, DROPOUT, number)",
        "(config.seed, DROPOUT, 0)",
        f"{OPTIMISATION}::test_lora_s_dropout_is_drawn_anew_for_each_batch_from_the_seed",
    ),
    Mutation(
        "LoRA's alpha is ignored",
        "dreambooth/methods/lora.py",
        "lora_alpha=settings.alpha or settings.rank",
        "lora_alpha=settings.rank",
        f"{OPTIMISATION}::test_lora_s_rank_and_alpha_count_while_it_trains[alpha]",
    ),
    Mutation(
        "8 bits are 32",
        TRAIN,
        "return AdamW8bit(groups, **arguments)",
        "pass",
        f"{OPTIMISATION}::test_adamw8bit_keeps_its_state_in_8_bits_and_resumes_bit_for_bit",
    ),
    # ---- checkpoints, and what is saved
    Mutation(
        "the model is saved without its average",
        TRAIN,
        "with _weights_of(ema, weights), atomic_folder(run",
        "with atomic_folder(run",
        f"{SETTING}[ema_decay]",
    ),
    Mutation(
        "samples are drawn without the average",
        TRAIN,
        "        with _weights_of(ema, weights):\n            pictures",
        "        with _weights_of(None, weights):\n            pictures",
        f"{OPTIMISATION}::test_sample_pictures_are_drawn_with_the_average",
    ),
    Mutation(
        "the average starts again on resume",
        CHECKPOINTS,
        '_restore(self.ema, state["ema"])',
        "pass",
        "tests/training/test_checkpoints.py::test_the_moving_average_is_part_of_it",
    ),
    Mutation(
        "fp16's scale starts again on resume",
        CHECKPOINTS,
        'self.scaler.load_state_dict(state["scaler"])',
        "pass",
        f"{OPTIMISATION}::test_fp16_resumed_goes_on_with_its_scale",
    ),
    Mutation(
        "a checkpoint of another base model is taken",
        CHECKPOINTS,
        'if state["base"] != base',
        "if False",
        "tests/training/test_checkpoints.py::test_a_checkpoint_of_another_base_model_is_refused",
    ),
    # ---- class images
    Mutation(
        "class images of another precision are shared",
        PRIOR,
        '        "precision": precision,\n',
        "",
        "tests/training/test_prior.py::test_what_shapes_the_pictures_makes_another_folder",
    ),
    Mutation(
        "class images are drawn without their guidance",
        PRIOR,
        ", guidance_scale=prior.guidance_scale)",
        ")",
        "tests/training/test_prior.py::test_they_are_what_stock_diffusers_draws_with_the_same_settings",
    ),
    Mutation(
        "blank pictures are drawn again from their seed",
        PRIOR,
        "SeedSequence([seed, i, redraws])",
        "SeedSequence([seed, i])",
        "tests/training/test_prior.py::test_blank_pictures_are_drawn_again_from_other_seeds",
    ),
    Mutation(
        "mirrored class images share the latents of the others",
        PRIOR,
        'f"{flip} {precision}',
        'f"{precision}',
        "tests/training/test_train.py::test_runs_of_a_class_encode_its_images_once",
    ),
    Mutation(
        "class images are taken as they lie there",
        TRAIN,
        "prior.drop_damaged(class_folder, config.prior.num_images, resolution)",
        "()",
        "tests/training/test_train.py::test_damaged_class_images_are_drawn_again_and_that_is_said",
    ),
    # ---- the dataset
    Mutation(
        "a word is taught with its class",
        "dreambooth/config/settings.py",
        'self.word.templates if self.method == "textual_inversion" else ()',
        "()",
        "tests/families/test_words.py::test_a_word_alone_is_taught_with_templates_and_not_with_its_class",
    ),
    Mutation(
        "the ground about a smaller photo is learned",
        DATASET,
        "torch.full((1, side, side), -1.0)",
        "torch.full((1, side, side), 1.0)",
        "tests/training/test_dataset.py::test_of_a_smaller_photo_its_own_place_is_learned_and_no_more",
    ),
    Mutation(
        "class images go with the photos' randomness",
        DATASET,
        "prior.example(n, self.seed, CLASS)",
        "prior.example(n, self.seed, INSTANCE)",
        "tests/training/test_dataset.py::test_the_class_side_draws_apart_from_the_photos_side",
    ),
    Mutation(
        "a mask shows what is barely opaque",
        DATASET,
        "[:, 0] >= 0).float()",
        "[:, 0] > -1).float()",
        "tests/training/test_dataset.py::test_a_position_of_which_half_is_opaque_is_learned",
    ),
    Mutation(
        "latents are their means",
        DATASET,
        "self.std[i, v] *",
        "0 *",
        "tests/training/test_dataset.py::test_latents_equal_a_sample_of_the_vaes_posterior",
    ),
    # ---- the monitor
    Mutation(
        "patience is one more",
        "dreambooth/metrics/measures.py",
        "len(since) >= patience",
        "len(since) > patience",
        "tests/training/test_monitor.py::test_patience_counts_the_samplings_since_the_best",
    ),
    Mutation(
        "the base model may be the best",
        "dreambooth/metrics/measures.py",
        "measures[1:] or measures[:1]",
        "measures",
        "tests/training/test_monitor.py::test_the_last_is_the_best_unless_another_is_better_by_more_than_chance",
    ),
    # ---- metrics
    Mutation(
        "a photo is compared with itself",
        METRICS,
        "(every.sum(axis=1) - every.diagonal()) / (len(every) - 1)",
        "every.mean(axis=1)",
        "tests/metrics/test_metrics.py::test_the_ceiling_compares_each_photo_with_the_others",
    ),
    Mutation(
        "every interval is the normal one",
        METRICS,
        "student_quantile(confidence, count - 1)",
        "student_quantile(confidence, 999)",
        "tests/metrics/test_metrics.py::test_the_interval_of_equal_groups_is_that_of_their_means",
    ),
    Mutation(
        "groups are ignored",
        METRICS,
        "rows = range(len(values)) if groups is None else groups",
        "rows = range(len(values))",
        "tests/metrics/test_metrics.py::test_pictures_of_one_prompt_are_not_independent_witnesses",
    ),
    # ---- merging
    Mutation(
        "merging protects nothing",
        MERGE,
        "return torch.cholesky_solve(words.T, torch.linalg.cholesky(ordinary + everywhere)).T",
        "return words",
        "tests/models/test_merge.py::test_the_formula_solves_the_constrained_problem",
    ),
    Mutation(
        "merging starts from the first adapter",
        MERGE,
        "base, scale=0, adapters",
        "base, scale=1, adapters",
        "tests/models/test_merge.py::test_the_adapter_holds_what_the_formula_gives",
    ),
    Mutation(
        "merging heeds the last captions alone",
        MERGE,
        "total + rows.T @ rows, count + len(rows)",
        "rows.T @ rows, len(rows)",
        "tests/models/test_merge.py::test_the_adapter_holds_what_the_formula_gives",
    ),
    # ---- what is saved
    Mutation(
        "a folder gets its name before the disk has it",
        FILES,
        "        sync_all(partial)\n",
        "",
        "tests/test_files.py::test_so_does_a_folder_with_all_that_is_in_it",
    ),
    Mutation(
        "a file gets its name before the disk has it",
        FILES,
        "        sync(partial)\n",
        "",
        "tests/test_files.py::test_a_file_gets_its_name_when_the_disk_has_it_and_the_disk_has_the_name_at_the_end",
    ),
    Mutation(
        "what a live process writes is cleared away",
        FILES,
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/test_files.py::test_leftovers_are_removed_when_their_process_is_gone_and_not_before",
    ),
    Mutation(
        "what was to be replaced is lost",
        FILES,
        'if kind == "old" and not final.exists():',
        "if False:",
        "tests/test_files.py::test_what_was_to_be_replaced_comes_back_where_the_new_one_did_not_come",
    ),
    Mutation(
        "an end is told before the disk has it",
        RUNS,
        "sync_open(file.fileno())",
        "pass",
        "tests/runs/test_runs.py::test_what_changes_where_a_run_stands_is_on_the_disk_when_it_is_told_and_steps_are_not"
        "_waited_for",
    ),
    Mutation(
        "a run that ends between two looks is interrupted",
        RUNS,
        "if (last and last.to_json()) == (now and now.to_json()):",
        "if True:",
        "tests/runs/test_runs.py::test_a_run_that_ends_between_two_looks_is_never_interrupted",
    ),
    Mutation(
        "a damaged line is the end of a run",
        "dreambooth/events.py",
        "    lost += 1\n",
        "    raise\n",
        "tests/runs/test_runs.py::test_a_damaged_line_is_lost_and_not_the_run[zeros]",
    ),
    Mutation(
        "a damaged download is taken",
        "dreambooth/models/fetch.py",
        "if found[path] != blob.name]",
        "if False]",
        "tests/models/test_fetch.py::test_what_a_power_cut_damaged_comes_again_and_what_was_found_whole_is_not_read_again"
        "[zeros]",
    ),
)


def source(mutation: Mutation, root: Path = ROOT) -> str:
    """The file with the fault in it. Raises `LookupError` where the old text does not stand there exactly once."""
    text = (root / mutation.file).read_text(encoding="utf-8")
    if (count := text.count(mutation.old)) != 1:
        raise LookupError(f"{mutation.name}: {mutation.file} holds its text {count} times, not once")
    return text.replace(mutation.old, mutation.new)


def copy_checkout(root: Path, copy: Path) -> None:
    """Copy what tests read: not the runs on top, which the page makes there; the code has a folder of that name too."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        return LEFT_OUT(folder, names) | ({"runs"} if Path(folder) == root else set())

    shutil.copytree(root, copy, ignore=left_out)


def outcomes(
    jobs: Sequence[tuple[Mutation | None, Sequence[str]]], root: Path, at_once: int
) -> Iterator[tuple[str, float, str]]:
    """For each job, in order, what became of its tests in a copy with its fault, or without one: caught, survived, or
    that it could not be told; with seconds and what pytest said."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:

        def outcome(number: int) -> tuple[str, float, str]:
            (mutation, tests), started = jobs[number], time.monotonic()
            copy, log = Path(folder) / str(number), Path(folder) / f"{number}.txt"
            copy_checkout(root, copy)
            if mutation:
                (copy / mutation.file).write_text(source(mutation, root), encoding="utf-8")
            process = FORK.Process(target=_run_tests, args=(copy, tests, log))
            process.start()
            process.join()
            shutil.rmtree(copy)
            word = {0: "survived", 1: "caught"}.get(process.exitcode, f"pytest ended with {process.exitcode}")
            return word, time.monotonic() - started, log.read_text(encoding="utf-8", errors="replace")

        yield from pool.map(outcome, range(len(jobs)))


def _run_tests(copy: Path, tests: Sequence[str], log: Path) -> None:
    """In a process of its own, which has imported all but the code: run pytest in the copy, and end with its code."""
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.partition(".")[0] in ("dreambooth", "tests")]:
        del sys.modules[name]
    os._exit(int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests])))


def main(arguments: Sequence[str] | None = None, mutations: Sequence[Mutation] = MUTATIONS, root: Path = ROOT) -> int:
    """Put in each mutation; 0 where all are caught, by tests that pass without them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="these alone; all without one")
    parser.add_argument("--jobs", type=int, default=1, help="so many at once")
    options = parser.parse_args(arguments)
    chosen = [one for one in mutations if not options.names or one.name in options.names]
    if unknown := set(options.names) - {one.name for one in chosen}:
        parser.error(f"no mutation is called {min(unknown)!r}; there are {', '.join(one.name for one in mutations)}")
    for one in chosen:
        source(one, root)  # tells before anything runs

    started = time.monotonic()
    ((word, seconds, said),) = outcomes([(None, sorted({one.tests for one in chosen}))], root, 1)
    print(f"{'passed' if word == 'survived' else 'failed':10}{seconds:5.0f} s  without a fault", flush=True)
    if word != "survived":
        print(said)
        return 1
    missed = 0
    results = outcomes([(one, [one.tests]) for one in chosen], root, options.jobs)
    for one, (word, seconds, said) in zip(chosen, results, strict=True):
        missed += word != "caught"
        print(f"{word:10}{seconds:5.0f} s  {one.name} ({one.file})", flush=True)
        if word not in ("caught", "survived"):
            print(said)
    print(f"{len(chosen) - missed} of {len(chosen)} caught in {time.monotonic() - started:.0f} s")
    return min(missed, 1)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # before what reads it is imported
    for library in LIBRARIES:
        importlib.import_module(library)  # once for all processes
    sys.exit(main())
