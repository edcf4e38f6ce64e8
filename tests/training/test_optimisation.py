"""Every setting of the optimisation, seen in the weights: real trainings beside a loop that is written out by hand.

`by_hand` knows the papers' formulas and stock diffusers, in 64 bits; from the training it takes the examples, noise and
timesteps alone. A setting is guarded where the trained weights are those of the loop with it, and not those without.
"""

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch.func import functional_call

from dreambooth import events
from dreambooth.objectives import Diffusion
from dreambooth.runs.directory import Run
from dreambooth.training.dataset import DreamBoothDataset
from tests import tiny
from tests.methods import method_settings

pytestmark = pytest.mark.slow

STEPS = 3
QUICK = {"steps": STEPS, "checkpoint_every": 100}
WITHOUT = {"enabled": False}
NEAR = 1e-3
"""How far the weights may end from the loop's, as a share of the way that they have gone: 32 bits beside 64."""
FAR = 2e-2
"""How far they must be from those of a loop without the setting."""
DENOISERS, TEXT_ENCODERS = ("to_k", "to_q", "to_v", "to_out.0"), ("q_proj", "k_proj", "v_proj", "out_proj")
EMBEDDINGS = "text_encoder.embeddings.token_embedding.weight"


@pytest.fixture
def seen(monkeypatch):
    """The batches of a training, each with its noise and timesteps, as they come: (number, batch, noise, t)."""
    found, batches = [], []
    batch, add_noise = DreamBoothDataset.batch, Diffusion.add_noise

    def seen_batch(self, number, size):
        batches.append((number, batch(self, number, size)))
        return batches[-1][1]

    def seen_noise(self, x0, noise, t):
        found.append((*batches[-1], noise.clone(), t.clone()))
        return add_noise(self, x0, noise, t)

    monkeypatch.setattr(DreamBoothDataset, "batch", seen_batch)
    monkeypatch.setattr(Diffusion, "add_noise", seen_noise)
    return found


def states(run: Run, **options) -> list[dict]:
    """Train, and give what each checkpoint holds; at its end a run keeps none."""
    written = (event for event in run.execute(**options) if isinstance(event, events.Checkpoint))
    return [torch.load(run.path / event.path / "state.pt", weights_only=True) for event in written]


def run(config, path: Path, **options) -> dict[str, torch.Tensor]:
    """Train; the saved weights."""
    for _ in Run.create(config, path).execute(**options):
        pass
    return saved(path)


def saved(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a run's `model/`, by the names that `by_hand` gives them."""
    named = {}
    for file in sorted((path / "model").rglob("*.safetensors")):
        part = "" if file.parent.name == "model" else f"{file.parent.name}."
        for name, value in load_file(file).items():
            name = name.replace("text_model.", "").replace("lora_linear_layer", "lora")
            name = name.replace(".processor.to_k_custom_diffusion", ".to_k")
            name = name.replace(".processor.to_v_custom_diffusion", ".to_v")
            custom = file.name.startswith("pytorch_custom")
            named[f"unet.{name}" if custom else part + name] = value.double()
    return named


# ---------------------------------------------------------------------------------------------------- the loop by hand


class ByHand:
    """The base model in 64 bits, and of it what a method trains."""

    def __init__(self, config):
        self.config = config
        self.pipe = StableDiffusionPipeline.from_pretrained(config.base_model)
        self.unet, self.text = self.pipe.unet.double(), self.pipe.text_encoder.double()
        parts = {"unet": self.unet, "text_encoder": self.text}
        self.base = {f"{part}.{k}": v.detach() for part, module in parts.items() for k, v in module.named_parameters()}
        self.start = {name: value.clone().requires_grad_() for name, value in self._trained()}

    def _trained(self):
        config, rank = self.config, self.config.lora.rank
        if config.method == "full":
            yield from ((k, v) for k, v in self.base.items() if config.train.text_encoder or k.startswith("unet"))
        elif config.method == "lora":
            for part, module, ends in (("unet", self.unet, DENOISERS), ("text_encoder", self.text, TEXT_ENCODERS)):
                g = torch.Generator().manual_seed(config.seed)
                for name, layer in module.named_modules():
                    if name.endswith(ends):
                        outputs, inputs = layer.weight.shape
                        down = torch.empty(rank, inputs).uniform_(-1, 1, generator=g) / math.sqrt(inputs)
                        yield f"{part}.{name}.lora.down.weight", down.double()
                        yield f"{part}.{name}.lora.up.weight", torch.zeros(outputs, rank, dtype=torch.float64)
        else:
            if config.method == "custom_diffusion":
                ends = ("attn2.to_k.weight", "attn2.to_v.weight")
                yield from ((k, v) for k, v in self.base.items() if k.endswith(ends))
            ids = self.pipe.tokenizer(config.initializers[0], add_special_tokens=False).input_ids
            yield config.subject.identifier, self.base[EMBEDDINGS][ids].mean(0, keepdim=True)

    @property
    def scale(self) -> float:
        """What LoRA's product counts."""
        return (self.config.lora.alpha or self.config.lora.rank) / self.config.lora.rank

    def model(self, trained):
        """All weights, with what is trained in its place."""
        weights = self.base | {k: v for k, v in trained.items() if k in self.base}
        for name in (k.removesuffix(".lora.down.weight") for k in trained if k.endswith("down.weight")):
            up, down = trained[f"{name}.lora.up.weight"], trained[f"{name}.lora.down.weight"]
            weights[f"{name}.weight"] = self.base[f"{name}.weight"] + self.scale * up @ down
        if (word := self.config.subject.identifier) in trained:
            weights[EMBEDDINGS] = torch.cat([self.base[EMBEDDINGS], trained[word]])
        return weights

    def loss(self, trained, batch, noise, t):
        """L = mean(instance losses) + λ · mean(class losses) + the drift penalty."""
        config, weights = self.config, self.model(trained)
        scheduler = self.pipe.scheduler
        kinds = ("instance", "class")[: 1 + ("class_images" in batch)]
        x0, ids, mask = (
            torch.cat([batch[f"{kind}_{what}"] for kind in kinds]) for what in ("images", "prompt_ids", "masks")
        )
        parts = [
            {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}
            for part in ("unet", "text_encoder")
        ]
        text = functional_call(self.text, parts[1], (ids,))[0]
        noisy = scheduler.add_noise(x0.double(), noise.double(), t)
        error = functional_call(self.unet, parts[0], (noisy, t, text)).sample - noise.double()
        losses = (error**2 * mask[:, None]).sum((1, 2, 3)) / (error.shape[1] * mask.sum((1, 2)))
        if config.train.snr_gamma:
            snr = 1 / (1 / scheduler.alphas_cumprod.double()[t] - 1)
            losses = losses * torch.minimum(snr, torch.tensor(config.train.snr_gamma)) / snr
        number = len(batch["instance_images"])
        total = losses[:number].mean()
        if "class_images" in batch:
            total = total + config.prior.weight * losses[number:].mean()
        if config.drift.weight:
            total = total + config.drift.weight * sum(
                ((weights[k] - self.base[k]) ** 2).sum() for k in self.base if k != EMBEDDINGS or k in trained
            )
        return total

    def rate(self, step: int) -> float:
        """Of the learning rate, at a step that counts from 0."""
        train = self.config.train
        if step < train.warmup_steps:
            return step / train.warmup_steps
        gone = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
        return {"constant": 1, "linear": 1 - gone, "cosine": (1 + math.cos(math.pi * gone)) / 2}[train.lr_schedule]

    def trained(self, seen, share: float | None = None) -> dict[str, torch.Tensor]:
        """What is saved after the steps: AdamW as in its paper (arXiv 1711.05101, algorithm 2). A batch counts `share`
        of its loss, by default what makes a step's batches a mean."""
        train, k = self.config.train, self.config.train.gradient_accumulation
        (b1, b2), w = train.betas, {name: value.detach().clone() for name, value in self.start.items()}
        m, v, ema = ({n: torch.zeros_like(x) for n, x in w.items()} for _ in range(3))
        ema = dict(w)
        for step in range(len(seen) // k):
            leaves = {name: value.requires_grad_() for name, value in w.items()}
            total = sum(self.loss(leaves, *one) * (share or 1 / k) for _, *one in seen[step * k : (step + 1) * k])
            g = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
            norm = math.sqrt(sum(float((x**2).sum()) for x in g.values()))
            for name in w:
                lr = train.learning_rate if name.startswith("unet") else train.text_learning_rate or train.learning_rate
                lr, clipped = lr * self.rate(step), g[name] * min(1, train.max_grad_norm / norm)
                m[name] = b1 * m[name] + (1 - b1) * clipped
                v[name] = b2 * v[name] + (1 - b2) * clipped**2
                update = m[name] / (1 - b1 ** (step + 1)) / ((v[name] / (1 - b2 ** (step + 1))).sqrt() + 1e-8)
                w[name] = (w[name] - lr * train.weight_decay * w[name] - lr * update).detach()
                decay = min(train.ema_decay or 0, (2 + step) / (11 + step))
                ema[name] = decay * ema[name] + (1 - decay) * w[name]
        return {n: x * self.scale if n.endswith("lora.up.weight") else x for n, x in ema.items()}


def distance(ours, theirs, start, part: str = "") -> float:
    """How far apart two results are, as a share of the way that the second has gone from `start`.

    Without the biases of CLIP's keys, which change no attention: their gradient is zero but for rounding.
    """
    names = [name for name in theirs if name.startswith(part) and not name.endswith("k_proj.bias")]
    assert names
    apart = sum(float((ours[name] - theirs[name]).detach().square().sum()) for name in names)
    way = sum(float((theirs[name] - start[name]).detach().square().sum()) for name in names)
    assert way > 0
    return math.sqrt(apart / way)


def test_the_loop_by_hand_is_stock_pytorch_s(make_config, tmp_path, seen):
    """AdamW and clipping written out are those of `torch.optim`, in 64 bits."""
    config = make_config(train=QUICK | {"max_grad_norm": 0.5, "weight_decay": 0.3, "betas": [0.6, 0.8]})
    run(config, tmp_path / "run")
    hand = ByHand(config)
    stock = {name: value.detach().clone().requires_grad_() for name, value in hand.start.items()}
    optimizer = torch.optim.AdamW(stock.values(), lr=1e-3, betas=(0.6, 0.8), weight_decay=0.3)
    for _, *one in seen:
        hand.loss(stock, *one).backward()
        torch.nn.utils.clip_grad_norm_(stock.values(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert distance(hand.trained(seen), stock, hand.start) < 1e-5


# ------------------------------------------------------------------------------------------------ settings, one by one

TWO = {"photos": "", "identifier": "ohwx", "class_noun": "cat"}

SETTINGS = {
    "learning_rate": ({"train": {"learning_rate": 3e-4}}, {"train": {"learning_rate": 1e-3}}),
    "max_grad_norm": ({"train": {"max_grad_norm": 1e-5}}, {"train": {"max_grad_norm": 1e9}}),
    "weight_decay": ({"train": {"weight_decay": 1.0}}, {"train": {"weight_decay": 0.01}}),
    "betas.first": ({"train": {"betas": [0.3, 0.999]}}, {"train": {"betas": [0.9, 0.999]}}),
    "betas.second": ({"train": {"betas": [0.9, 0.3]}}, {"train": {"betas": [0.9, 0.999]}}),
    "warmup_steps": ({"train": {"warmup_steps": 2}}, {"train": {"warmup_steps": 0}}),
    "cosine": ({"train": {"lr_schedule": "cosine"}}, {"train": {"lr_schedule": "constant"}}),
    "linear": ({"train": {"lr_schedule": "linear"}}, {"train": {"lr_schedule": "constant"}}),
    "linear beside cosine": ({"train": {"lr_schedule": "linear"}}, {"train": {"lr_schedule": "cosine"}}),
    "snr_gamma": ({"train": {"snr_gamma": 0.5}}, {"train": {"snr_gamma": None}}),
    "ema_decay": ({"train": {"ema_decay": 0.1}}, {"train": {"ema_decay": None}}),
    "ema_decay at the start": ({"train": {"ema_decay": 0.99}}, {"train": {"ema_decay": 0.2}}),
    "text_learning_rate": ({"train": {"text_learning_rate": 1e-4}}, {"train": {"text_learning_rate": None}}),
    "prior.weight": ({"prior": {"weight": 0.2}}, {"prior": {"weight": 1.0}}),
    "drift.weight": ({"drift": {"weight": 100.0}}, {"drift": {"weight": 0.0}}),
    "together": (
        {
            "train": {
                "lr_schedule": "cosine",
                "warmup_steps": 1,
                "snr_gamma": 1.0,
                "ema_decay": 0.5,
                "max_grad_norm": 0.1,
                "weight_decay": 0.5,
                "betas": [0.5, 0.7],
                "text_learning_rate": 3e-4,
            },
            "drift": {"weight": 10.0},
        },
        {"train": {"lr_schedule": "cosine"}},
    ),
}
"""Each with the settings that it must be told from."""


@pytest.mark.parametrize("name", SETTINGS)
def test_the_weights_are_those_of_the_loop_with_the_setting(name, make_config, tmp_path, seen):
    changes, others = SETTINGS[name]
    prior = WITHOUT if "prior" not in changes else {"num_images": 2}

    def config(changes):
        settings = {key: value for key, value in changes.items() if key != "train"}
        return make_config(prior=prior | settings.pop("prior", {}), train=QUICK | changes.get("train", {}), **settings)

    ours = run(config(changes), tmp_path / "run")
    hand = ByHand(config(changes))
    theirs, without = hand.trained(seen), ByHand(config(others)).trained(seen)
    assert ours.keys() >= theirs.keys()
    part = "text_encoder" if name == "text_learning_rate" else ""
    assert distance(ours, theirs, hand.start) < NEAR
    assert distance(ours, theirs, hand.start, part) < NEAR
    assert distance(without, theirs, hand.start, part) > FAR


def test_every_batch_and_every_noise_comes_once(make_config, tmp_path, seen):
    run(make_config(train=QUICK | {"gradient_accumulation": 2, "batch_size": 1}), tmp_path / "run")
    assert [number for number, *_ in seen] == list(range(2 * STEPS))
    rows = [row.numpy().tobytes() for _, _, noise, _ in seen for row in noise]  # a photo's and a class image's each
    assert len(set(rows)) == len(rows) == 2 * 2 * STEPS
    assert len({tuple(t.tolist()) for *_, t in seen}) == 2 * STEPS


def test_accumulated_batches_count_as_one(make_config, tmp_path, seen):
    """Their gradients' mean, not their sum, which Adam tells apart only where they are nearly as small as its ε: a γ
    of min-SNR makes them so."""
    small = {"gradient_accumulation": 2, "batch_size": 1, "snr_gamma": 1e-6, "max_grad_norm": 1e9}
    config = make_config(prior=WITHOUT, train=QUICK | small)
    ours = run(config, tmp_path / "run")
    hand = ByHand(config)
    theirs = hand.trained(seen)
    assert distance(ours, theirs, hand.start) < NEAR
    assert distance(hand.trained(seen, share=1.0), theirs, hand.start) > FAR
    one = make_config(train=QUICK | small | {"gradient_accumulation": 1})
    assert distance(ByHand(one).trained(seen[::2]), theirs, hand.start) > FAR


def test_what_is_transparent_is_not_learned(make_config, photo_folder, tmp_path, seen):
    """Pictures of two subjects side by side: the loss is the mean over their discs."""
    config = make_config(
        prior=WITHOUT, more_subjects=[TWO | {"photos": str(photo_folder)}], train=QUICK | {"side_by_side": 0.8}
    )
    ours = run(config, tmp_path / "run")
    assert any(batch["instance_masks"].min() == 0 for _, batch, *_ in seen)
    hand = ByHand(config)
    theirs = hand.trained(seen)
    whole = [(i, b | {"instance_masks": torch.ones_like(b["instance_masks"])}, *one) for i, b, *one in seen]
    assert distance(ours, theirs, hand.start) < NEAR
    assert distance(hand.trained(whole), theirs, hand.start) > FAR


# -------------------------------------------------------------------------------------------------------- each method


@pytest.mark.parametrize("method", ["full", "lora", "custom_diffusion", "textual_inversion"])
def test_each_method_trains_what_it_should_at_rates_of_their_own(method, make_config, tmp_path, seen):
    settings = method_settings(method, prior=WITHOUT)
    settings["train"] |= QUICK | {"text_learning_rate": 1e-2, "max_grad_norm": 0.1}
    config = make_config(**settings)
    ours = run(config, tmp_path / "run")
    hand = ByHand(config)
    theirs = hand.trained(seen)
    assert ours.keys() >= theirs.keys()
    for part in {name.partition(".")[0] for name in theirs}:
        assert distance(ours, theirs, hand.start, part) < NEAR
    settings["train"]["text_learning_rate"] = None
    text = "text_encoder" if method in ("full", "lora") else "<sks>"
    assert distance(ByHand(make_config(**settings)).trained(seen), theirs, hand.start, text) > FAR


@pytest.mark.parametrize(
    ("lora", "other"), [({"rank": 2}, {"rank": 3}), ({"rank": 4, "alpha": 32.0}, {"rank": 4})], ids=["rank", "alpha"]
)
def test_lora_s_rank_and_alpha_count_while_it_trains(lora, other, make_config, tmp_path, seen):
    def config(lora):
        settings = method_settings("lora", lora=lora, prior={"num_images": 2}, drift={"weight": 5.0})
        return make_config(**settings | {"train": QUICK | {"learning_rate": 1e-2}})

    ours = run(config(lora), tmp_path / "run")
    hand = ByHand(config(lora))
    theirs = hand.trained(seen)
    assert {name: value.shape for name, value in theirs.items()} == {name: value.shape for name, value in ours.items()}
    assert distance(ours, theirs, hand.start) < NEAR
    if lora["rank"] == other["rank"]:
        assert distance(ByHand(config(other)).trained(seen), theirs, hand.start) > FAR


def test_lora_s_dropout_is_drawn_anew_for_each_batch_from_the_seed(make_config, tmp_path, monkeypatch):
    """Not from PyTorch's own random state, which anything may have used."""
    dropped, dropout = [], torch.nn.functional.dropout

    def seen_dropout(x, p, training=True, inplace=False):
        out = dropout(x, p, training, inplace)
        if training and p == 0.5 and type(out) is torch.Tensor:  # the rehearsal's hold no numbers
            dropped.append((out == 0).numpy().tobytes())
        return out

    monkeypatch.setattr(torch.nn.functional, "dropout", seen_dropout)
    settings = method_settings("lora", lora={"dropout": 0.5, "targets": ["to_q"]}, prior=WITHOUT)
    settings["train"] = QUICK | {"gradient_accumulation": 2, "text_encoder": False}
    drawn = {}
    for name, seed in (("a", 1), ("again", 1), ("other", 2)):
        torch.manual_seed(len(name))
        dropped.clear()
        run(make_config(seed=seed, **settings), tmp_path / name)
        drawn[name] = list(dropped)
    layers = len(drawn["a"]) // (2 * STEPS)
    assert layers == 8
    batches = [tuple(drawn["a"][i : i + layers]) for i in range(0, len(drawn["a"]), layers)]
    assert len(set(batches)) == 2 * STEPS
    assert drawn["again"] == drawn["a"]
    assert set(drawn["other"]).isdisjoint(drawn["a"])


# ------------------------------------------------------------------------------------- EMA, precision, 8 bits, resumed


def test_the_average_is_kept_beside_the_weights_in_checkpoints(make_config, tmp_path, seen):
    """Saved is the average; the training goes on from the weights themselves."""
    config = make_config(prior=WITHOUT, train=QUICK | {"ema_decay": 0.5})
    ours, seen = run(config, tmp_path / "run"), list(seen)
    longer = make_config(prior=WITHOUT, train={"steps": STEPS + 1, "ema_decay": 0.5, "checkpoint_every": STEPS})
    [state] = states(Run.create(longer, tmp_path / "longer"))
    hand = ByHand(config)
    raw = ByHand(config.model_copy(update={"train": config.train.model_copy(update={"ema_decay": None})}))
    for kept, theirs in ((state["ema"], hand.trained(seen)), (state["weights"], raw.trained(seen))):
        named = {name: value.double() for name, value in zip(hand.start, kept, strict=True)}
        assert distance(named, theirs, hand.start) < NEAR
    assert all(torch.equal(ours[name], value.double()) for name, value in zip(hand.start, state["ema"], strict=True))


def test_sample_pictures_are_drawn_with_the_average(make_config, tmp_path):
    """The pictures of the last step are those that the saved model draws."""
    from dreambooth.generate import generate, open_source

    config = make_config(
        prior=WITHOUT,
        evaluation={"while_training": False},
        train=QUICK | {"ema_decay": 0.9, "sample_every": STEPS, "learning_rate": 3e-2},
    )
    happened = list(Run.create(config, tmp_path / "run").execute())
    at = {e.step: e for e in happened if isinstance(e, events.Image) and e.prompt == config.instance_prompt}
    source = open_source(str(tmp_path / "run"))
    (drawn,) = next(generate(source, [config.instance_prompt], num_images=1, seed=at[STEPS].seed))
    first, last = (tiny.pixels(tmp_path / "run" / at[step].path) for step in (0, STEPS))
    assert abs(last - tiny.pixels(drawn.image)).max() <= 1
    assert abs(last - first).max() > 4


@pytest.mark.parametrize("method", ["full", "lora", "custom_diffusion"])
def test_what_is_frozen_is_kept_in_the_precision_of_the_forward_pass(method, make_config, tmp_path, monkeypatch):
    pipes, load = [], StableDiffusionPipeline.from_pretrained.__func__

    def from_pretrained(cls, *args, **options):
        pipes.append(load(cls, *args, **options))
        return pipes[-1]

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    for precision, wanted in (("bf16", torch.bfloat16), ("no", torch.float32)):
        settings = method_settings(method, prior=WITHOUT)
        settings["train"] |= QUICK | {"mixed_precision": precision}
        pipes.clear()
        happened = Run.create(make_config(**settings), tmp_path / precision).execute()
        next(event for event in happened if isinstance(event, events.Step))
        layers = [
            layer.weight
            for module in (pipes[0].unet, pipes[0].text_encoder)
            for layer in module.modules()
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and getattr(layer, "weight", None) is not None
        ]
        trained = {weight.dtype for weight in layers if weight.requires_grad}
        frozen = {weight.dtype for weight in layers if not weight.requires_grad}
        assert trained == {torch.float32}
        assert frozen == (set() if method == "full" else {wanted})
        happened.close()


class Scaled(Accelerator):
    """Of fp16 what a CPU can do: its gradients are scaled, and its arithmetic is in 32 bits."""

    first = 2.0**10

    def __init__(self, **_options):
        super().__init__(mixed_precision="no", cpu=True)
        self.state._mixed_precision, self.native_amp = "fp16", True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=self.first, growth_interval=2)

    def autocast(self, *_args, **_options):
        return nullcontext()


def test_fp16_s_gradients_are_unscaled_before_they_are_clipped(make_config, tmp_path, seen, monkeypatch):
    monkeypatch.setattr("dreambooth.training.train.Accelerator", Scaled)
    config = make_config(prior=WITHOUT, train=QUICK | {"max_grad_norm": 1e-5})
    ours = run(config, tmp_path / "run")
    hand = ByHand(config)
    assert distance(ours, hand.trained(seen), hand.start) < NEAR


def test_fp16_resumed_goes_on_with_its_scale(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr("dreambooth.training.train.Accelerator", Scaled)
    config = make_config(prior=WITHOUT, train={"steps": 5, "checkpoint_every": 1})
    scales = [state["scaler"] for state in states(Run.create(config, tmp_path / "whole"))]
    whole = saved(tmp_path / "whole")
    assert scales[-1]["scale"] == 2.0**12, "it has grown after each two steps"
    happened, parts = [], Run.create(config, tmp_path / "parts")
    for event in parts.execute(should_stop=lambda: any(isinstance(e, events.Step) for e in happened)):
        happened.append(event)
    assert [state["scaler"] for state in states(parts, resume=True)] == scales[1:]
    assert all(torch.equal(value, saved(tmp_path / "parts")[name]) for name, value in whole.items())


def test_a_step_whose_gradients_overflow_is_taken_at_a_lower_scale(make_config, tmp_path, seen, monkeypatch):
    """The weights are those of a training that never overflowed."""
    monkeypatch.setattr("dreambooth.training.train.Accelerator", Scaled)
    monkeypatch.setattr(Scaled, "first", 2.0**127)
    config = make_config(prior=WITHOUT, train=QUICK)
    ours = run(config, tmp_path / "run")
    once = list({number: (number, *one) for number, *one in seen}.values())
    assert len(seen) > len(once) == STEPS
    hand = ByHand(config)
    assert distance(ours, hand.trained(once), hand.start) < NEAR


def test_adamw8bit_keeps_its_state_in_8_bits_and_resumes_bit_for_bit(make_config, tmp_path, seen):
    """Of tensors from 4,096 numbers on, which tiny models have few of: LoRA of a high rank makes them."""
    settings = method_settings("lora", lora={"rank": 256}, prior=WITHOUT)
    settings["train"] = {
        "steps": 4,
        "checkpoint_every": 3,
        "optimizer": "adamw8bit",
        "weight_decay": 0.5,
        "betas": [0.5, 0.7],
    }
    config = make_config(**settings)
    [kept] = states(Run.create(config, tmp_path / "whole"))
    whole, moments = saved(tmp_path / "whole"), kept["optimizer"]["state"].values()
    kinds = [state["__bnb_optimizer_quant_state__"]["state1"].dtype for state in moments]
    assert kinds.count(torch.uint8) > 8
    hand = ByHand(config)
    assert distance(whole, hand.trained(seen), hand.start) < 0.1
    settings["train"] |= {"betas": [0.9, 0.999]}
    assert distance(ByHand(make_config(**settings)).trained(seen), whole, hand.start) > 0.2
    settings["train"] |= {"betas": [0.5, 0.7], "weight_decay": 0.0}
    assert distance(ByHand(make_config(**settings)).trained(seen), whole, hand.start) > FAR
    happened, parts = [], Run.create(config, tmp_path / "parts")
    for event in parts.execute(should_stop=lambda: sum(isinstance(e, events.Step) for e in happened) >= 2):
        happened.append(event)
    list(parts.execute(resume=True))
    assert all(torch.equal(value, saved(tmp_path / "parts")[name]) for name, value in whole.items())
