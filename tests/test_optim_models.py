"""Other people's training loops around our optimizers: transformers' Trainer, accelerate."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from training import KINDS, OPTIONS

from torchcalc import optim, prox
from torchcalc.testing.models import prepare

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

prepare()

pytestmark = [
    pytest.mark.no_kernels,  # says nothing of kernels, and the models are slow there
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set"),
]
VOCABULARY, LENGTH = 50, 8


def language_model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


class Sentences(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        tokens = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
        return {"input_ids": tokens, "labels": tokens}


def make(kind, model, **penalty):
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1], **penalty}]
    groups += [{"params": [p for p in model.parameters() if p.dim() < 2]}]
    optimizer = getattr(optim, kind)(groups, **{**OPTIONS[kind], "lr": 0.01})
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))


def trainer(folder, kind, steps=8, **options):
    model = language_model()
    penalty = {} if kind == "FTRL" else {"penalty": prox.L1(0.05), "prox_start": 3}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=steps,
        save_steps=4,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        dataloader_num_workers=0,
        **options,
    )
    return transformers.Trainer(
        model, arguments, train_dataset=Sentences(), optimizers=make(kind, model, **penalty)
    )


@pytest.mark.parametrize("options", [{}, {"bf16": True, "gradient_accumulation_steps": 2}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_trainer_resumes_with_the_same_bits(kind, options, tmp_path):
    whole = trainer(tmp_path / "whole", kind, **options)
    start = copy.deepcopy(whole.model.state_dict())
    whole.train()
    resumed = trainer(tmp_path / "again", kind, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.state.global_step == 8
    pairs = zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True)
    for (name, p), q in pairs:
        assert p.isfinite().all()
        assert torch.equal(p, q), name
    weight = whole.model.transformer.wte.weight
    assert not torch.equal(weight, start["transformer.wte.weight"])
    assert (weight == 0).any()  # the penalty has begun


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "FTRL"])
def test_accelerator_prepares(kind, precision, tmp_path):
    """As with torch's optimizer; half of the gradients are accumulated, others clipped."""
    results = []
    for module in (optim, torch.optim):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(
            cpu=True, mixed_precision=precision, gradient_accumulation_steps=2
        )
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        optimizer = getattr(module, kind)(model.parameters(), **OPTIONS[kind])
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
        generator = torch.Generator().manual_seed(0)
        for k in range(9):
            with accelerator.accumulate(model):
                loss = model(torch.randn(4, 3, generator=generator)).float().square().mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if k == 4:  # what is loaded is what was saved
                accelerator.save_state(str(tmp_path / module.__name__))
                with torch.no_grad():
                    for p in model.parameters():
                        p.add_(1.0)
                optimizer.param_groups[0]["lr"] = math.pi
                accelerator.load_state(str(tmp_path / module.__name__))
        results.append(([p.detach() for p in model.parameters()], schedule.get_last_lr()))
    (ours, our_rate), (theirs, their_rate) = results
    assert our_rate == their_rate
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
