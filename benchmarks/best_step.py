"""Whether the best step, chosen by a few sample pictures, is the better one by pictures that did not choose it.

    python -m dreambooth batch configs/toybox-study.yaml
    python -m benchmarks.best_step studies/toybox-study

Draws and measures, by the paper's protocol, the best model of every run of a study that keeps one beside its last, and
asks the rule that chose it (`measures.best_of`, by the run's own bounds) which of the two it prefers by these figures.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from dreambooth.evaluation.evaluate import Evaluation, evaluate, run_photos, trained_model
from dreambooth.metrics.measures import Measure, best_of, read_measures
from dreambooth.metrics.metrics import METRICS, estimate_mean
from dreambooth.quiet import quiet_third_parties
from dreambooth.runs.directory import Run

SHOWN = ("dino", "pres", "clip_t")
"""What the rule looks at."""


def evaluated(run: Run, which: str) -> Measure:
    """The best or the last model's figures, measured now where they were not."""
    out = run.path / ("evaluation-best" if which == "best" else "evaluation")
    candidate = trained_model(run.path, run.config, which)
    subject = run.config.subject.class_noun
    for _ in evaluate(candidate, run.config, run_photos(run.path), out, subject=subject):
        pass
    return as_measure(Evaluation.load(out))


def as_measure(evaluation: Evaluation) -> Measure:
    """An evaluation's means, as the rule takes them."""
    return Measure(evaluation.step, **{name: evaluation.metrics[name].value for name in METRICS})


def gains(base: Measure, last: Measure, ceiling: float) -> np.ndarray:
    """What a training changed: PRES and DINO as shares of their ways to the ceiling, CLIP-T as one of the base's."""
    ways = [(getattr(last, k) - getattr(base, k)) / (ceiling - getattr(base, k)) for k in ("pres", "dino")]
    return np.array([*ways, last.clip_t / base.clip_t - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    study = parser.parse_args().study
    quiet_third_parties()
    choices, changes, errors = Counter(), {name: [] for name in SHOWN}, []
    for path in sorted(study.glob("*/*/measures.json")):
        run = Run.open(path.parent)
        measures, bounds = read_measures(run.path), run.config.evaluation
        name = f"{path.parent.parent.name}, {path.parent.name}"
        base, last = Evaluation.load(path.parent.parent / "base"), evaluated(run, "last")
        few = gains(measures.base, measures.measures[-1], measures.ceiling)
        errors.append(few - gains(as_measure(base), last, base.ceilings["dino"]))
        if measures.best == measures.measures[-1].step:
            choices["best is last"] += 1
            print(f"{name}: the last step is the best")
            continue
        best = evaluated(run, "best")
        limits = base.ceilings["dino"], bounds.max_drift, bounds.max_prompt_loss
        chosen = {best_of([as_measure(base), *pair], *limits) for pair in ((best, last), (last, best))}
        choice = "neither clearly" if len(chosen) > 1 else "the best" if chosen == {best} else "the last"
        choices[choice] += 1
        shown = ", ".join(f"{METRICS[k].title} {getattr(best, k):.3f} / {getattr(last, k):.3f}" for k in SHOWN)
        print(f"{name}: step {best.step} / {last.step}: {shown}; new pictures prefer {choice}", flush=True)
        for key in SHOWN:
            changes[key].append(getattr(best, key) - getattr(last, key))
    if len(errors) < 2:
        raise SystemExit(f"{study} holds fewer than two measured runs.")
    drift, likeness, prompts = np.std(errors, axis=0, ddof=1)
    print(
        f"Standard deviation of what the sample pictures say: {drift:.2f} of the way in drift, {likeness:.2f} of "
        f"it in DINO, {prompts:.3f} of the base model's in CLIP-T."
    )
    print(dict(choices))
    for key, values in changes.items():
        if values:
            print(f"{METRICS[key].title}, best - last: {estimate_mean(values)}")


if __name__ == "__main__":
    main()
